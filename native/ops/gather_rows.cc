// CPU row gathering (gather_rows.h). Copies; bound by memory.
#include "gather_rows.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

// Before any memory is touched: an index must not become a foreign address, and two rows must not share one.
void check_index(const int32_t* index, int64_t M, int64_t R) {
  for (int64_t m = 0; m < M; ++m)
    if (index[m] < 0 || index[m] >= R || (m > 0 && index[m] <= index[m - 1]))
      throw std::out_of_range("row index " + std::to_string(index[m]) + " at position " +
                              std::to_string(m) + " is outside the " + std::to_string(R) +
                              " rows or not above the one before it");
}

}  // namespace

void gather_rows_forward(Stream&, Tensor y, Tensor x, Tensor index, int64_t M, int64_t R,
                         int64_t D) {
  const auto* from = index.as<const int32_t>(M);
  check_index(from, M, R);
  dispatch_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    T* out = y.as<T>(M * D);
    const T* in = x.as<const T>(R * D);
    parallel_ranges(M, 1 + 16384 / D, [&](int64_t m0, int64_t m1) {
      for (int64_t m = m0; m < m1; ++m) std::copy_n(in + from[m] * D, D, out + m * D);
    });
  });
}

void gather_rows_backward(Stream&, Tensor dx, Tensor dy, Tensor index, int64_t M, int64_t R,
                          int64_t D) {
  const auto* from = index.as<const int32_t>(M);
  check_index(from, M, R);
  dispatch_float(dy.dtype, [&](auto type) {
    using T = decltype(type);
    T* out = dx.as<T>(R * D);
    const T* g = dy.as<const T>(M * D);
    parallel_ranges(R, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
      std::fill(out + r0 * D, out + r1 * D, T(0.0f));
      for (const auto* i = std::lower_bound(from, from + M, r0); i < from + M && *i < r1; ++i)
        std::copy_n(g + (i - from) * D, D, out + *i * D);
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(gather_rows_forward);
OP(gather_rows_backward);
