// CPU embedding of packed patches (patch_embed_packed.h). Bound by oneDNN's product; so many patches are widened to
// floats at a time that they stay within a few MiB.
#include "patch_embed_packed.h"
#include <algorithm>
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kWidenedBytes = 8 << 20;
constexpr int64_t kBlocks = 32;  // partial sums of dbias; independent of the number of threads

int64_t rows_at_once(int64_t T, int64_t K, int64_t element) {
  return std::clamp<int64_t>(kWidenedBytes / (K * element), 1, T);
}

template <class T> void widen(T* rows, const uint8_t* patches, int64_t n, int64_t K) {
  parallel_ranges(n * K, 16384, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i)
      rows[i] = (static_cast<float>(patches[i]) - 127.5f) * (1.0f / 127.5f);
  });
}

}  // namespace

void patch_embed_packed_forward(Stream& stream, Tensor y, Tensor patches, Tensor weight,
                                Tensor bias, Tensor position, int64_t T, int64_t K, int64_t D) {
  const auto* bytes = patches.as<const uint8_t>(T * K);
  const auto *b = bias.as<const float>(D), *pos = position.as<const float>(T * D);
  if (T == 0) return;
  dispatch_float(y.dtype, [&](auto t) {
    using E = decltype(t);
    E* out = y.as<E>(T * D);
    const E* w = weight.as<const E>(D * K);
    const int64_t most = rows_at_once(T, K, sizeof(E));
    Scratch<E> rows(stream, most * K);
    if (stream.is_dry()) return;
    for (int64_t first = 0; first < T; first += most) {
      const int64_t n = std::min(most, T - first);
      E* part = out + first * D;
      widen(rows.data(), bytes + first * K, n, K);
      matmul(stream, n, D, K, 1.0f, {rows.data(), y.dtype, K}, {w, y.dtype, K, true}, 0.0f, part,
             y.dtype, D);
      parallel_ranges(n, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          const float* p = pos + (first + r) * D;
          for (int64_t d = 0; d < D; ++d)
            part[r * D + d] = static_cast<float>(part[r * D + d]) + b[d] + p[d];
        }
      });
    }
  });
}

void patch_embed_packed_backward(Stream& stream, Tensor dweight, Tensor dbias, Tensor dy,
                                 Tensor patches, int64_t T, int64_t K, int64_t D) {
  const auto* bytes = patches.as<const uint8_t>(T * K);
  if (T == 0) return;
  dispatch_float(dy.dtype, [&](auto t) {
    using E = decltype(t);
    const E* g = dy.as<const E>(T * D);
    if (float* sum = dbias.as_or_null<float>(D); sum && !stream.is_dry()) {
      Scratch<float> partial(stream, kBlocks * D);
      parallel_ranges(kBlocks, 1, [&](int64_t b0, int64_t b1) {
        for (int64_t b = b0; b < b1; ++b) {
          float* p = partial.data() + b * D;
          std::fill(p, p + D, 0.0f);
          for (int64_t r = T * b / kBlocks; r < T * (b + 1) / kBlocks; ++r)
            for (int64_t d = 0; d < D; ++d) p[d] += static_cast<float>(g[r * D + d]);
        }
      });
      for (int64_t b = 0; b < kBlocks; ++b)
        for (int64_t d = 0; d < D; ++d) sum[d] += partial.data()[b * D + d];
    }
    float* dw = dweight.as_or_null<float>(D * K);
    if (!dw) return;
    const int64_t most = rows_at_once(T, K, sizeof(E));
    Scratch<E> rows(stream, most * K);
    if (stream.is_dry()) return;
    for (int64_t first = 0; first < T; first += most) {
      const int64_t n = std::min(most, T - first);
      widen(rows.data(), bytes + first * K, n, K);
      matmul(stream, D, K, n, 1.0f, {g + first * D, dy.dtype, D, true}, {rows.data(), dy.dtype, K},
             1.0f, dw, DType::f32, K);
    }
  });
}

}  // namespace siglip2::cpu::ISA

OP_SIZED(patch_embed_packed_forward);
OP_SIZED(patch_embed_packed_backward);
