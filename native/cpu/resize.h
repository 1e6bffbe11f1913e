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

#if defined(__GNUC__)
typedef int32_t Lanes __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(4)));

// kRows rows of 3- or 4-channel pixels: a pixel is one vector of four channels, so one multiplication serves all of
// them, and the rows are independent chains. With 3 channels a load reads the byte after the pixel.
template <int64_t C, int64_t kRows>
inline void resize_rows(const uint8_t* const* rows, uint8_t* const* out, int64_t OW, const ResizeAxis& axis, const int32_t* k) {
  for (int64_t x = 0; x < OW; ++x) {
    const int64_t n = axis.count[static_cast<size_t>(x)], start = axis.first[static_cast<size_t>(x)] * C;
    const int32_t* w = k + x * axis.taps;
    Lanes sum[kRows];
    for (auto& s : sum) s = Lanes{1 << 21, 1 << 21, 1 << 21, 1 << 21};
    for (int64_t j = 0; j < n; ++j)
      for (int64_t r = 0; r < kRows; ++r) {
        Bytes pixel;
        std::memcpy(&pixel, rows[r] + start + j * C, 4);
        sum[r] += __builtin_convertvector(pixel, Lanes) * w[j];
      }
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < C; ++c) out[r][x * C + c] = clip_fixed(sum[r][c]);
  }
}
#endif

// Horizontal pass: in (H, W, C) → out (H, OW, C).
inline void resize_columns(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OW, Filter filter) {
  const ResizeAxis axis(W, OW, filter);
  const auto k = axis.fixed_point();
  int64_t y = 0;
#if defined(__GNUC__)
  constexpr int64_t kRows = 4;
  if (C == 3 || C == 4)
    for (; y + kRows < H; y += kRows) {  // the last row stays out: nothing is readable after it
      const uint8_t* rows[kRows];
      uint8_t* to[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        rows[r] = in + (y + r) * W * C;
        to[r] = out + (y + r) * OW * C;
      }
      if (C == 3) resize_rows<3, kRows>(rows, to, OW, axis, k.data());
      else resize_rows<4, kRows>(rows, to, OW, axis, k.data());
    }
#endif
  for (; y < H; ++y) resize_row(in + y * W * C, C, out + y * OW * C, OW, axis, k.data());
}

// in (H, W, C) → out (OH, OW, C). An axis whose size does not change is not filtered.
inline void resize_u8(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OH, int64_t OW,
                      Filter filter = Filter::bilinear) {
  std::vector<uint8_t> middle;
  const uint8_t* source = in;
  if (OW != W) {
    middle.resize(static_cast<size_t>(H * OW * C));
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
  std::vector<int32_t> sums(static_cast<size_t>(line));
  for (int64_t y = 0; y < OH; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << 21);
    for (int64_t j = 0; j < axis.count[static_cast<size_t>(y)]; ++j) {
      const uint8_t* row = source + (axis.first[static_cast<size_t>(y)] + j) * line;
      const int32_t w = k[static_cast<size_t>(y * axis.taps + j)];
      for (int64_t i = 0; i < line; ++i) sums[static_cast<size_t>(i)] += row[i] * w;
    }
    for (int64_t i = 0; i < line; ++i) out[y * line + i] = clip_fixed(sums[static_cast<size_t>(i)]);
  }
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
