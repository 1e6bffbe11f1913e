// Pair scores for joint selection (formula in native/ops/pair_scores.h). Bound by arithmetic: two
// products of B·K·D. A block owns 64 rows: it walks over the chosen columns 64 at a time, turns each
// 64 × 64 tile of dot products into losses in registers, and adds them up by row, for both
// orientations. No workspace, one owner for each sum and a fixed order.
#include "../native/ops/pair_scores.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16;
constexpr int kThreads = 256;      // 16 × 16 threads of 4 × 4 pairs
constexpr int kPitch = kTile + 4;  // keeps rows 16-byte aligned and moves them to other banks
constexpr unsigned kDiagonalWarps = 4;

// log(1 + e^a) without overflow, and without losing small values to the 1.
__device__ __forceinline__ float softplus(float a) {
  return fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
}

template <class T> __global__ void __launch_bounds__(kDiagonalWarps* kWarp)
    pair_scores_diagonal_kernel(float* scores,           // (B) +=
                                const T* x,              // (B, D)
                                const T* y,              // (B, D)
                                const float* log_scale,  // (1)
                                const float* bias,       // (1)
                                int64_t B, int64_t D, float weight) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kDiagonalWarps + threadIdx.x / kWarp;
  if (row >= B) return;  // whole warps, and no barrier follows
  float dot = 0;
  for (int64_t d = threadIdx.x % kWarp; d < D; d += kWarp)
    dot += static_cast<float>(x[row * D + d]) * static_cast<float>(y[row * D + d]);
  dot = warp_sum(dot);
  if (threadIdx.x % kWarp == 0) scores[row] += weight * softplus(-(expf(*log_scale) * dot + *bias));
}

// Adds to sums the losses of 4 of the block's rows against every chosen row of `columns`.
template <class T> __device__ void add_losses(float (&sums)[4], const T* rows, const T* columns,
                                              const int32_t* chosen, int64_t row0, int64_t B,
                                              int64_t K, int64_t D, float t, float b, float* smem) {
  float* const row_tile = smem;  // (depth, row)
  float* const column_tile = smem + kDepth * kPitch;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / 16 * 4, column = thread % 16 * 4;
  for (int64_t column0 = 0; column0 < K; column0 += kTile) {
    float dot[4][4] = {};
    for (int64_t k0 = 0; k0 < D; k0 += kDepth) {
#pragma unroll
      for (int part = 0; part < kTile * kDepth / kThreads; ++part) {
        const int i = part * kThreads + thread, k = i % kDepth, r = i / kDepth;
        const bool deep = k0 + k < D;
        row_tile[k * kPitch + r] =
            deep && row0 + r < B ? static_cast<float>(rows[(row0 + r) * D + k0 + k]) : 0.0f;
        column_tile[k * kPitch + r] =
            deep && column0 + r < K
                ? static_cast<float>(
                      columns[static_cast<int64_t>(chosen[column0 + r]) * D + k0 + k])
                : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        float u[4], v[4];
        Pack<float>::load(row_tile + k * kPitch + row).unpack(u);
        Pack<float>::load(column_tile + k * kPitch + column).unpack(v);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) dot[i][j] += u[i] * v[j];
      }
      __syncthreads();
    }
    float losses[4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column0 + column + j >= K) continue;
      const int64_t other = chosen[column0 + column + j];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (other != row0 + row + i) losses[i] += softplus(t * dot[i][j] + b);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += losses[i];
  }
}

template <class T> __global__ void __launch_bounds__(kThreads)
    pair_scores_chosen_kernel(float* scores,           // (B) +=
                              const T* x,              // (B, D)
                              const T* y,              // (B, D)
                              const int32_t* chosen,   // (K)
                              const float* log_scale,  // (1)
                              const float* bias,       // (1)
                              int64_t B, int64_t K, int64_t D, float weight) {
  DYN_SMEM(smem);
  float* const tiles = reinterpret_cast<float*>(smem);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const float t = expf(*log_scale), b = *bias;
  float sums[4] = {};
#pragma unroll 1  // inlined twice, it spills registers
  for (int side = 0; side < 2; ++side)
    add_losses(sums, side ? y : x, side ? x : y, chosen, row0, B, K, D, t, b, tiles);
  const int64_t row = row0 + threadIdx.x / 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int d = 8; d > 0; d /= 2) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], d);
    if (threadIdx.x % 16 == 0 && row + i < B) scores[row + i] += weight * sums[i];
  }
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void pair_scores_diagonal(Stream& s, Tensor scores, Tensor x, Tensor y, Tensor log_scale,
                          Tensor bias, int64_t B, int64_t D, float weight) {
  if (B == 0) return;
  dispatch_element(x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(pair_scores_diagonal_kernel<T>,
           static_cast<unsigned>(ceil_div<int64_t>(B, kDiagonalWarps)), kDiagonalWarps * kWarp, 0,
           s, scores.as<float>(B), x.as<const T>(B * D), y.as<const T>(B * D),
           log_scale.as<const float>(1), bias.as<const float>(1), B, D, weight);
  });
}

void pair_scores_chosen(Stream& s, Tensor scores, Tensor x, Tensor y, Tensor chosen,
                        Tensor log_scale, Tensor bias, int64_t B, int64_t K, int64_t D,
                        float weight) {
  if (B == 0 || K == 0) return;
  dispatch_element(x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(pair_scores_chosen_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(B, kTile)),
           kThreads, 2 * kDepth * kPitch * sizeof(float), s, scores.as<float>(B),
           x.as<const T>(B * D), y.as<const T>(B * D), chosen.as<const int32_t>(K),
           log_scale.as<const float>(1), bias.as<const float>(1), B, K, D, weight);
  });
}

}  // namespace siglip2::cuda
