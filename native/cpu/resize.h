// Resizing of one image in memory, in the calling thread. Everything here is local to the file that includes it: the
// same code is compiled for several instruction sets, and the linker must not choose between the copies.
//
// resize_u8 does what Pillow does: antialiased separable filter, horizontal pass first, the intermediate rounded to
// uint8, weights in 22-bit fixed point. Bit-identical to PIL.Image.resize on uint8, for BILINEAR and BICUBIC.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>
#include "resize_axis.h"
#if defined(__AVX2__)
#include <immintrin.h>
#include "resize_vnni.h"
#endif

namespace siglip2 {
namespace {

inline uint8_t clip_fixed(int32_t v) { return static_cast<uint8_t>(std::clamp(v >> 22, 0, 255)); }

// One row of C-channel pixels, W → OW, any C.
inline void resize_row(const uint8_t* row, int64_t C, uint8_t* out, int64_t OW,
                       const ResizeAxis& axis, const int32_t* k) {
  for (int64_t x = 0; x < OW; ++x) {
    const uint8_t* from = row + axis.first[static_cast<size_t>(x)] * C;
    const int64_t n = axis.count[static_cast<size_t>(x)];
    for (int64_t c = 0; c < C; ++c) {
      int32_t sum = 1 << 21;
      for (int64_t j = 0; j < n; ++j) sum += from[j * C + c] * k[x * axis.taps + j];
      out[x * C + c] = clip_fixed(sum);
    }
  }
}

#if defined(__AVX2__)
// Rows of RGB or RGBA pixels by 16-bit multiply-add. A 22-bit weight is 256·hi + lo, and pixel·hi + pixel'·hi' of two
// neighbours is one instruction; hi and lo sums stay within 32 bits, so the result is the exact integer that PIL
// computes. Four taps go at a time: the low half of a register holds the first two pixels as (r r', g g', b b', a a' or
// nothing), the high half the others.
template <int C> class PixelRows {
 public:
  PixelRows(const ResizeAxis& axis, const int32_t* k, int64_t OW) : axis_(axis), OW_(OW) {
    for (int64_t n : axis.count) groups_ = std::max(groups_, (n + 3) / 4);
    weights_.assign(static_cast<size_t>(OW * groups_ * 32), 0);
    for (int64_t x = 0; x < OW; ++x)
      for (int64_t j = 0; j < axis.count[static_cast<size_t>(x)]; ++j) {
        const int32_t w = k[x * axis.taps + j];
        int16_t* to = weights_.data() + (x * groups_ + j / 4) * 32 + j % 4 / 2 * 8 + j % 2;
        for (int c = 0; c < 4; ++c) {
          to[2 * c] = static_cast<int16_t>(w >> 8);
          to[16 + 2 * c] = static_cast<int16_t>(w & 255);
        }
      }
  }
  // Bytes that run() may read after the end of a row. It may write one after the end of its result.
  int64_t overrun() const { return 4 * C * groups_ + 16; }

  void run(const uint8_t* row, uint8_t* out) const {
    const __m256i pairs =
        C == 3 ? _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1,
                                  9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1)
               : _mm256_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, 8, -1, 12,
                                  -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1);
    // Locals, for the compiler must assume that writing `out` changes members.
    const int64_t *first = axis_.first.data(), OW = OW_, groups = groups_;
    const int16_t* w = weights_.data();
    for (int64_t x = 0; x < OW; ++x) {
      const uint8_t* from = row + C * first[x];
      __m256i hi = _mm256_setzero_si256(), lo = hi;
      for (int64_t g = 0; g < groups; ++g, from += 4 * C, w += 32) {
        const __m256i p = _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
            pairs);
        hi = _mm256_add_epi32(
            hi, _mm256_madd_epi16(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))));
        lo = _mm256_add_epi32(
            lo, _mm256_madd_epi16(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 16))));
      }
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(hi, 8), lo);
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << 21)), 22);
      sum = _mm_packs_epi32(sum, sum);
      const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
      std::memcpy(out + C * x, &pixel, 4);
    }
  }

 private:
  const ResizeAxis& axis_;
  int64_t OW_, groups_ = 1;
  std::vector<int16_t> weights_;  // (OW, groups, hi and lo, 16)
};
#endif

// The horizontal pass, row by row: (H, W, C) → (H, OW, C).
class ColumnFilter {
 public:
  static constexpr int64_t kSlack = 16;  // bytes that may be written after the end of a result

  ColumnFilter(const uint8_t* in, int64_t H, int64_t W, int64_t C, int64_t OW, Filter filter)
      : in_(in), H_(H), W_(W), C_(C), OW_(OW), axis_(W, OW, filter), k_(axis_.fixed_point()) {
#if defined(__AVX2__)
    if (C == 3 && has_vnni()) vnni_.emplace(axis_, k_.data(), OW);
    else if (C == 3) rgb_.emplace(axis_, k_.data(), OW);
    else if (C == 4) rgba_.emplace(axis_, k_.data(), OW);
#endif
  }
  void run(int64_t y, uint8_t* out) const {
    const uint8_t* row = in_ + y * W_ * C_;
#if defined(__AVX2__)
    const int64_t after = (H_ - 1 - y) * W_ * C_;  // bytes that may be read too far
    if (vnni_ && after >= vnni_->overrun()) return vnni_->run(row, out);
    if (rgb_ && after >= rgb_->overrun()) return rgb_->run(row, out);
    if (rgba_ && after >= rgba_->overrun()) return rgba_->run(row, out);
#endif
    resize_row(row, C_, out, OW_, axis_, k_.data());
  }

 private:
  const uint8_t* in_;
  int64_t H_, W_, C_, OW_;
  ResizeAxis axis_;
  std::vector<int32_t> k_;
#if defined(__AVX2__)
  std::optional<VnniRgbRows> vnni_;
  std::optional<PixelRows<3>> rgb_;
  std::optional<PixelRows<4>> rgba_;
#endif
};

// One row of the vertical pass: the sum of n rows of `line` bytes with their weights.
inline void combine_rows(const uint8_t* const* rows, int64_t n, const int32_t* k, int64_t line,
                         uint8_t* out) {
  int64_t x = 0;
#if defined(__AVX2__)
  for (; x + 32 <= line; x += 32) {
    __m256i sums[4];
    for (__m256i& s : sums) s = _mm256_set1_epi32(1 << 21);
    for (int64_t j = 0; j < n; ++j)
      for (int q = 0; q < 4; ++q) {
        const __m128i bytes =
            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[j] + x + 8 * q));
        sums[q] = _mm256_add_epi32(
            sums[q], _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(k[j])));
      }
    for (__m256i& s : sums) s = _mm256_srai_epi32(s, 22);
    // Packing works within 128 bits; the permutation puts the groups of four back in their order.
    const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                               _mm256_packs_epi32(sums[2], sums[3]));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(out + x),
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  }
#endif
  for (; x < line; ++x) {
    int32_t sum = 1 << 21;
    for (int64_t j = 0; j < n; ++j) sum += rows[j][x] * k[j];
    out[x] = clip_fixed(sum);
  }
}

// in (H, W, C) → out (OH, OW, C). An axis whose size does not change is not filtered. Rows of the horizontal pass are
// made when the vertical one comes to them and are kept as long as it needs them, in the nearest cache.
inline void resize_u8(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OH,
                      int64_t OW, Filter filter = Filter::bilinear) {
  const ColumnFilter columns(in, H, W, C, OW, filter);
  const ResizeAxis axis(H, OH, filter);
  const auto k = axis.fixed_point();
  const int64_t line = OW * C, most = *std::max_element(axis.count.begin(), axis.count.end());
  std::vector<uint8_t> kept(
      static_cast<size_t>(OW == W ? 0 : most * (line + ColumnFilter::kSlack)));
  std::vector<const uint8_t*> rows(static_cast<size_t>(most));
  int64_t made = 0;  // rows of the horizontal pass
  for (int64_t y = 0; y < OH; ++y) {
    // With OH = H the filter is 1 at the row itself and 0 around it.
    const int64_t first = OH == H ? y : axis.first[static_cast<size_t>(y)];
    const int64_t n = OH == H ? 1 : axis.count[static_cast<size_t>(y)];
    const auto place = [&](int64_t row) {
      return kept.data() + row % most * (line + ColumnFilter::kSlack);
    };
    for (made = std::max(made, first); OW != W && made < first + n; ++made)
      columns.run(made, place(made));
    for (int64_t j = 0; j < n; ++j)
      rows[static_cast<size_t>(j)] = OW == W ? in + (first + j) * line : place(first + j);
    if (OH == H) std::copy_n(rows[0], line, out + y * line);
    else combine_rows(rows.data(), n, k.data() + y * axis.taps, line, out + y * line);
  }
}

// The same bilinear filter in f32 without rounding in between: uint8 (H, W, C) → f32 (OH, OW, C) in [0, 255].
inline void resize_f32(const uint8_t* in, int64_t H, int64_t W, int64_t C, float* out, int64_t OH,
                       int64_t OW) {
  const ResizeAxis columns(W, OW), rows(H, OH);
  const int64_t line = OW * C;
  std::vector<float> middle(static_cast<size_t>(H * line), 0.0f);
  for (int64_t y = 0; y < H; ++y)
    for (int64_t x = 0; x < OW; ++x) {
      const uint8_t* from = in + (y * W + columns.first[static_cast<size_t>(x)]) * C;
      float* to = middle.data() + y * line + x * C;
      for (int64_t j = 0; j < columns.count[static_cast<size_t>(x)]; ++j) {
        const auto w =
            static_cast<float>(columns.weight[static_cast<size_t>(x * columns.taps + j)]);
        for (int64_t c = 0; c < C; ++c) to[c] += w * from[j * C + c];
      }
    }
  std::fill_n(out, OH * line, 0.0f);
  for (int64_t y = 0; y < OH; ++y)
    for (int64_t j = 0; j < rows.count[static_cast<size_t>(y)]; ++j) {
      const auto w = static_cast<float>(rows.weight[static_cast<size_t>(y * rows.taps + j)]);
      const float* from = middle.data() + (rows.first[static_cast<size_t>(y)] + j) * line;
      for (int64_t i = 0; i < line; ++i) out[y * line + i] += w * from[i];
    }
}

// What tf.image.resize does without antialiasing on uint8, cast back: two-point interpolation between pixel centres in
// f32, then truncation. (H, W, C) → (OH, OW, C).
inline void resize_two_point(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out,
                             int64_t OH, int64_t OW) {
  struct Point {
    int64_t lower, upper;
    float fraction;
  };
  const auto points = [](int64_t from, int64_t to) {
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    std::vector<Point> p(static_cast<size_t>(to));
    for (int64_t i = 0; i < to; ++i) {
      const float at = (static_cast<float>(i) + 0.5f) * scale - 0.5f, floor = std::floor(at);
      p[static_cast<size_t>(i)] = {std::max<int64_t>(0, static_cast<int64_t>(floor)),
                                   std::min<int64_t>(from - 1, static_cast<int64_t>(std::ceil(at))),
                                   at - floor};
    }
    return p;
  };
  const auto xs = points(W, OW), ys = points(H, OH);
  for (int64_t y = 0; y < OH; ++y) {
    const auto& py = ys[static_cast<size_t>(y)];
    const uint8_t *top = in + py.lower * W * C, *bottom = in + py.upper * W * C;
    for (int64_t x = 0; x < OW; ++x) {
      const auto& px = xs[static_cast<size_t>(x)];
      for (int64_t c = 0; c < C; ++c) {
        const float tl = top[px.lower * C + c], tr = top[px.upper * C + c],
                    bl = bottom[px.lower * C + c], br = bottom[px.upper * C + c];
        const float t = tl + (tr - tl) * px.fraction, b = bl + (br - bl) * px.fraction;
        out[(y * OW + x) * C + c] =
            static_cast<uint8_t>(std::clamp(t + (b - t) * py.fraction, 0.0f, 255.0f));
      }
    }
  }
}

}  // namespace
}  // namespace siglip2
