// Rows of unit length (native/ops/l2_normalize.h). Bound by memory: one warp takes a row and passes over it twice, the
// second time from cache.
#include "../native/ops/l2_normalize.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kWarps = 8;

template <class T, int V> __global__ void __launch_bounds__(kWarps* kWarp)
    l2_normalize_forward_kernel(T* y,         // (R, C)
                                float* norm,  // (R)
                                const T* x,   // (R, C)
                                int64_t R, int64_t C, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= R) return;  // whole warps, and no barrier follows
  const int64_t first = static_cast<int64_t>(threadIdx.x % kWarp) * V;
  const T* const from = x + row * C;
  float v[V], square = 0;
  for (int64_t c = first; c < C; c += kWarp * V) {
    load_values(v, from + c);
#pragma unroll
    for (int i = 0; i < V; ++i) square += v[i] * v[i];
  }
  const float length = sqrtf(warp_sum(square)), scale = 1.0f / (length + eps);
  for (int64_t c = first; c < C; c += kWarp * V) {
    load_values(v, from + c);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] *= scale;
    store_values(y + row * C + c, v);
  }
  if (threadIdx.x % kWarp == 0) norm[row] = length;
}

template <class T, int V> __global__ void __launch_bounds__(kWarps* kWarp)
    l2_normalize_backward_kernel(T* dx,              // (R, C)
                                 const T* dy,        // (R, C)
                                 const T* x,         // (R, C)
                                 const float* norm,  // (R)
                                 int64_t R, int64_t C, float eps) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= R) return;
  const int64_t first = static_cast<int64_t>(threadIdx.x % kWarp) * V, at = row * C;
  float v[V], g[V], product = 0;
  for (int64_t c = first; c < C; c += kWarp * V) {
    load_values(v, x + at + c);
    load_values(g, dy + at + c);
#pragma unroll
    for (int i = 0; i < V; ++i) product += v[i] * g[i];
  }
  const float length = norm[row], scale = 1.0f / (length + eps), dot = warp_sum(product);
  const float along = length > 0 ? dot * scale / length : 0.0f;  // a zero row has no direction
  for (int64_t c = first; c < C; c += kWarp * V) {
    load_values(v, x + at + c);
    load_values(g, dy + at + c);
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = (g[i] - v[i] * along) * scale;
    store_values(dx + at + c, g);
  }
}

}  // namespace

void l2_normalize_forward(Stream& s, Tensor y, Tensor norm, Tensor x, int64_t R, int64_t C,
                          float eps) {
  if (R == 0 || C == 0) return;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(R, kWarps));
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* const to = y.as<T>(R * C);
    const T* const from = x.as<const T>(R * C);
    dispatch_packs<T>(C % Pack<T>::size == 0 && aligned_16(to, from), [&](auto V) {
      launch(l2_normalize_forward_kernel<T, V.value>, blocks, kWarps * kWarp, 0, s, to,
             norm.as<float>(R), from, R, C, eps);
    });
  });
}

void l2_normalize_backward(Stream& s, Tensor dx, Tensor dy, Tensor x, Tensor norm, int64_t R,
                           int64_t C, float eps) {
  if (R == 0 || C == 0) return;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(R, kWarps));
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* const to = dx.as<T>(R * C);
    const T *const g = dy.as<const T>(R * C), *const from = x.as<const T>(R * C);
    dispatch_packs<T>(C % Pack<T>::size == 0 && aligned_16(to, g, from), [&](auto V) {
      launch(l2_normalize_backward_kernel<T, V.value>, blocks, kWarps * kWarp, 0, s, to, g, from,
             norm.as<const float>(R), R, C, eps);
    });
  });
}

}  // namespace siglip2::cuda
