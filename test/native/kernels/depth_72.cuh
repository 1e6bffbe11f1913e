// O = (0.1 · Q Kᵀ) V for 64 rows with head dimension 72, which is not a multiple of the wgmma depth
// of 16. The layout without swizzle, chunks of 8 columns as [chunk][row][16 bytes], serves one tile
// both as K-major operand (depth 80, with one chunk of zeros) and as MN-major operand (width 72,
// nothing padded). The chunk distance has 16 bytes more than its rows, which spreads the chunks
// over the banks.
#pragma once
#include "../../../cuda/common.cuh"
#include "../../../cuda/arch/wgmma.cuh"

namespace siglip2::cuda {

constexpr int kHead = 72, kRows = 64, kChunks = 10, kChunkBytes = kRows * 16 + 16;
constexpr int kHeadTileBytes = kChunks * kChunkBytes;
constexpr size_t kDepth72Smem = 3 * kHeadTileBytes;

__global__ void __launch_bounds__(128, 1) depth_72_kernel(const __nv_bfloat16* q,  // (64, 72)
                                                          const __nv_bfloat16* k,  // (64, 72)
                                                          const __nv_bfloat16* v,  // (64, 72)
                                                          float* o) {              // (64, 72)
  DYN_SMEM(smem);
  unsigned char* const q_tile = smem;
  unsigned char* const k_tile = smem + kHeadTileBytes;
  unsigned char* const v_tile = smem + 2 * kHeadTileBytes;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kRows * kChunks; i += 128) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = chunk * 8 < kHead;
    const int from = valid ? row * kHead + chunk * 8 : 0, to = chunk * kChunkBytes + row * 16;
    cp_async_16(q_tile + to, q + from, valid);
    cp_async_16(k_tile + to, k + from, valid);
    cp_async_16(v_tile + to, v + from, valid);
  }
  cp_async_commit();
  cp_async_wait<0>();
  fence_proxy_async();
  __syncthreads();

  float s[32], acc[36];
#pragma unroll
  for (int i = 0; i < 32; ++i) s[i] = 0;
#pragma unroll
  for (int i = 0; i < 36; ++i) acc[i] = 0;
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kChunks / 2; ++step) {
    const int at = step * 2 * kChunkBytes;
    wgmma_m64n64k16<false, false>(
        s, matrix_descriptor<Swizzle::none>(q_tile + at, kChunkBytes, 128),
        matrix_descriptor<Swizzle::none>(k_tile + at, kChunkBytes, 128), true);
  }
  wgmma_commit();
  wgmma_wait<0>();

  uint32_t p[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      p[step][e] = pack_bf16(s[step * 8 + e * 2] * 0.1f, s[step * 8 + e * 2 + 1] * 0.1f);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    wgmma_m64n72k16<true>(acc, p[step],
                          matrix_descriptor<Swizzle::none>(v_tile + step * 256, 128, kChunkBytes),
                          true);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 36; ++i) {
    const int row = warp * 16 + lane / 4 + 8 * (i / 2 % 2),
              column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    o[row * kHead + column] = acc[i];
  }
}

// C (64, 72) = A (64, 16) · B (72, 16)ᵀ in one instruction with both operands in shared memory. The
// second product has scale-d 0, so that what the first left in the accumulators must vanish.
constexpr size_t kSingleSmem = 2 * (64 + 72) * 16;
__global__ void __launch_bounds__(128, 1)
    single_72_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  DYN_SMEM(smem);
  constexpr int kA = 64 * 16, kB = 72 * 16;  // bytes of a chunk of 8 columns
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < 2 * 64; i += 128)
    cp_async_16(smem + i % 2 * kA + i / 2 * 16, a + i * 8, true);
  for (int i = thread; i < 2 * 72; i += 128)
    cp_async_16(smem + 2 * kA + i % 2 * kB + i / 2 * 16, b + i * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  fence_proxy_async();
  __syncthreads();
  float d[36];
#pragma unroll
  for (int i = 0; i < 36; ++i) d[i] = 1;
  const uint64_t a_tile = matrix_descriptor<Swizzle::none>(smem, kA, 128);
  const uint64_t b_tile = matrix_descriptor<Swizzle::none>(smem + 2 * kA, kB, 128);
  wgmma_fence();
  wgmma_m64n72k16<false, false>(d, a_tile, b_tile, true);
  wgmma_m64n72k16<false, false>(d, a_tile, b_tile, false);
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 36; ++i)
    c[(warp * 16 + lane / 4 + 8 * (i / 2 % 2)) * 72 + 8 * (i / 4) + 2 * (lane % 4) + i % 2] = d[i];
}

}  // namespace siglip2::cuda
