// One axis of a resize: which input positions make each output position, with which weights. Local to the file that
// includes it, as resize.h is.
#pragma once
#include <algorithm>
#include <cstdint>
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
  int64_t taps = 0;  // room for weights per output position
  std::vector<int64_t> first, count;
  std::vector<double> weight;  // (out, taps)

  ResizeAxis(int64_t in, int64_t out, Filter filter = Filter::bilinear) {
    const double scale = static_cast<double>(in) / static_cast<double>(out),
                 stretch = std::max(scale, 1.0);
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
    for (size_t i = 0; i < k.size(); ++i)
      k[i] = static_cast<int32_t>(weight[i] * (1 << 22) + (weight[i] < 0 ? -0.5 : 0.5));
    return k;
  }
};

}  // namespace
}  // namespace siglip2
