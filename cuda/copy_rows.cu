// Copies of rows (native/ops/copy_rows.h). Bound by memory: a thread moves one element, neighbours in a row are
// neighbours in a warp. An index outside its tensor copies nothing.
#include "../native/ops/copy_rows.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

template <class T> __global__ void __launch_bounds__(kThreads)
    copy_rows_kernel(T* y,             // (Y, C)
                     const T* x,       // (X, C)
                     const int* to,    // (n)
                     const int* from,  // (n)
                     int64_t n, int64_t Y, int64_t X, int64_t C) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n * C) return;
  const int64_t target = to[i / C], source = from[i / C], c = i % C;
  if (target >= 0 && target < Y && source >= 0 && source < X) y[target * C + c] = x[source * C + c];
}

}  // namespace

void copy_rows_forward(Stream& s, Tensor y, Tensor x, Tensor to, Tensor from, int64_t n, int64_t Y,
                       int64_t X, int64_t C) {
  if (n * C == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    launch(copy_rows_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(n * C, kThreads)), kThreads,
           0, s, y.as<T>(Y * C), static_cast<const T*>(x.as<T>(X * C)),
           static_cast<const int*>(to.as<int>(n)), static_cast<const int*>(from.as<int>(n)), n, Y,
           X, C);
  });
}

}  // namespace siglip2::cuda
