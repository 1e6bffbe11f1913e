// CPU softmax cross-entropy (softmax_cross_entropy.h). Bound by memory and by one exponential per logit and pass: a row
// is read for its maximum, for the sum of exponentials, and for the gradient; up to a vocabulary of a quarter million
// it stays in the second-level cache between them. Rows are independent and dealt to the cores.
// Sums: float over kRun values, double beyond, rows in order: the threads don't change the bits.
#include "softmax_cross_entropy.h"
#include <cmath>
#include "../cpu/math.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kRun = 256;

struct Row {
  float max;
  double exp_sum, sum;  // Σ exp(l − max); Σ l, made only for label smoothing
};

template <class T> Row row_sums(const T* l, int64_t V, bool smooth) {
  Row row{-INFINITY, 0, 0};
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t v = 0; v < V; ++v) {
    const float x = l[v];
    most = x > most ? x : most;
  }
  row.max = most;
  for (int64_t begin = 0; begin < V; begin += kRun) {
    const int64_t end = std::min(V, begin + kRun);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t v = begin; v < end; ++v) part += exp_approx(static_cast<float>(l[v]) - most);
    row.exp_sum += part;
    if (!smooth) continue;
    float plain = 0;
#pragma omp simd reduction(+ : plain)
    for (int64_t v = begin; v < end; ++v) plain += static_cast<float>(l[v]);
    row.sum += plain;
  }
  return row;
}

// Returns ce; g may be l itself.
template <class T>
double one_row(T* g, const T* l, int64_t target, int64_t V, float scale, float smoothing) {
  const Row row = row_sums(l, V, smoothing != 0);
  const double log_sum =
      std::log(row.exp_sum);  // of exp(l − max): the difference to l[target] is taken first
  const double at = l[target], uniform = static_cast<double>(smoothing) / static_cast<double>(V);
  const double ce = log_sum + (row.max - at) + smoothing * at - uniform * row.sum;
  if (g) {
    const float norm = static_cast<float>(scale / row.exp_sum),
                shift = static_cast<float>(scale * uniform), most = row.max;
    const float hit = static_cast<float>(
        scale * (std::exp(at - most) / row.exp_sum - uniform - (1.0 - smoothing)));
#pragma omp simd
    for (int64_t v = 0; v < V; ++v)
      g[v] = exp_approx(static_cast<float>(l[v]) - most) * norm - shift;
    g[target] = hit;
  }
  return ce;
}

}  // namespace

void softmax_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dlogits, Tensor logits,
                                            Tensor targets, Tensor weights, int64_t R, int64_t V,
                                            float denominator, float smoothing) {
  const int32_t* target = targets.as<const int32_t>(R);
  const float* weight = weights.as_or_null<const float>(R);
  double counted = 0;
  for (int64_t r = 0; r < R; ++r) {
    if (target[r] < -1 || target[r] >= V)
      throw std::out_of_range(text_of(FaultKind::class_target, r, target[r], V));
    if (target[r] >= 0) counted += weight ? weight[r] : 1.0f;
  }
  const double total = denominator != 0 ? static_cast<double>(denominator) : counted;
  const double each = total != 0 ? 1.0 / total : 0.0;  // no row counts: loss 0, gradients 0
  Scratch<double> rows(s, R);
  dispatch_float(logits.dtype, [&](auto t) {
    using T = decltype(t);
    const T* l = logits.as<const T>(R * V);
    T* g = dlogits.as_or_null<T>(R * V);
    parallel_items(R, [&](int64_t r) {
      T* out = g ? g + r * V : nullptr;
      const double w = (weight ? weight[r] : 1.0) * each;
      if (target[r] < 0 || w == 0) {
        rows.data()[r] = 0;
        if (out) std::fill(out, out + V, T(0.0f));
      } else {
        rows.data()[r] =
            w * one_row<T>(out, l + r * V, target[r], V, static_cast<float>(w), smoothing);
      }
    });
  });
  double sum = 0;
  for (int64_t r = 0; r < R; ++r) sum += rows.data()[r];
  *loss.as<float>(1) += static_cast<float>(sum);
}

}  // namespace siglip2::cpu::ISA

OP(softmax_cross_entropy_forward_backward);
