// CPU pairwise sigmoid loss (sigmoid_loss.h). Bound by three matrix products per tile of the pair matrix: the logits,
// G·Y and Gᵀ·X, which oneDNN spreads over the cores. Between them one pass, spread over the rows of the tile, turns dot
// products into loss and G in place; loss and sigmoid share one exponential and one division.
//
// Tile: large enough that reading and writing dX, dY (2·D values per row and column) is a small part of the 4·D·tile
// operations on them; small enough that the workspace is the same few MiB at any batch.
// Sums: float over kRun pairs, double beyond, rows in order: the threads don't change the bits.
#include "sigmoid_loss.h"
#include <cmath>
#include "../cpu/math.h"
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kTileRows = 1024, kTileCols = 1024;
constexpr int64_t kRun = 128;  // pairs summed in float

struct Sums {
  double loss = 0, dscale = 0, dbias = 0;  // Σ softplus(∓l), Σ (σ − z⁺)·dot, Σ (σ − z⁺)
};

// Pairs of one row that are all negatives. g may be dot itself; absent (kGradient false) only the loss is made.
template <bool kGradient, class G>
void negatives(const float* dot, G* g, int64_t n, float t, float b, float g_scale, Sums& sums) {
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = std::min(n, begin + kRun);
    float loss = 0, dscale = 0, dbias = 0;
#pragma omp simd reduction(+ : loss, dscale, dbias)
    for (int64_t i = begin; i < end; ++i) {
      const float d = dot[i], l = t * d + b;
      const float e = exp_approx(l < 0 ? l : -l), u = 1.0f + e, v = 2.0f + e, w = 1.0f / (u * v);
      const float s = e * u * w,
                  q = s * s;  // log1p(e) = 2·atanh(e / (2 + e)), e ≤ 1: the series ends below 2e-8
      float p = 1.0f / 13;
      p = p * q + 1.0f / 11;
      p = p * q + 1.0f / 9;
      p = p * q + 1.0f / 7;
      p = p * q + 1.0f / 5;
      p = p * q + 1.0f / 3;
      p = p * q + 1.0f;
      loss += (l > 0 ? l : 0.0f) + 2.0f * s * p;
      if constexpr (kGradient) {
        const float sig = (l < 0 ? e : 1.0f) * (v * w);
        dscale += sig * d;
        dbias += sig;
        g[i] = sig * g_scale;
      }
    }
    sums.loss += loss;
    sums.dscale += dscale;
    sums.dbias += dbias;
  }
}

// One row of a tile; `positive` is the column of its positive pair, outside [0, n) when there is none. Its loss is
// softplus(−l), never softplus(l) − l, and its gradient −σ(−l), never σ(l) − 1: both would cancel for a good pair.
template <bool kGradient, class G> Sums row_pass(const float* dot, G* g, int64_t n,
                                                 int64_t positive, float t, float b,
                                                 float g_scale) {
  Sums sums;
  if (positive < 0 || positive >= n) {
    negatives<kGradient>(dot, g, n, t, b, g_scale, sums);
    return sums;
  }
  const int64_t after = positive + 1;
  negatives<kGradient>(dot, g, positive, t, b, g_scale, sums);
  const float d = dot[positive], l = t * d + b;
  sums.loss += softplus(-l);
  if constexpr (kGradient) {
    const float miss = -sigmoid(-l);
    sums.dscale += static_cast<double>(miss) * d;
    sums.dbias += miss;
    g[positive] = miss * g_scale;
  }
  negatives<kGradient>(dot + after, kGradient ? g + after : g, n - after, t, b, g_scale, sums);
  return sums;
}

template <class T> void widen(float* out, const T* in, int64_t n) {
  parallel_ranges(n, 16384, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) out[i] = in[i];
  });
}

// T: type of x and y in memory. P: type of the products' operands, f32 where the CPU does not multiply bf16; the tiles
// are then widened once instead of by every product.
template <class T, class P>
Sums all_tiles(Stream& s, bool gradient, float* dx, float* dy, const T* x, const T* y, float t,
               float b, float weight, int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0) {
  constexpr bool kWiden = !std::is_same_v<T, P>, kSeparate = !std::is_same_v<P, float>;
  constexpr DType type = dtype_of<P>;
  const int64_t tile_rows = std::min(M, kTileRows), tile_cols = std::min(N, kTileCols);
  Scratch<float> dots(s, tile_rows * tile_cols);
  Scratch<P> separate(s, kSeparate && gradient ? tile_rows * tile_cols : 0);
  Scratch<P> wide_x(s, kWiden ? tile_rows * D : 0), wide_y(s, kWiden ? tile_cols * D : 0);
  Scratch<Sums> row_sums(s, tile_rows);
  if (s.is_dry()) return {};
  P* const g = [&] {
    if constexpr (kSeparate) return separate.data();
    else return dots.data();
  }();
  const auto operand = [](Scratch<P>& wide, const T* rows, int64_t n) -> const P* {
    if constexpr (kWiden) {
      widen(wide.data(), rows, n);
      return wide.data();
    } else {
      return rows;
    }
  };
  Sums total;
  for (int64_t c = 0; c < N; c += kTileCols) {
    const int64_t cols = std::min(N - c, kTileCols);
    const P* yt = operand(wide_y, y + c * D, cols * D);
    for (int64_t r = 0; r < M; r += kTileRows) {
      const int64_t rows = std::min(M - r, kTileRows);
      const P* xt = operand(wide_x, x + r * D, rows * D);
      matmul(s, rows, cols, D, 1.0f, {xt, type, D}, {yt, type, D, true}, 0.0f, dots.data(),
             DType::f32, cols);
      parallel_ranges(rows, 1 + 8192 / cols, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; ++i) {
          const float* dot = dots.data() + i * cols;
          const int64_t positive = row0 + r + i - col0 - c;
          // t·weight is folded into G, so that the products keep factor 1 while t changes from step to step.
          row_sums.data()[i] =
              gradient ? row_pass<true>(dot, g + i * cols, cols, positive, t, b, t * weight)
                       : row_pass<false>(dot, g, cols, positive, t, b, 0.0f);
        }
      });
      for (int64_t i = 0; i < rows; ++i) {
        const Sums& row = row_sums.data()[i];
        total.loss += row.loss;
        total.dscale += row.dscale;
        total.dbias += row.dbias;
      }
      if (dx)
        matmul(s, rows, D, cols, 1.0f, {g, type, cols}, {yt, type, D}, 1.0f, dx + r * D, DType::f32,
               D);
      if (dy)
        matmul(s, cols, D, rows, 1.0f, {g, type, cols, true}, {xt, type, D}, 1.0f, dy + c * D,
               DType::f32, D);
    }
  }
  return total;
}

}  // namespace

void sigmoid_loss_forward_backward(Stream& s, Tensor loss, Tensor dx, Tensor dy, Tensor dlog_scale,
                                   Tensor dbias, Tensor x, Tensor y, Tensor log_scale, Tensor bias,
                                   int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0,
                                   float weight) {
  const bool dry = s.is_dry();
  const float t = dry ? 1 : std::exp(*log_scale.as<const float>(1)),
              b = dry ? 0 : *bias.as<const float>(1);
  float *out = loss.as<float>(1), *dt = dlog_scale.as_or_null<float>(1),
        *db = dbias.as_or_null<float>(1);
  const Sums total = dispatch_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto product) {
      return all_tiles<T, decltype(product)>(
          s, dx || dy || dt || db, dx.as_or_null<float>(M * D), dy.as_or_null<float>(N * D),
          x.as<const T>(M * D), y.as<const T>(N * D), t, b, weight, M, N, D, row0, col0);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (multiplies_bf16(s)) return run(bf16{});
    return run(float{});
  });
  if (dry) return;
  *out += static_cast<float>(total.loss * weight);
  if (dt) *dt += static_cast<float>(total.dscale * t * weight);
  if (db) *db += static_cast<float>(total.dbias * weight);
}

}  // namespace siglip2::cpu::ISA

OP_SIZED(sigmoid_loss_forward_backward);
