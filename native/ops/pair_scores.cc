// CPU pair scores (pair_scores.h). Bound by two matrix products for each tile, rows of one tower against chosen rows of
// the other; one pass over the tile then turns its dot products into losses and adds them up by row. The workspace is
// one tile of dot products and the gathered rows of one tile, at any size of super-batch.
// Sums: float over kRun pairs, double over a tile, tiles in order: the threads don't change the bits.
#include "pair_scores.h"
#include <cmath>
#include "../cpu/math.h"
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kTileRows = 1024, kTileCols = 1024;
constexpr int64_t kRun = 128;  // pairs summed in float

// Σ softplus(t·dot + b) over the columns of one row, without the column that is the row itself.
double row_losses(const float* dot, const int32_t* chosen, int32_t self, int64_t n, float t,
                  float b) {
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = std::min(n, begin + kRun);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = begin; k < end; ++k)
      sum += chosen[k] == self ? 0.0f : softplus(t * dot[k] + b);
    total += sum;
  }
  return total;
}

template <class P, class T> void copy_row(P* out, const T* in, int64_t D) {
  for (int64_t d = 0; d < D; ++d) out[d] = static_cast<P>(static_cast<float>(in[d]));
}

// T: type of x and y in memory. P: type of the products' operands, f32 where the CPU does not multiply bf16.
template <class T, class P> void all_tiles(Stream& s, float* scores, const T* x, const T* y,
                                           const int32_t* chosen, float t, float b, int64_t B,
                                           int64_t K, int64_t D, float weight) {
  constexpr DType type = dtype_of<P>;
  constexpr bool kWiden = !std::is_same_v<T, P>;
  const int64_t tile_rows = std::min(B, kTileRows), tile_cols = std::min(K, kTileCols);
  Scratch<float> dots(s, tile_rows * tile_cols);
  Scratch<P> gathered(s, tile_cols * D), wide(s, kWiden ? tile_rows * D : 0);
  const auto orientation = [&](const T* rows, const T* columns) {
    for (int64_t c = 0; c < K; c += kTileCols) {
      const int64_t cols = std::min(K - c, kTileCols);
      const int32_t* index = chosen + c;
      parallel_ranges(cols, 16, [&](int64_t k0, int64_t k1) {
        for (int64_t k = k0; k < k1; ++k)
          copy_row(gathered.data() + k * D, columns + index[k] * D, D);
      });
      for (int64_t r = 0; r < B; r += kTileRows) {
        const int64_t n = std::min(B - r, kTileRows);
        const P* operand = nullptr;
        if constexpr (kWiden) {
          parallel_ranges(n, 16, [&](int64_t i0, int64_t i1) {
            copy_row(wide.data() + i0 * D, rows + (r + i0) * D, (i1 - i0) * D);
          });
          operand = wide.data();
        } else {
          operand = rows + r * D;
        }
        matmul(s, n, cols, D, 1.0f, {operand, type, D}, {gathered.data(), type, D, true}, 0.0f,
               dots.data(), DType::f32, cols);
        parallel_ranges(n, 1 + 8192 / cols, [&](int64_t i0, int64_t i1) {
          for (int64_t i = i0; i < i1; ++i)
            scores[r + i] +=
                static_cast<float>(weight * row_losses(dots.data() + i * cols, index,
                                                       static_cast<int32_t>(r + i), cols, t, b));
        });
      }
    }
  };
  orientation(x, y);
  orientation(y, x);
}

}  // namespace

void pair_scores_diagonal(Stream&, Tensor scores, Tensor x, Tensor y, Tensor log_scale, Tensor bias,
                          int64_t B, int64_t D, float weight) {
  const float t = std::exp(*log_scale.as<const float>(1)), b = *bias.as<const float>(1);
  float* const out = scores.as<float>(B);
  dispatch_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const xs = x.as<const T>(B * D);
    const T* const ys = y.as<const T>(B * D);
    parallel_ranges(B, 1 + 8192 / D, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i) {
        const T* a = xs + i * D;
        const T* c = ys + i * D;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < D; ++d) dot += static_cast<float>(a[d]) * static_cast<float>(c[d]);
        out[i] += weight * softplus(-(t * dot + b));
      }
    });
  });
}

void pair_scores_chosen(Stream& s, Tensor scores, Tensor x, Tensor y, Tensor chosen,
                        Tensor log_scale, Tensor bias, int64_t B, int64_t K, int64_t D,
                        float weight) {
  const float t = std::exp(*log_scale.as<const float>(1)), b = *bias.as<const float>(1);
  float* const out = scores.as<float>(B);
  const int32_t* const index = chosen.as<const int32_t>(K);
  for (int64_t k = 0; k < K; ++k)
    if (index[k] < 0 || index[k] >= B)
      throw std::invalid_argument("pair_scores: a chosen index is " + std::to_string(index[k]) +
                                  " where there are " + std::to_string(B) + " samples");
  dispatch_float(x.dtype, [&](auto type) {
    using T = decltype(type);
    const auto run = [&](auto product) {
      all_tiles<T, decltype(product)>(s, out, x.as<const T>(B * D), y.as<const T>(B * D), index, t,
                                      b, B, K, D, weight);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (has_native_bf16()) return run(bf16{});
    run(float{});
  });
}

}  // namespace siglip2::cpu::ISA

OP(pair_scores_diagonal);
OP(pair_scores_chosen);
