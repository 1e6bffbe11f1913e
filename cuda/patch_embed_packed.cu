// Embedding of packed patches (formula in native/ops/patch_embed_packed.h). Bound by arithmetic: T·K·D multiply-adds
// forward and as many for the weight's gradient. Both products share one 64 × 64 tile with 4 × 4 outputs for each
// thread; bytes become floats on their way into shared memory, so no widened copy of the patches exists, and everything
// after that is float. Every output has one owner that adds in a fixed order.
#include "../native/ops/patch_embed_packed.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16;
constexpr int kTileThreads = 256;  // 16 × 16 threads of 4 × 4 outputs
constexpr int kPitch = kTile + 4;  // keeps rows 16-byte aligned and moves them to other banks
constexpr size_t kTileSmem = 2 * kDepth * kPitch * sizeof(float);
constexpr unsigned kRowGroups = 8;  // of 32 threads that add up a column of dy

__device__ __forceinline__ float value_of(uint8_t byte) { return (static_cast<float>(byte) - 127.5f) * (1.0f / 127.5f); }
template <class T> __device__ __forceinline__ float value_of(T v) { return static_cast<float>(v); }

// A (rows, depth) operand as it lies in memory; outside of it are zeros. Steps count elements; one of them is 1 and
// neighbouring threads walk along that one.
template <class T> struct Operand {
  const T* data;
  int64_t rows, depth, row_step, depth_step;

  // Puts rows [row0, row0 + 64), depth [k0, k0 + 16) to shared memory as (depth, row).
  __device__ __forceinline__ void load(float* tile, int64_t row0, int64_t k0) const {
#pragma unroll
    for (int part = 0; part < kTile * kDepth / kTileThreads; ++part) {
      const int i = part * kTileThreads + static_cast<int>(threadIdx.x);
      const int k = depth_step == 1 ? i % kDepth : i / kTile;
      const int r = depth_step == 1 ? i / kDepth : i % kTile;
      const bool inside = row0 + r < rows && k0 + k < depth;
      tile[k * kPitch + r] = inside ? value_of(data[(row0 + r) * row_step + (k0 + k) * depth_step]) : 0.0f;
    }
  }
};

// store(row, column, Σ_k a[row, k]·b[column, k]) for every output of this block's tile.
template <class A, class B, class F>
__device__ __forceinline__ void multiply_tile(const Operand<A>& a, const Operand<B>& b, float* smem, F&& store) {
  float* const a_tile = smem;
  float* const b_tile = smem + kDepth * kPitch;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile, column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4, column = static_cast<int>(threadIdx.x) % 16 * 4;
  float c[4][4] = {};
  for (int64_t k0 = 0; k0 < a.depth; k0 += kDepth) {
    a.load(a_tile, row0, k0);
    b.load(b_tile, column0, k0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float u[4], v[4];
      Pack<float>::load(a_tile + k * kPitch + row).unpack(u);
      Pack<float>::load(b_tile + k * kPitch + column).unpack(v);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] += u[i] * v[j];
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row0 + row + i < a.rows && column0 + column + j < b.rows) store(row0 + row + i, column0 + column + j, c[i][j]);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    patch_embed_packed_forward_kernel(T* y,                       // (T, D)
                                      Operand<uint8_t> patches,   // (T, K)
                                      Operand<T> weight,          // (D, K)
                                      const float* bias,          // (D)
                                      const float* position) {    // (T, D)
  DYN_SMEM(smem);
  const int64_t D = weight.rows;
  multiply_tile(patches, weight, reinterpret_cast<float*>(smem), [&](int64_t t, int64_t d, float sum) {
    y[t * D + d] = static_cast<T>(sum + bias[d] + position[t * D + d]);
  });
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    patch_embed_packed_weight_kernel(float* dweight,              // (D, K)
                                     Operand<T> dy,               // (D, T): the transposed view of (T, D)
                                     Operand<uint8_t> patches) {  // (K, T): the transposed view of (T, K)
  DYN_SMEM(smem);
  const int64_t K = patches.rows;
  multiply_tile(dy, patches, reinterpret_cast<float*>(smem),
                [&](int64_t d, int64_t k, float sum) { dweight[d * K + k] += sum; });
}

// Columns of dy: 32 columns a block, rows shared out over 8 groups whose sums are added in order.
template <class T>
__global__ void __launch_bounds__(kWarp* kRowGroups)
    patch_embed_packed_bias_kernel(float* dbias,  // (D)
                                   const T* dy,   // (T, D)
                                   int64_t rows, int64_t D) {
  DYN_SMEM(smem);
  float* const sums = reinterpret_cast<float*>(smem);  // (row groups, 32)
  const unsigned lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float total = 0;
  if (d < D)
    for (int64_t r = group; r < rows; r += kRowGroups) total += static_cast<float>(dy[r * D + d]);
  sums[threadIdx.x] = total;
  __syncthreads();
  if (group != 0 || d >= D) return;
  for (unsigned i = 1; i < kRowGroups; ++i) total += sums[i * kWarp + lane];
  dbias[d] += total;
}

dim3 tile_grid(int64_t rows, int64_t columns) {
  return {static_cast<unsigned>(ceil_div<int64_t>(columns, kTile)), static_cast<unsigned>(ceil_div<int64_t>(rows, kTile))};
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void patch_embed_packed_forward(Stream& s, Tensor y, Tensor patches, Tensor weight, Tensor bias, Tensor position,
                                int64_t T, int64_t K, int64_t D) {
  if (T == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using E = decltype(t);
    const Operand<uint8_t> x{patches.as<const uint8_t>(T * K), T, K, K, 1};
    const Operand<E> w{weight.as<const E>(D * K), D, K, K, 1};
    launch(patch_embed_packed_forward_kernel<E>, tile_grid(T, D), kTileThreads, kTileSmem, s, y.as<E>(T * D), x, w,
           bias.as<const float>(D), position.as<const float>(T * D));
  });
}

void patch_embed_packed_backward(Stream& s, Tensor dweight, Tensor dbias, Tensor dy, Tensor patches, int64_t T,
                                 int64_t K, int64_t D) {
  if (T == 0 || D == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using E = decltype(t);
    const E* const g = dy.as<const E>(T * D);
    const uint8_t* const x = patches.as<const uint8_t>(T * K);
    if (float* const db = dbias.as_or_null<float>(D))
      launch(patch_embed_packed_bias_kernel<E>, static_cast<unsigned>(ceil_div<int64_t>(D, kWarp)), kWarp * kRowGroups,
             kWarp * kRowGroups * sizeof(float), s, db, g, T, D);
    if (float* const dw = dweight.as_or_null<float>(D * K))
      launch(patch_embed_packed_weight_kernel<E>, tile_grid(D, K), kTileThreads, kTileSmem, s, dw,
             Operand<E>{g, D, T, 1, D}, Operand<uint8_t>{x, K, T, 1, K});
  });
}

}  // namespace siglip2::cuda
