// CPU copy of rows (copy_rows.h). Bound by memory.
#include "copy_rows.h"
#include <algorithm>
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

void copy_rows_forward(Stream&, Tensor y, Tensor x, Tensor to, Tensor from, int64_t n, int64_t Y,
                       int64_t X, int64_t C) {
  const auto *target = to.as<const int32_t>(n), *source = from.as<const int32_t>(n);
  for (int64_t i = 0; i < n; ++i)
    if (target[i] < 0 || target[i] >= Y || source[i] < 0 || source[i] >= X)
      throw std::out_of_range("copy " + std::to_string(i) + " is from row " +
                              std::to_string(source[i]) + " of " + std::to_string(X) + " to row " +
                              std::to_string(target[i]) + " of " + std::to_string(Y));
  dispatch_float(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(Y * C);
    const T* in = x.as<const T>(X * C);
    parallel_ranges(n, 1 + 32768 / std::max<int64_t>(1, C), [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i) std::copy_n(in + source[i] * C, C, out + target[i] * C);
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(copy_rows_forward);
