// Antialiased bilinear (triangle filter) resizing, as Pillow does it: horizontal pass, then vertical, the intermediate
// rounded to uint8, weights in 22-bit fixed point. Bit-identical to PIL.Image.resize(…, BILINEAR) on uint8.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace siglip2 {

// The input positions and weights that make each output position of one axis.
struct ResizeAxis {
  int64_t taps = 0;             // room for weights per output position
  std::vector<int64_t> first, count;
  std::vector<double> weight;   // (out, taps)

  ResizeAxis(int64_t in, int64_t out) {
    const double scale = static_cast<double>(in) / static_cast<double>(out);
    const double support = std::max(scale, 1.0);
    taps = static_cast<int64_t>(support) * 2 + 3;
    weight.assign(static_cast<size_t>(out * taps), 0.0);
    for (int64_t i = 0; i < out; ++i) {
      const double center = (static_cast<double>(i) + 0.5) * scale;
      const int64_t lo = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
      const int64_t hi = std::min<int64_t>(in, static_cast<int64_t>(center + support + 0.5));
      double sum = 0;
      for (int64_t j = lo; j < hi; ++j) {
        const double d = (static_cast<double>(j) - center + 0.5) / support;
        const double w = std::max(0.0, 1.0 - (d < 0 ? -d : d));
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
    for (size_t i = 0; i < k.size(); ++i) k[i] = static_cast<int32_t>(weight[i] * (1 << 22) + 0.5);
    return k;
  }
};

// in (H, W, C) → out (OH, OW, C). An axis whose size does not change is not filtered.
inline void resize_u8(const uint8_t* in, int64_t H, int64_t W, int64_t C, uint8_t* out, int64_t OH, int64_t OW) {
  const auto clip = [](int32_t v) { return static_cast<uint8_t>(std::clamp(v >> 22, 0, 255)); };
  std::vector<uint8_t> middle;
  const uint8_t* source = in;
  if (OW != W) {
    const ResizeAxis axis(W, OW);
    const auto k = axis.fixed_point();
    middle.resize(static_cast<size_t>(H * OW * C));
    for (int64_t y = 0; y < H; ++y)
      for (int64_t x = 0; x < OW; ++x) {
        const int32_t* kx = k.data() + x * axis.taps;
        const uint8_t* row = in + (y * W + axis.first[static_cast<size_t>(x)]) * C;
        const int64_t n = axis.count[static_cast<size_t>(x)];
        for (int64_t c = 0; c < C; ++c) {
          int32_t sum = 1 << 21;
          for (int64_t j = 0; j < n; ++j) sum += row[j * C + c] * kx[j];
          middle[static_cast<size_t>((y * OW + x) * C + c)] = clip(sum);
        }
      }
    source = middle.data();
  }
  if (OH == H) {
    std::copy_n(source, H * OW * C, out);
    return;
  }
  const ResizeAxis axis(H, OH);
  const auto k = axis.fixed_point();
  std::vector<int32_t> sums(static_cast<size_t>(OW * C));
  for (int64_t y = 0; y < OH; ++y) {
    std::fill(sums.begin(), sums.end(), 1 << 21);
    for (int64_t j = 0; j < axis.count[static_cast<size_t>(y)]; ++j) {
      const uint8_t* row = source + (axis.first[static_cast<size_t>(y)] + j) * OW * C;
      const int32_t w = k[static_cast<size_t>(y * axis.taps + j)];
      for (int64_t i = 0; i < OW * C; ++i) sums[static_cast<size_t>(i)] += row[i] * w;
    }
    for (int64_t i = 0; i < OW * C; ++i) out[y * OW * C + i] = clip(sums[static_cast<size_t>(i)]);
  }
}

}  // namespace siglip2
