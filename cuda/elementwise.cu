// Sums and scaled copies, element by element (native/ops/elementwise.h). Bound by memory: a grid that fills the GPU
// strides over the elements, 16 bytes a thread and step where every pointer is aligned, one element otherwise.
#include "../native/ops/elementwise.h"
#include <algorithm>
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMostBlocks = 132 * 8;  // enough to fill any GPU of today; more would only queue

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div<int64_t>(items, kThreads), 1, kMostBlocks));
}

template <class T> __global__ void __launch_bounds__(kThreads) add_kernel(T* y,        // (N)
                                                                          const T* a,  // (N)
                                                                          const T* b,  // (N)
                                                                          int64_t N, bool packs) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t packed = packs ? N / Pack<T>::size : 0;
  for (int64_t i = first; i < packed; i += stride) {
    float va[Pack<T>::size], vb[Pack<T>::size];
    Pack<T>::load(a + i * Pack<T>::size).unpack(va);
    Pack<T>::load(b + i * Pack<T>::size).unpack(vb);
#pragma unroll
    for (int k = 0; k < Pack<T>::size; ++k) va[k] += vb[k];
    Pack<T>::from(va).store(y + i * Pack<T>::size);
  }
  for (int64_t i = packed * Pack<T>::size + first; i < N; i += stride)
    y[i] = static_cast<T>(static_cast<float>(a[i]) + static_cast<float>(b[i]));
}

template <class Y, class X> __global__ void __launch_bounds__(kThreads)
    scale_kernel(Y* y,        // (N)
                 const X* x,  // (N)
                 int64_t N, float scale) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < N; i += stride)
    y[i] = static_cast<Y>(static_cast<float>(x[i]) * scale);
}

}  // namespace

void add_forward(Stream& s, Tensor y, Tensor a, Tensor b, int64_t N) {
  if (N == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(N);
    const T *pa = a.as<const T>(N), *pb = b.as<const T>(N);
    const bool packs = aligned_16(out, pa, pb);
    launch(add_kernel<T>, blocks_for(packs ? ceil_div<int64_t>(N, Pack<T>::size) : N), kThreads, 0,
           s, out, pa, pb, N, packs);
  });
}

void scale_cast(Stream& s, Tensor y, Tensor x, int64_t N, float scale) {
  if (N == 0) return;
  dispatch_element(y.dtype, [&](auto ty) {
    dispatch_element(x.dtype, [&](auto tx) {
      using Y = decltype(ty);
      using X = decltype(tx);
      launch(scale_kernel<Y, X>, blocks_for(N), kThreads, 0, s, y.as<Y>(N), x.as<const X>(N), N,
             scale);
    });
  });
}

}  // namespace siglip2::cuda
