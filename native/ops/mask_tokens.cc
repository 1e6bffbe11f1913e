// CPU mask tokens (mask_tokens.h). Copies; bound by memory. The gradient of the token is the sum over positions of what
// the positions get, in order, so it is the same for any number of threads.
#include "mask_tokens.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

void mask_tokens_forward(Stream&, Tensor y, Tensor x, Tensor token, Tensor position, Tensor mask,
                         int64_t B, int64_t N, int64_t D) {
  const auto* masked = mask.as<const uint8_t>(B * N);
  const auto *instead = token.as<const float>(D), *places = position.as<const float>(N * D);
  dispatch_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    T* out = y.as<T>(B * N * D);
    const T* in = x.as<const T>(B * N * D);
    parallel_ranges(B * N, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) {
        if (!masked[r]) {
          std::copy_n(in + r * D, D, out + r * D);
          continue;
        }
        const float* place = places + r % N * D;
        for (int64_t d = 0; d < D; ++d) out[r * D + d] = instead[d] + place[d];
      }
    });
  });
}

void mask_tokens_backward(Stream& s, Tensor dx, Tensor dtoken, Tensor dposition, Tensor dy,
                          Tensor mask, int64_t B, int64_t N, int64_t D) {
  const auto* masked = mask.as<const uint8_t>(B * N);
  float *to_token = dtoken.as_or_null<float>(D), *to_places = dposition.as_or_null<float>(N * D);
  Scratch<float> sums(s, to_token || to_places ? N * D : 0);
  dispatch_float(dy.dtype, [&](auto type) {
    using T = decltype(type);
    const T* g = dy.as<const T>(B * N * D);
    if (T* out = dx.as_or_null<T>(B * N * D))
      parallel_ranges(B * N, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          if (masked[r]) std::fill_n(out + r * D, D, T(0.0f));
          else std::copy_n(g + r * D, D, out + r * D);
        }
      });
    if (!sums.data()) return;
    parallel_ranges(N, 1, [&](int64_t n0, int64_t n1) {
      for (int64_t n = n0; n < n1; ++n) {
        float* sum = sums.data() + n * D;
        std::fill_n(sum, D, 0.0f);
        for (int64_t b = 0; b < B; ++b)
          if (masked[b * N + n])
            for (int64_t d = 0; d < D; ++d) sum[d] += static_cast<float>(g[(b * N + n) * D + d]);
        if (to_places)
          for (int64_t d = 0; d < D; ++d) to_places[n * D + d] += sum[d];
      }
    });
  });
  if (to_token)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t d = 0; d < D; ++d) to_token[d] += sums.data()[n * D + d];
}

}  // namespace siglip2::cpu::ISA

OP(mask_tokens_forward);
OP(mask_tokens_backward);
