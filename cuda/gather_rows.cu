// Row gathering (native/ops/gather_rows.h). Copies; bound by memory; one block for each row of the
// result. Backward searches the ascending indices for its row, so nothing is added up and no order
// has to be kept. An index outside the matrix is no address: its row becomes NaN, which the loss
// then shows.
#include "../native/ops/gather_rows.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

template <class T> __global__ void __launch_bounds__(kThreads)
    gather_rows_forward_kernel(T* y,                  // (M, D)
                               const T* x,            // (R, D)
                               const int32_t* index,  // (M)
                               int64_t R, int64_t D) {
  const int64_t m = blockIdx.x, from = index[m];
  const bool inside = from >= 0 && from < R;
  for (int64_t d = threadIdx.x; d < D; d += kThreads)
    y[m * D + d] = inside ? x[from * D + d] : static_cast<T>(__int_as_float(0x7fffffff));
}

template <class T> __global__ void __launch_bounds__(kThreads)
    gather_rows_backward_kernel(T* dx,                 // (R, D)
                                const T* dy,           // (M, D)
                                const int32_t* index,  // (M)
                                int64_t M, int64_t D) {
  const int64_t r = blockIdx.x;
  int64_t low = 0, high = M;  // the first index that is not below r
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (index[middle] < r) low = middle + 1;
    else high = middle;
  }
  const bool chosen = low < M && index[low] == r;
  for (int64_t d = threadIdx.x; d < D; d += kThreads)
    dx[r * D + d] = chosen ? dy[low * D + d] : static_cast<T>(0.0f);
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void gather_rows_forward(Stream& s, Tensor y, Tensor x, Tensor index, int64_t M, int64_t R,
                         int64_t D) {
  if (M * D == 0) return;
  dispatch_element(x.dtype, [&](auto type) {
    using E = decltype(type);
    launch(gather_rows_forward_kernel<E>, static_cast<unsigned>(M), kThreads, 0, s, y.as<E>(M * D),
           x.as<const E>(R * D), index.as<const int32_t>(M), R, D);
  });
}

void gather_rows_backward(Stream& s, Tensor dx, Tensor dy, Tensor index, int64_t M, int64_t R,
                          int64_t D) {
  if (R * D == 0) return;
  dispatch_element(dy.dtype, [&](auto type) {
    using E = decltype(type);
    launch(gather_rows_backward_kernel<E>, static_cast<unsigned>(R), kThreads, 0, s,
           dx.as<E>(R * D), dy.as<const E>(M * D), index.as<const int32_t>(M), M, D);
  });
}

}  // namespace siglip2::cuda
