// One token of every sequence (select_token.h). Copies; bound by memory.
#include "select_token.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

void select_token_forward(Stream&, Tensor y, Tensor x, int64_t B, int64_t T, int64_t C,
                          int64_t index) {
  dispatch_float(x.dtype, [&](auto t) {
    using E = decltype(t);
    E* out = y.as<E>(B * C);
    const E* in = x.as<const E>(B * T * C);
    for (int64_t b = 0; b < B; ++b) std::copy_n(in + (b * T + index) * C, C, out + b * C);
  });
}

void select_token_backward(Stream&, Tensor dx, Tensor dy, int64_t B, int64_t T, int64_t C,
                           int64_t index) {
  dispatch_float(dy.dtype, [&](auto t) {
    using E = decltype(t);
    E* out = dx.as<E>(B * T * C);
    const E* g = dy.as<const E>(B * C);
    parallel_ranges(B, 1 + 65536 / (T * C), [&](int64_t b0, int64_t b1) {
      std::fill(out + b0 * T * C, out + b1 * T * C, E(0.0f));
      for (int64_t b = b0; b < b1; ++b) std::copy_n(g + b * C, C, out + (b * T + index) * C);
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(select_token_forward);
OP(select_token_backward);
