// Sums over a row with the additions in the order that vector registers like: kSumLanes partial sums, then pairs of them. A
// loop with one sum, even under `omp simd`, ends in a chain of scalar additions that costs more than a row of 128.
#pragma once
#include <cstdint>

namespace siglip2 {

constexpr int64_t kSumLanes = 16;

// The sum of f(i) for i in [0, n).
template <class F> inline float row_sum(int64_t n, F&& f) {
  float part[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes)
    for (int64_t j = 0; j < kSumLanes; ++j) part[j] += f(i + j);
  for (int64_t j = 0; i + j < n; ++j) part[j] += f(i + j);
  for (int64_t half = kSumLanes / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) part[j] += part[j + half];
  return part[0];
}

}  // namespace siglip2
