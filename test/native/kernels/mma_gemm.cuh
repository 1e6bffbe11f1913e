// C (M, N) = A (M, K) · op(B) in the way of Ampere: cp.async into two stages, ldmatrix, mma.sync.
// One block of four warps makes 64 × 64 outputs. It exists to exercise the sm_80 wrappers of
// ptx.cuh; any M and N, K a multiple of 16.
#pragma once
#include "../../../cuda/common.cuh"

namespace siglip2::cuda {

constexpr int kMmaTile = 64, kMmaDepth = 16;
constexpr int kAPitch = kMmaDepth + 8, kBPitch = 64 + 8;  // 16 bytes more, against bank conflicts
constexpr int kMmaStage = kMmaTile * kAPitch + kMmaTile * kAPitch + kMmaDepth * kBPitch;
constexpr size_t kMmaGemmSmem = 2 * kMmaStage * sizeof(__nv_bfloat16);

// kTransposeB: B is (K, N) and is transposed by ldmatrix, else it is (N, K).
template <bool kTransposeB> __global__ void __launch_bounds__(128)
    mma_gemm_kernel(float* C, const __nv_bfloat16* A, const __nv_bfloat16* B, int M, int N, int K) {
  DYN_SMEM(smem);
  __nv_bfloat16* const stages = reinterpret_cast<__nv_bfloat16*>(smem);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int m0 = static_cast<int>(blockIdx.y) * kMmaTile,
            n0 = static_cast<int>(blockIdx.x) * kMmaTile;

  const auto fetch = [&](int step) {
    __nv_bfloat16* const a = stages + step % 2 * kMmaStage;
    __nv_bfloat16* const b = a + kMmaTile * kAPitch;
    const int k0 = step * kMmaDepth;
    {
      const int row = thread / 2, column = thread % 2 * 8;
      const bool valid = m0 + row < M;
      cp_async_16(a + row * kAPitch + column,
                  valid ? A + static_cast<int64_t>(m0 + row) * K + k0 + column : A, valid);
    }
    if (kTransposeB) {
      const int row = thread / 8, column = thread % 8 * 8;
      const bool valid = n0 + column < N;  // N is a multiple of 8 here
      cp_async_16(b + row * kBPitch + column,
                  valid ? B + static_cast<int64_t>(k0 + row) * N + n0 + column : B, valid);
    } else {
      const int row = thread / 2, column = thread % 2 * 8;
      const bool valid = n0 + row < N;
      cp_async_16(b + row * kAPitch + column,
                  valid ? B + static_cast<int64_t>(n0 + row) * K + k0 + column : B, valid);
    }
    cp_async_commit();
  };

  float acc[8][4];
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[j][i] = 0;
  const int steps = K / kMmaDepth;
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch(step + 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    const __nv_bfloat16* const a = stages + step % 2 * kMmaStage;
    const __nv_bfloat16* const b = a + kMmaTile * kAPitch;
    uint32_t a_fragment[4];
    ldmatrix_x4(a_fragment, a + (warp * 16 + lane % 16) * kAPitch + lane / 16 * 8);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // 16 columns at a time
      uint32_t f[4];
      if (kTransposeB)
        ldmatrix_x4_transposed(f, b + (lane % 16) * kBPitch + pair * 16 + lane / 16 * 8);
      else ldmatrix_x4(f, b + (pair * 16 + lane / 16 * 8 + lane % 8) * kAPitch + lane / 8 % 2 * 8);
      mma_m16n8k16(acc[2 * pair], a_fragment, f[0], f[1]);
      mma_m16n8k16(acc[2 * pair + 1], a_fragment, f[2], f[3]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = m0 + warp * 16 + lane / 4 + i / 2 * 8,
                column = n0 + j * 8 + lane % 4 * 2 + i % 2;
      if (row < M && column < N) C[static_cast<int64_t>(row) * N + column] = acc[j][i];
    }
}

}  // namespace siglip2::cuda
