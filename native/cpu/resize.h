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
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace siglip2 {
namespace {

enum class Filter { bilinear, bicubic };

// Triangle of half-width 1, and Keys' cubic (a = -1/2) of half-width 2.
inline double filter_radius(Filter f) { return f == Filter::bilinear ? 1.0 : 2.0; }
inline double filter_weight(Filter f, double x) {
  const double d = x < 0 ? -x : x;
  if (f == Filter::bilinear) return std::max(0.0, 1.0 - d);
  constexpr double a = -0.5;
  if (d < 1.0) return ((a + 2.0) * d - (a + 3.0)) * d * d + 1;
  return d < 2.0 ? (((d - 5) * d + 8) * d - 4) * a : 0.0;
}

// The input positions and weights that make each output position of one axis.
struct ResizeAxis {
  int64_t taps = 0;             // room for weights per output position
  std::vector<int64_t> first, count;
  std::vector<double> weight;   // (out, taps)

  ResizeAxis(int64_t in, int64_t out, Filter filter = Filter::bilinear) {
    const double scale = static_cast<double>(in) / static_cast<double>(out), stretch = std::max(scale, 1.0);
    const double support = filter_radius(filter) * stretch;
    taps = static_cast<int64_t>(support) * 2 + 3;
    weight.assign(static_cast<size_t>(out * taps), 0.0);
    for (int64_t i = 0; i < out; ++i) {
      const double center = (static_cast<double>(i) + 0.5) * scale;
      const int64_t lo = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
      const int64_t hi = std::min<int64_t>(in, static_cast<int64_t>(center + support + 0.5));
      double sum = 0;
      for (int64_t j = lo; j < hi; ++j) {
        const double w = filter_weight(filter, (static_cast<double>(j) - center + 0.5) / stretch);
        weight[static_cast<size_t>(i * taps + j - lo)] = w;
        sum += w;
      }
      if (sum != 0)
        for (int64_t j = lo; j < hi; ++j) weight[static_cast<size_t>(i * taps + j - lo)] /= sum;
      first.push_back(lo);
      count.push_back(hi - lo);
    }
  }

  std::vector<int32_t> fixed_point() const {
    std::vector<int32_t> k(weight.size());
    for (size_t i = 0; i < k.size(); ++i) k[i] = static_cast<int32_t>(weight[i] * (1 << 22) + (weight[i] < 0 ? -0.5 : 0.5));
    return k;
  }
};

inline uint8_t clip_fixed(int32_t v) { return static_cast<uint8_t>(std::clamp(v >> 22, 0, 255)); }

// One row of C-channel pixels, W → OW, any C.
inline void resize_row(const uint8_t* row, int64_t C, uint8_t* out, int64_t OW, const ResizeAxis& axis, const int32_t* k) {
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
// Rows of RGB pixels by 16-bit multiply-add. A 22-bit weight is 256·hi + lo, and pixel·hi + pixel'·hi' of two neighbours
// is one instruction; hi and lo sums stay within 32 bits, so the result is the exact integer that PIL computes. Four taps
// go at a time: the low half of a register holds the first two pixels as (r r', g g', b b', –), the high half the others.
class RgbRows {
 public:
  RgbRows(const ResizeAxis& axis, const int32_t* k, int64_t OW) : axis_(axis), OW_(OW) {
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
  // Bytes that run() may read after the end of a row; it writes one byte after the end of its result.
  int64_t overrun() const { return 12 * groups_ + 16; }

  void run(const uint8_t* row, uint8_t* out) const {
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const int16_t* w = weights_.data();
    for (int64_t x = 0; x < OW_; ++x) {
      const uint8_t* from = row + 3 * axis_.first[static_cast<size_t>(x)];
      __m256i hi = _mm256_setzero_si256(), lo = hi;
      for (int64_t g = 0; g < groups_; ++g, from += 12, w += 32) {
        const __m256i p = _mm256_shuffle_epi8(
            _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))), pairs);
        hi = _mm256_add_epi32(hi, _mm256_madd_epi16(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))));
        lo = _mm256_add_epi32(lo, _mm256_madd_epi16(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 16))));
      }
      const __m256i both = _mm256_add_epi32(_mm256_slli_epi32(hi, 8), lo);
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << 21)), 22);
      sum = _mm_packs_epi32(sum, sum);
      const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
      std::memcpy(out + 3 * x, &pixel, 4);
    }
  }

 private:
  const ResizeAxis& axis_;
  int64_t OW_, groups_ = 1;
  std::vector<int16_t> weights_;  // (OW, groups, hi and lo, 16)
};
#endif

// Horizontal pass: in (H, W, C) → out (H, OW, C).
inline void resize_columns(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OW, Filter filter) {
  const ResizeAxis axis(W, OW, filter);
  const auto k = axis.fixed_point();
  int64_t y = 0;
#if defined(__AVX2__)
  if (C == 3) {
    const RgbRows rows(axis, k.data(), OW);
    for (; (y + 1) * W * 3 + rows.overrun() <= H * W * 3; ++y) rows.run(in + y * W * 3, out + y * OW * 3);
  }
#endif
  for (; y < H; ++y) resize_row(in + y * W * C, C, out + y * OW * C, OW, axis, k.data());
}

// in (H, W, C) → out (OH, OW, C). An axis whose size does not change is not filtered.
inline void resize_u8(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OH, int64_t OW,
                      Filter filter = Filter::bilinear) {
  // Kept by the thread: a fresh block of this size would be mapped and cleared by the system for every image.
  static thread_local std::vector<uint8_t> middle;
  const uint8_t* source = in;
  if (OW != W) {
    if (middle.size() < static_cast<size_t>(H * OW * C)) middle.resize(static_cast<size_t>(H * OW * C));
    resize_columns(in, H, W, C, middle.data(), OW, filter);
    source = middle.data();
  }
  if (OH == H) {
    std::copy_n(source, H * OW * C, out);
    return;
  }
  const ResizeAxis axis(H, OH, filter);
  const auto k = axis.fixed_point();
  const int64_t line = OW * C;
  constexpr int64_t kColumns = 32;  // their sums stay in registers
  for (int64_t y = 0; y < OH; ++y) {
    const uint8_t* rows = source + axis.first[static_cast<size_t>(y)] * line;
    const int64_t n = axis.count[static_cast<size_t>(y)];
    const int32_t* w = k.data() + y * axis.taps;
    int64_t i = 0;
    for (; i + kColumns <= line; i += kColumns) {
      int32_t sums[kColumns];
      for (int32_t& s : sums) s = 1 << 21;
      for (int64_t j = 0; j < n; ++j)
        for (int64_t l = 0; l < kColumns; ++l) sums[l] += rows[j * line + i + l] * w[j];
      for (int64_t l = 0; l < kColumns; ++l) out[y * line + i + l] = clip_fixed(sums[l]);
    }
    for (; i < line; ++i) {
      int32_t sum = 1 << 21;
      for (int64_t j = 0; j < n; ++j) sum += rows[j * line + i] * w[j];
      out[y * line + i] = clip_fixed(sum);
    }
  }
  // A huge image must not leave its size behind.
  if (middle.size() > (size_t{16} << 20)) std::vector<uint8_t>().swap(middle);
}

// The same bilinear filter in f32 without rounding in between: uint8 (H, W, C) → f32 (OH, OW, C) in [0, 255].
inline void resize_f32(const uint8_t* in, int64_t H, int64_t W, int64_t C, float* out, int64_t OH, int64_t OW) {
  const ResizeAxis columns(W, OW), rows(H, OH);
  const int64_t line = OW * C;
  std::vector<float> middle(static_cast<size_t>(H * line), 0.0f);
  for (int64_t y = 0; y < H; ++y)
    for (int64_t x = 0; x < OW; ++x) {
      const uint8_t* from = in + (y * W + columns.first[static_cast<size_t>(x)]) * C;
      float* to = middle.data() + y * line + x * C;
      for (int64_t j = 0; j < columns.count[static_cast<size_t>(x)]; ++j) {
        const auto w = static_cast<float>(columns.weight[static_cast<size_t>(x * columns.taps + j)]);
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
inline void resize_two_point(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OH, int64_t OW) {
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
                                   std::min<int64_t>(from - 1, static_cast<int64_t>(std::ceil(at))), at - floor};
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
        const float tl = top[px.lower * C + c], tr = top[px.upper * C + c], bl = bottom[px.lower * C + c], br = bottom[px.upper * C + c];
        const float t = tl + (tr - tl) * px.fraction, b = bl + (br - bl) * px.fraction;
        out[(y * OW + x) * C + c] = static_cast<uint8_t>(std::clamp(t + (b - t) * py.fraction, 0.0f, 255.0f));
      }
    }
  }
}

}  // namespace
}  // namespace siglip2
