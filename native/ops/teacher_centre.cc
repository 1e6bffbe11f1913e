// CPU centre and statistics of the teacher (teacher_centre.h). Bound by memory. Column sums go over blocks of columns,
// rows in order inside a block, so the bits don't depend on the number of threads.
#include "teacher_centre.h"
#include <cmath>
#include "../cpu/math.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kColumns = 512;  // double sums of one block of columns: 4 KiB, always in cache

// out[k] = Σ_r value(r, k) / R for every column.
template <class F> void column_means(float* out, int64_t R, int64_t K, F&& value) {
  const int64_t blocks = (K + kColumns - 1) / kColumns;
  parallel_ranges(blocks, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t k0 = b * kColumns, n = std::min(kColumns, K - k0);
      double sums[kColumns] = {};
      for (int64_t r = 0; r < R; ++r)
        for (int64_t k = 0; k < n; ++k) sums[k] += value(r, k0 + k);
      for (int64_t k = 0; k < n; ++k)
        out[k0 + k] = static_cast<float>(sums[k] / static_cast<double>(R));
    }
  });
}

struct Row {
  float most, norm;  // p_k = exp(l_k − most)·norm
  double entropy;
};

template <class T> Row row_of(const T* t, const float* centre, int64_t K, float sharpen) {
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < K; ++k) {
    const float l = (static_cast<float>(t[k]) - centre[k]) * sharpen;
    most = l > most ? l : most;
  }
  double sum = 0, dot = 0;
  for (int64_t begin = 0; begin < K; begin += kColumns) {
    const int64_t end = std::min(K, begin + kColumns);
    float sum_part = 0, dot_part = 0;
#pragma omp simd reduction(+ : sum_part, dot_part)
    for (int64_t k = begin; k < end; ++k) {
      const float l = (static_cast<float>(t[k]) - centre[k]) * sharpen - most;
      const float e = exp_approx(l);
      sum_part += e;
      dot_part += e * l;
    }
    sum += sum_part;
    dot += dot_part;
  }
  return {most, static_cast<float>(1.0 / sum), std::log(sum) - dot / sum};
}

void check_rows(int64_t R) {
  if (R <= 0) throw std::invalid_argument("the mean of no teacher rows was asked for");
}

}  // namespace

void teacher_mean(Stream&, Tensor mean, Tensor teacher, int64_t R, int64_t K) {
  check_rows(R);
  float* out = mean.as<float>(K);
  dispatch_float(teacher.dtype, [&](auto type) {
    using E = decltype(type);
    const E* t = teacher.as<const E>(R * K);
    column_means(out, R, K, [&](int64_t r, int64_t k) {
      return static_cast<double>(static_cast<float>(t[r * K + k]));
    });
  });
}

void centre_update(Stream&, Tensor centre, Tensor mean, int64_t K, float momentum) {
  float* c = centre.as<float>(K);
  const float* m = mean.as<const float>(K);
  for (int64_t k = 0; k < K; ++k) c[k] = momentum * c[k] + (1.0f - momentum) * m[k];
}

void teacher_statistics(Stream& s, Tensor result, Tensor teacher, Tensor centre, int64_t R,
                        int64_t K, float temperature) {
  check_rows(R);
  float* out = result.as<float>(3);
  const float* c = centre.as<const float>(K);
  const float sharpen = 1.0f / temperature;
  Scratch<Row> rows(s, R);
  Scratch<float> mean(s, K);
  dispatch_float(teacher.dtype, [&](auto type) {
    using E = decltype(type);
    const E* t = teacher.as<const E>(R * K);
    parallel_ranges(R, 1, [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) rows.data()[r] = row_of(t + r * K, c, K, sharpen);
    });
    column_means(mean.data(), R, K, [&](int64_t r, int64_t k) {
      const Row& row = rows.data()[r];
      return static_cast<double>(
          exp_approx((static_cast<float>(t[r * K + k]) - c[k]) * sharpen - row.most) * row.norm);
    });
  });
  double entropy = 0, entropy_of_mean = 0, largest = 0;
  for (int64_t r = 0; r < R; ++r) entropy += rows.data()[r].entropy;
  for (int64_t k = 0; k < K; ++k) {
    const double p = mean.data()[k];
    if (p > 0) entropy_of_mean -= p * std::log(p);
    largest = std::max(largest, p);
  }
  out[0] = static_cast<float>(entropy / static_cast<double>(R));
  out[1] = static_cast<float>(entropy_of_mean);
  out[2] = static_cast<float>(largest);
}

}  // namespace siglip2::cpu::ISA

OP(teacher_mean);
OP(centre_update);
OP(teacher_statistics);
