// C (M, N) = A (M, K) · op(B) in the way of Hopper: a producer warpgroup fills a ring of stages by
// TMA, a consumer warpgroup multiplies them with wgmma, mbarriers pass the stages to and fro. It
// exists to exercise the wrappers of ptx.cuh and wgmma.cuh; M, N and K are multiples of 64.
#pragma once
#include "../../../cuda/common.cuh"
#include "../../../cuda/arch/wgmma.cuh"

namespace siglip2::cuda {

// Mistakes that a real kernel could make; the tests show that the host runtime notices them.
enum class Fault {
  none,
  stage_back_too_early,
  full_not_awaited,
  accumulators_not_awaited,
  wrong_offset
};

constexpr int kStages = 3, kStageBytes = 64 * 64 * 2;
constexpr size_t kHopperGemmSmem = 2 * kStages * kStageBytes + 2 * kStages * sizeof(uint64_t);

// kTransposeB: B is (K, N), read MN-major, else (N, K). kRegisters: A goes through registers, as P
// does in attention.
template <bool kTransposeB, bool kRegisters, Fault kFault = Fault::none>
__global__ void __launch_bounds__(256, 1)
    hopper_gemm_kernel(const __grid_constant__ TensorMap a_map,
                       const __grid_constant__ TensorMap b_map,
                       float* C,  // (M, N)
                       int N, int K) {
  DYN_SMEM(smem);
  unsigned char* const a_stages = smem;
  unsigned char* const b_stages = smem + kStages * kStageBytes;
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem + 2 * kStages * kStageBytes);
  uint64_t* const empty = full + kStages;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, 128);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int m0 = static_cast<int>(blockIdx.y) * 64, n0 = static_cast<int>(blockIdx.x) * 64,
            steps = K / 64;

  if (thread >= 128) {
    give_registers<40>();
    if (thread != 128) return;
    for (int step = 0; step < steps; ++step) {
      const int s = step % kStages;
      mbarrier_wait(empty + s, static_cast<uint32_t>((step / kStages & 1) ^ 1));
      mbarrier_arrive_expect(full + s, 2 * kStageBytes);
      tma_load_2d(a_stages + s * kStageBytes, &a_map, step * 64, m0, full + s);
      if (kTransposeB) tma_load_2d(b_stages + s * kStageBytes, &b_map, n0, step * 64, full + s);
      else tma_load_2d(b_stages + s * kStageBytes, &b_map, step * 64, n0, full + s);
    }
    return;
  }

  take_registers<256>();  // as many as the launch gave each of 256 threads
  float d[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) d[i] = 0;
  for (int step = 0; step < steps; ++step) {
    const int s = step % kStages;
    if (kFault != Fault::full_not_awaited)
      mbarrier_wait(full + s, static_cast<uint32_t>(step / kStages & 1));
    const unsigned char* const a = a_stages + s * kStageBytes;
    const unsigned char* const b = b_stages + s * kStageBytes;
    uint32_t fragments[4][4];
    if (kRegisters) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // the 128-byte swizzle: 16-byte chunk xor row % 8
        const int row = warp * 16 + lane % 16, chunk = k * 2 + lane / 16;
        ldmatrix_x4(fragments[k], a + row * 128 + (chunk ^ row % 8) * 16);
      }
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      constexpr int kAdvance = kFault == Fault::wrong_offset ? 16 : 32;
      const uint64_t b_tile =
          kTransposeB ? matrix_descriptor<Swizzle::bytes128>(b + k * 16 * 128, 64 * 128, 1024)
                      : matrix_descriptor<Swizzle::bytes128>(b + k * kAdvance, 0, 1024);
      if (kRegisters) wgmma_m64n64k16<kTransposeB>(d, fragments[k], b_tile, true);
      else
        wgmma_m64n64k16<false, kTransposeB>(
            d, matrix_descriptor<Swizzle::bytes128>(a + k * 32, 0, 1024), b_tile, true);
    }
    wgmma_commit();
    if (kFault != Fault::stage_back_too_early && kFault != Fault::accumulators_not_awaited)
      wgmma_wait<0>();
    mbarrier_arrive(empty + s);
  }
  if (kFault == Fault::stage_back_too_early) wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int row = m0 + warp * 16 + lane / 4 + 8 * (i / 2 % 2),
              column = n0 + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    C[static_cast<int64_t>(row) * N + column] = d[i];
  }
  if (kFault == Fault::accumulators_not_awaited) wgmma_wait<0>();
}

}  // namespace siglip2::cuda
