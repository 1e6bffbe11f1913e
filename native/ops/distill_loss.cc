// CPU distillation loss (distill_loss.h). Bound by one exponential per teacher logit and two per student logit. A core
// takes a teacher row, keeps its exponentials (K floats, 256 KiB at 65,536 prototypes) and visits every student row
// that is matched with it. Sums: float over kRun values, double beyond, rows in order: threads don't change the bits.
#include "distill_loss.h"
#include <cmath>
#include "../cpu/math.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kRun = 256;

// f(begin, end) → float, summed over [0, K) in runs.
template <class F> double sum_runs(int64_t K, F&& f) {
  double sum = 0;
  for (int64_t begin = 0; begin < K; begin += kRun) sum += f(begin, std::min(K, begin + kRun));
  return sum;
}

// e_k = exp((t_k − c_k)/τ − max); returns their sum.
template <class T>
double teacher_row(float* e, const T* t, const float* centre, int64_t K, float temperature) {
  const float sharpen = 1.0f / temperature;
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < K; ++k) {
    e[k] = (static_cast<float>(t[k]) - centre[k]) * sharpen;
    most = e[k] > most ? e[k] : most;
  }
  return sum_runs(K, [&](int64_t begin, int64_t end) {
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t k = begin; k < end; ++k) {
      e[k] = exp_approx(e[k] - most);
      part += e[k];
    }
    return part;
  });
}

// Returns ce; g, which may be s itself, gets factor/τ·(q − p). `e` and `total` are the teacher's.
template <class T> double student_row(T* g, const T* s, const float* e, double total, int64_t K,
                                      float temperature, float factor) {
  const float sharpen = 1.0f / temperature;
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < K; ++k) {
    const float x = s[k];
    most = x > most ? x : most;
  }
  double exp_sum = 0, dot = 0;  // Σ exp(l), Σ e·l with l = (s − max)/τ
  for (int64_t begin = 0; begin < K; begin += kRun) {
    const int64_t end = std::min(K, begin + kRun);
    float exp_part = 0, dot_part = 0;
#pragma omp simd reduction(+ : exp_part, dot_part)
    for (int64_t k = begin; k < end; ++k) {
      const float l = (static_cast<float>(s[k]) - most) * sharpen;
      exp_part += exp_approx(l);
      dot_part += e[k] * l;
    }
    exp_sum += exp_part;
    dot += dot_part;
  }
  if (g) {
    const auto q = static_cast<float>(factor * sharpen / exp_sum),
               p = static_cast<float>(factor * sharpen / total);
#pragma omp simd
    for (int64_t k = 0; k < K; ++k)
      g[k] = exp_approx((static_cast<float>(s[k]) - most) * sharpen) * q - e[k] * p;
  }
  return std::log(exp_sum) - dot / total;
}

}  // namespace

void distill_loss_forward_backward(Stream& stream, Tensor loss, Tensor dstudent, Tensor student,
                                   Tensor teacher, Tensor centre, Tensor weights, int64_t R,
                                   int64_t T, int64_t K, float student_temperature,
                                   float teacher_temperature, float scale) {
  if (R == 0 || K == 0) return;
  if (T <= 0 || R % T != 0)
    throw std::invalid_argument(std::to_string(R) + " student rows are not a multiple of " +
                                std::to_string(T) + " teacher rows");
  const float* c = centre.as<const float>(K);
  const float* weight = weights.as_or_null<const float>(R);
  Scratch<double> rows(stream, R);
  Scratch<float> exponentials(stream, thread_count() * K);
  dispatch_float(student.dtype, [&](auto type) {
    using E = decltype(type);
    const E *s = student.as<const E>(R * K), *t = teacher.as<const E>(T * K);
    E* g = dstudent.as_or_null<E>(R * K);
    parallel_ranges(T, 1, [&](int64_t t0, int64_t t1) {
      float* e = exponentials.data() + worker_index() * K;
      for (int64_t row = t0; row < t1; ++row) {
        const double total = teacher_row(e, t + row * K, c, K, teacher_temperature);
        for (int64_t r = row; r < R; r += T) {
          const float w = weight ? weight[r] : 1.0f;
          E* out = g ? g + r * K : nullptr;
          if (w == 0) {
            rows.data()[r] = 0;
            if (out) std::fill(out, out + K, E(0.0f));
          } else {
            const double ce =
                student_row<E>(out, s + r * K, e, total, K, student_temperature, w * scale);
            rows.data()[r] = static_cast<double>(w) * ce;
          }
        }
      }
    });
  });
  double sum = 0;
  for (int64_t r = 0; r < R; ++r) sum += rows.data()[r];
  *loss.as<float>(1) += static_cast<float>(sum * static_cast<double>(scale));
}

}  // namespace siglip2::cpu::ISA

OP(distill_loss_forward_backward);
