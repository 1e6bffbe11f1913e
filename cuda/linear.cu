// Fully connected layer (native/ops/linear.h). The products are gemm()'s, with bias and GELU in the
// forward epilogue. Backward needs dpre = dy·GELU'(pre) in two products, so it is made once, in one
// pass over memory that also sums the columns for dbias; where the layer before this one ended in GELU, the
// epilogue of dx goes through that, which spares the pass.
#include "../native/ops/linear.h"
#include <algorithm>
#include "activation.cuh"
#include "common.cuh"
#include "gemm/gemm.h"

namespace siglip2::cuda {

namespace {

constexpr int kLanes = 32, kRowThreads = 8;  // a warp along the columns, eight rows at a time
constexpr int64_t kMostParts = 256;          // of the rows; each has a partial sum of dbias

// Blocks (column groups, parts); a thread has V columns, 16 bytes where they are aligned. Part p has rows from
// M·p / parts on.
template <class T, int V> __global__ void __launch_bounds__(kLanes* kRowThreads)
    linear_pre_gradient_kernel(T* dpre,       // (M, N) or null
                               float* sums,   // (parts, N) or null
                               const T* dy,   // (M, N)
                               const T* pre,  // (M, N) or null: dpre is dy
                               int64_t M, int64_t N, bool exact_gelu) {
  DYN_SMEM(smem);
  float* const shared = reinterpret_cast<float*>(smem);  // (row threads, V, lanes)
  const int x = static_cast<int>(threadIdx.x) * V, y = static_cast<int>(threadIdx.y);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * (kLanes * V) + x;
  const int64_t first = M * blockIdx.y / gridDim.y, end = M * (blockIdx.y + 1) / gridDim.y;
  float sum[V] = {};
  if (column < N)
    for (int64_t r = first + y; r < end; r += kRowThreads) {
      float g[V];
      load_values(g, dy + r * N + column);
      if (pre) {
        float before[V];
        load_values(before, pre + r * N + column);
#pragma unroll
        for (int i = 0; i < V; ++i)
          g[i] = static_cast<float>(static_cast<T>(g[i] * gelu_gradient(before[i], exact_gelu)));
        store_values(dpre + r * N + column, g);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += g[i];
    }
  if (!sums) return;
#pragma unroll
  for (int i = 0; i < V; ++i) shared[(y * V + i) * kLanes + static_cast<int>(threadIdx.x)] = sum[i];
  __syncthreads();
  if (y != 0 || column >= N) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    float total = 0;
#pragma unroll
    for (int r = 0; r < kRowThreads; ++r)
      total += shared[(r * V + i) * kLanes + static_cast<int>(threadIdx.x)];
    sums[blockIdx.y * N + column + i] = total;
  }
}

__global__ void __launch_bounds__(256) linear_bias_gradient_kernel(float* dbias,       // (N)
                                                                   const float* sums,  // (parts, N)
                                                                   int64_t N, int64_t parts) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (column >= N) return;
  float total = 0;
  for (int64_t p = 0; p < parts; ++p) total += sums[p * N + column];
  dbias[column] += total;
}

}  // namespace

void linear_forward(Stream& s, Tensor y, Tensor pre, Tensor x, Tensor weight, Tensor bias,
                    int64_t M, int64_t N, int64_t K, bool exact_gelu) {
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    GemmDesc d{M,
               N,
               K,
               x.dtype,
               {x.as<const T>(M * K), K},
               {weight.as<const T>(N * K), K, true},
               y.as<T>(M * N),
               x.dtype,
               N};
    d.bias = bias.as_or_null<const float>(N);
    d.pre = pre.as_or_null<T>(M * N);
    d.exact_gelu = exact_gelu;
    gemm(s, d);
  });
}

void linear_backward(Stream& s, Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor pre,
                     Tensor x, Tensor x_pre, Tensor weight, int64_t M, int64_t N, int64_t K,
                     bool exact_gelu) {
  if (M == 0 || N == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* g = dy.as<const T>(M * N);
    const T* const p = pre.as_or_null<const T>(M * N);
    float* const db = dbias.as_or_null<float>(N);
    const int64_t parts = std::clamp<int64_t>(M / (4 * kRowThreads), 1, kMostParts);
    Scratch<T> dpre(s, p ? M * N : 0);
    Scratch<float> sums(s, db ? parts * N : 0);
    if (p || db)
      dispatch_packs<T>(N % Pack<T>::size == 0 && aligned_16(g, p), [&](auto V) {
        constexpr int kColumns = kLanes * V.value;
        launch(linear_pre_gradient_kernel<T, V.value>,
               dim3(static_cast<unsigned>(ceil_div<int64_t>(N, kColumns)),
                    static_cast<unsigned>(parts)),
               dim3(kLanes, kRowThreads), kColumns * kRowThreads * sizeof(float), s, dpre.data(),
               sums.data(), g, p, M, N, exact_gelu);
      });
    if (db)
      launch(linear_bias_gradient_kernel, static_cast<unsigned>(ceil_div<int64_t>(N, 256)), 256, 0,
             s, db, sums.data(), N, parts);
    if (p) g = dpre.data();
    if (dx) {
      GemmDesc d{M,        K, N, dy.dtype, {g, N}, {weight.as<const T>(N * K), K}, dx.as<T>(M * K),
                 dy.dtype, K};
      d.through_gelu = x_pre.as_or_null<const T>(M * K);
      d.exact_gelu = exact_gelu;
      gemm(s, d);
    }
    if (dweight)
      gemm(s, {N,
               K,
               M,
               dy.dtype,
               {g, N, true},
               {x.as<const T>(M * K), K},
               dweight.as<float>(N * K),
               DType::f32,
               K,
               true});
  });
}

}  // namespace siglip2::cuda
