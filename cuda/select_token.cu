// One token of every sequence, and its gradient (native/ops/select_token.h). Copies; bound by memory.
#include "../native/ops/select_token.h"
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

template <class T, int V> __global__ void __launch_bounds__(kThreads)
    select_token_forward_kernel(T* y,        // (B, C)
                                const T* x,  // (B, T, C)
                                int64_t B, int64_t tokens, int64_t C, int64_t index) {
  const int64_t row = C / V, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < B * row;
       i += stride) {
    float v[V];
    load_values(v, x + ((i / row * tokens + index) * row + i % row) * V);
    store_values(y + i * V, v);
  }
}

template <class T, int V> __global__ void __launch_bounds__(kThreads)
    select_token_backward_kernel(T* dx,        // (B, T, C)
                                 const T* dy,  // (B, C)
                                 int64_t B, int64_t tokens, int64_t C, int64_t index) {
  const int64_t row = C / V, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < B * tokens * row;
       i += stride) {
    const int64_t token = i / row;
    float v[V] = {};
    if (token % tokens == index) load_values(v, dy + (token / tokens * row + i % row) * V);
    store_values(dx + i * V, v);
  }
}

}  // namespace

void select_token_forward(Stream& s, Tensor y, Tensor x, int64_t B, int64_t T, int64_t C,
                          int64_t index) {
  if (B == 0 || C == 0) return;
  dispatch_element(x.dtype, [&](auto t) {
    using E = decltype(t);
    E* const to = y.as<E>(B * C);
    const E* const from = x.as<const E>(B * T * C);
    dispatch_packs<E>(C % Pack<E>::size == 0 && aligned_16(to, from), [&](auto V) {
      launch(select_token_forward_kernel<E, V.value>, blocks_for(B * C / V.value), kThreads, 0, s,
             to, from, B, T, C, index);
    });
  });
}

void select_token_backward(Stream& s, Tensor dx, Tensor dy, int64_t B, int64_t T, int64_t C,
                           int64_t index) {
  if (B == 0 || T == 0 || C == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using E = decltype(t);
    E* const to = dx.as<E>(B * T * C);
    const E* const g = dy.as<const E>(B * C);
    dispatch_packs<E>(C % Pack<E>::size == 0 && aligned_16(to, g), [&](auto V) {
      launch(select_token_backward_kernel<E, V.value>, blocks_for(B * T * C / V.value), kThreads, 0,
             s, to, g, B, T, C, index);
    });
  });
}

}  // namespace siglip2::cuda
