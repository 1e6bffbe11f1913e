// CPU vocabulary loss (linear_cross_entropy.h). Bound by three matrix products of rows·V·D, which oneDNN spreads over
// the cores: the logits, dh and dweight.
//
// Rows that count are packed, kRows at a time. Their logits, for the whole vocabulary, are the only large workspace:
// 187 MiB at 256,000 tokens, whatever the batch. Keeping them costs memory but saves a fourth product, which a pass
// over vocabulary tiles with recomputation would need, and more rows at a time make the traffic of dweight, read and
// written once per pack of rows, a small part of the work. Tiles of kCols tokens share the rows of W in cache between
// their products, and bound the copy where bf16 has to be widened.
// Sums: float over kRun values, double beyond, rows in order: the threads don't change the bits.
#include "linear_cross_entropy.h"
#include <cmath>
#include <limits>
#include <vector>
#include "../cpu/math.h"
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kRows = 192, kCols = 4096, kRun = 256;
constexpr int64_t kMostLogits =
    48 << 20;  // 192 MiB: fewer rows at a time for a vocabulary beyond 262,144

struct Row {
  int64_t index;  // in h
  int32_t target;
  double loss_weight;  // weight / denominator
  float grad_weight;   // the same with the gradient's factor
  float max;
  double exp_sum;  // Σ exp(l − max)
};

// Adds the bias to one tile of a row and brings the row's running maximum and sum up to date.
void online_sum(Row& row, float* l, const float* bias, int64_t n) {
  if (bias)
    for (int64_t i = 0; i < n; ++i) l[i] += bias[i];
  float most = row.max;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = l[i] > most ? l[i] : most;
  if (most > row.max) {
    row.exp_sum *= std::exp(static_cast<double>(row.max) - most);
    row.max = most;
  }
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = std::min(n, begin + kRun);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = begin; i < end; ++i) part += exp_approx(l[i] - most);
    row.exp_sum += part;
  }
}

// One tile of a row: logits → G, in place or into g. `hit` is the target's column in the tile, or outside it.
template <class G> void gradient_row(const Row& row, const float* l, G* g, int64_t n, int64_t hit) {
  const float norm = static_cast<float>(row.grad_weight / row.exp_sum), most = row.max;
  const bool inside = hit >= 0 && hit < n;
  // p − 1 from p would cancel for a confident row: −(Σ of the others) / Σ keeps its digits.
  const double at = inside ? std::exp(static_cast<double>(l[hit]) - most) : 0;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) g[i] = exp_approx(l[i] - most) * norm;
  if (inside) g[hit] = static_cast<float>(row.grad_weight * ((at - row.exp_sum) / row.exp_sum));
}

template <class P, class T> void convert_rows(P* out, const T* in, int64_t rows, int64_t D) {
  parallel_ranges(rows, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
    for (int64_t i = r0 * D; i < r1 * D; ++i) out[i] = static_cast<float>(in[i]);
  });
}

// T: type of h and W in memory. P: type of the products' operands, f32 where the CPU does not multiply bf16.
template <class T, class P> struct Pass {
  static constexpr bool kWiden = !std::is_same_v<T, P>, kSeparate = !std::is_same_v<P, float>;
  static constexpr DType type = dtype_of<P>;
  Stream& s;
  T* dh;
  float *dweight, *dbias;
  const T *h, *weight;
  const float* bias;
  int64_t V, D;

  // One pack of rows: their gradients, and in `rows` what their losses are made of.
  void run(Row* rows, double* losses, int64_t n, float* logits, P* packed, P* wide, P* g,
           float* dh_sum) {
    const bool gradients = dh || dweight || dbias;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < D; ++d)
        packed[i * D + d] = static_cast<float>(h[rows[i].index * D + d]);
    for (int64_t v = 0; v < V; v += kCols) {
      const int64_t cols = std::min(kCols, V - v);
      matmul(s, n, cols, D, 1.0f, {packed, type, D}, {tile(wide, v, cols), type, D, true}, 0.0f,
             logits + v, DType::f32, V);
      parallel_ranges(n, 1, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; ++i)
          online_sum(rows[i], logits + i * V + v, bias ? bias + v : nullptr, cols);
      });
    }
    for (int64_t i = 0; i < n; ++i) {
      const double at =
          logits[i * V + rows[i].target];  // the difference to the maximum is taken first
      losses[i] = rows[i].loss_weight * (std::log(rows[i].exp_sum) + (rows[i].max - at));
    }
    if (!gradients) return;
    for (int64_t v = 0; v < V; v += kCols) {
      const int64_t cols = std::min(kCols, V - v), stride = kSeparate ? cols : V;
      P* const out = [&] {
        if constexpr (kSeparate) return g;
        else return logits + v;
      }();
      parallel_ranges(n, 1, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; ++i)
          gradient_row(rows[i], logits + i * V + v, out + i * stride, cols, rows[i].target - v);
      });
      if (dbias) add_columns(dbias + v, out, n, cols, stride);
      if (dh)
        matmul(s, n, D, cols, 1.0f, {out, type, stride}, {tile(wide, v, cols), type, D},
               v ? 1.0f : 0.0f, dh_sum, DType::f32, D);
      if (dweight)
        matmul(s, cols, D, n, 1.0f, {out, type, stride, true}, {packed, type, D}, 1.0f,
               dweight + v * D, DType::f32, D);
    }
    if (!dh) return;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < D; ++d) dh[rows[i].index * D + d] = dh_sum[i * D + d];
  }

  const P* tile(P* wide, int64_t v, int64_t cols) const {
    if constexpr (kWiden) {
      convert_rows(wide, weight + v * D, cols, D);
      return wide;
    } else {
      return weight + v * D;
    }
  }
  static void add_columns(float* sums, const P* g, int64_t n, int64_t cols, int64_t stride) {
    parallel_ranges(cols, 256, [&](int64_t c0, int64_t c1) {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = c0; c < c1; ++c) sums[c] += static_cast<float>(g[i * stride + c]);
    });
  }
};

// The rows that count, in order.
std::vector<Row> counted_rows(const int32_t* target, const float* weight, int64_t R, int64_t V,
                              double denominator, double grad_scale) {
  std::vector<Row> rows;
  double total = 0;
  for (int64_t r = 0; r < R; ++r) {
    if (target[r] < -1 || target[r] >= V)
      throw std::out_of_range("target " + std::to_string(target[r]) + " of row " +
                              std::to_string(r) + " is neither a token in [0, " +
                              std::to_string(V) + ") nor -1, which ignores the row");
    const double w = weight ? weight[r] : 1.0;
    if (target[r] < 0 || w == 0) continue;
    total += w;
    rows.push_back({r, target[r], w, 0, -std::numeric_limits<float>::infinity(), 0});
  }
  const double each = 1.0 / (denominator != 0 ? denominator : total);
  for (Row& row : rows) {
    row.loss_weight *= each;
    row.grad_weight = static_cast<float>(row.loss_weight * grad_scale);
  }
  return rows;
}

}  // namespace

void linear_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dh, Tensor dweight,
                                           Tensor dbias, Tensor h, Tensor weight, Tensor bias,
                                           Tensor targets, Tensor weights, int64_t R, int64_t V,
                                           int64_t D, int64_t groups, float denominator,
                                           float grad_scale) {
  float* const out = loss.as<float>(groups);
  const bool dry = s.is_dry();
  std::vector<Row> rows;
  if (!dry)
    rows = counted_rows(targets.as<const int32_t>(R), weights.as_or_null<const float>(R), R, V,
                        denominator, grad_scale);
  const int64_t count = dry ? R : static_cast<int64_t>(rows.size());
  const int64_t at_once = std::min({count, kRows, std::max<int64_t>(1, kMostLogits / V)});
  Scratch<double> losses(s, count);
  dispatch_float(h.dtype, [&](auto t) {
    using T = decltype(t);
    const auto run = [&](auto p) {
      using P = decltype(p);
      Pass<T, P> pass{s,
                      dh.as_or_null<T>(R * D),
                      dweight.as_or_null<float>(V * D),
                      dbias.as_or_null<float>(V),
                      h.as<const T>(R * D),
                      weight.as<const T>(V * D),
                      bias.as_or_null<const float>(V),
                      V,
                      D};
      const bool gradients = dh || dweight || dbias;
      const int64_t cols = std::min(V, kCols);
      Scratch<float> logits(s, at_once * V), dh_sum(s, dh ? at_once * D : 0);
      Scratch<P> packed(s, at_once * D), wide(s, pass.kWiden && count ? cols * D : 0);
      Scratch<P> g(s, pass.kSeparate && gradients ? at_once * cols : 0);
      if (dry) return;
      if (pass.dh) std::fill(pass.dh, pass.dh + R * D, T(0.0f));
      for (int64_t i = 0; i < count; i += at_once)
        pass.run(rows.data() + i, losses.data() + i, std::min(at_once, count - i), logits.data(),
                 packed.data(), wide.data(), g.data(), dh_sum.data());
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (multiplies_bf16(s)) return run(bf16{});
    run(float{});
  });
  if (dry) return;
  std::vector<double> sums(static_cast<size_t>(groups), 0.0);
  for (int64_t i = 0; i < count; ++i)
    sums[static_cast<size_t>(rows[i].index / (R / groups))] += losses.data()[i];
  for (int64_t g = 0; g < groups; ++g) out[g] += static_cast<float>(sums[static_cast<size_t>(g)]);
}

}  // namespace siglip2::cpu::ISA

OP_SIZED(linear_cross_entropy_forward_backward);
