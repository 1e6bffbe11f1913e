// CPU resizing (resize_bilinear.h): one axis after the other, one image a thread. Bound by the filter's taps.
#include "resize_bilinear.h"
#include "../cpu/resize.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

// to (n, out, inner) = weights · from (n, in, inner), or its transpose: from (n, out, inner), to (n, in, inner).
void filter(float* to, const float* from, const ResizeAxis& axis, int64_t n, int64_t in,
            int64_t out, int64_t inner, bool transposed) {
  if (transposed) std::fill(to, to + n * in * inner, 0.0f);
  for (int64_t b = 0; b < n; ++b)
    for (int64_t i = 0; i < out; ++i) {
      const auto first = axis.first[static_cast<size_t>(i)],
                 count = axis.count[static_cast<size_t>(i)];
      if (!transposed) std::fill(to + (b * out + i) * inner, to + (b * out + i + 1) * inner, 0.0f);
      for (int64_t j = 0; j < count; ++j) {
        const auto w = static_cast<float>(axis.weight[static_cast<size_t>(i * axis.taps + j)]);
        const int64_t wide = (b * out + i) * inner, narrow = (b * in + first + j) * inner;
        float* target = to + (transposed ? narrow : wide);
        const float* source = from + (transposed ? wide : narrow);
        for (int64_t c = 0; c < inner; ++c) target[c] += w * source[c];
      }
    }
}

}  // namespace

void resize_bilinear_forward(Stream& s, Tensor y, Tensor x, int64_t B, int64_t H, int64_t W,
                             int64_t C, int64_t OH, int64_t OW) {
  if (x.dtype == DType::u8) {
    auto* out = y.as<uint8_t>(B * OH * OW * C);
    const auto* in = x.as<const uint8_t>(B * H * W * C);
    parallel_items(B, [&](int64_t b) {
      resize_u8(in + b * H * W * C, H, W, C, out + b * OH * OW * C, OH, OW);
    });
    return;
  }
  auto* out = y.as<float>(B * OH * OW * C);
  const auto* in = x.as<const float>(B * H * W * C);
  const ResizeAxis rows(H, OH), columns(W, OW);
  Scratch<float> middle(s, B * H * OW * C);
  parallel_items(B, [&](int64_t b) {
    float* m = middle.data() + b * H * OW * C;
    filter(m, in + b * H * W * C, columns, H, W, OW, C, false);
    filter(out + b * OH * OW * C, m, rows, 1, H, OH, OW * C, false);
  });
}

void resize_bilinear_backward(Stream& s, Tensor dx, Tensor dy, int64_t B, int64_t H, int64_t W,
                              int64_t C, int64_t OH, int64_t OW) {
  auto* out = dx.as<float>(B * H * W * C);
  const auto* in = dy.as<const float>(B * OH * OW * C);
  const ResizeAxis rows(H, OH), columns(W, OW);
  Scratch<float> middle(s, B * H * OW * C);
  parallel_items(B, [&](int64_t b) {
    float* m = middle.data() + b * H * OW * C;
    filter(m, in + b * OH * OW * C, rows, 1, H, OH, OW * C, true);
    filter(out + b * H * W * C, m, columns, H, W, OW, C, true);
  });
}

}  // namespace siglip2::cpu::ISA

OP(resize_bilinear_forward);
OP(resize_bilinear_backward);
