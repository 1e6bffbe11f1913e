// Pairwise sigmoid loss of SigLIP with all its gradients (formula in native/ops/sigmoid_loss.h).
// Bound by arithmetic: three products of M·N·D, for the logits, for dx and for dy. The pair matrix
// is cut into chunks, whose sides make tiles for whole waves of the GPU in the second and third; for each chunk
//   1. x·yᵀ by the GEMM core, with an epilogue that turns a tile of float logits, in registers, into
//      its share of loss, dlog_scale and dbias, and into G = exp(log_scale)·weight·(σ(l) − [positive]),
//   2. dx += G·y and 3. dy += Gᵀ·x, plain products; G is transposed on its way into registers.
// Logits, losses and sums are float whatever the operands are. G is stored in the operands' type: bf16
// has the range of float, and its relative error of 2⁻⁹ is that of the other operand. Every sum has
// one owner and a fixed order, so results do not vary from run to run.
//
// SIGLIP2_F32=split sends float operands through the tensor cores too, each as two of bf16: v = high + low,
// with an error of 2⁻¹⁸ v. Then x·yᵀ is one product three times as deep, [high high low]·[high low high]ᵀ,
// which leaves out low·low, and a gradient is three products; G is split by the epilogue.
#include <cstdlib>
#include <cstring>
#include "../native/ops/sigmoid_loss.h"
#include "gemm/gemm.h"
#include "gemm/gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

using bf16 = __nv_bfloat16;

// A part of the pair matrix. G of it need not fit the L2 cache: its traffic, 6 bytes for a pair, takes a third of the time
// of the products, beside which it goes on. Workspace stays below 200 MB at any batch.
struct Chunk {
  int64_t rows, columns;
};
template <class T> Chunk chunk_of(int64_t D) {
  constexpr bool kWide =
      sizeof(T) > sizeof(bf16);  // G is twice as large, as floats or as their halves
  constexpr int64_t kBytes = kWide ? 80'000'000 : 190'000'000;
  const int64_t rows = rows_that_fill(D, kWide ? 2048 : 4096),
                fit = kBytes / (rows * int64_t{sizeof(T)});
  const int64_t unit =
      fit >= rows ? rows : 128;  // few columns D ask for more rows than go into a square
  return {rows, fit / unit * unit};
}
constexpr int kSums = 3;  // loss, dlog_scale, dbias

// log(1 + e) for e in [0, 1], relative error 2.3e-7; also where e is tiny.
__device__ __forceinline__ float log1p_of(float e) {
  float p = 0.0051261024f;
  p = p * e - 0.029074065f;
  p = p * e + 0.077516086f;
  p = p * e - 0.13602248f;
  p = p * e + 0.19076881f;
  p = p * e - 0.24835399f;
  p = p * e + 0.3331812f;
  p = p * e - 0.49999446f;
  p = p * e + 0.99999994f;
  return p * e;
}
// The same for e up to e^−kFar, by its series; relative error 2.0e-7.
constexpr float kFar = 3;
__device__ __forceinline__ float log1p_of_small(float e) {
  float p = 0.2f;
  p = p * e - 0.25f;
  p = p * e + 0.33333333f;
  p = p * e - 0.5f;
  p = p * e + 1.0f;
  return p * e;
}

// Arithmetic on M·N pairs beside a product that is only D deep: most pairs are negative and told
// apart well (l < −kFar), and for these half of the work can be left out.
template <class T> struct PairsEpilogue : LongEpilogue {
  T* g;                                   // (M, stride) or null
  bf16* g_low;                            // what bf16 leaves over of it, or null
  float* sums;                            // (3, sums_stride)
  const float* log_scale;                 // (1)
  const float* bias;                      // (1)
  int64_t sums_stride, stride, diagonal;  // column − row of a positive pair
  int N;
  float weight;
  // of a thread; the sums are without weight, dlog_scale also without scale
  float scale = 0, shift = 0, loss = 0, dlog_scale = 0, dbias = 0;

  __device__ __forceinline__ void begin(int) {
    scale = expf(*log_scale);
    shift = *bias;
    loss = dlog_scale = dbias = 0;
  }
  __device__ __forceinline__ static float exp_of(float l) { return ex2(1.4426950408889634f * l); }

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&dot)[kWidth]) {
    const int count = N - column;
    const int64_t positive = diagonal + row - column;  // index of the positive pair, if it is here
    float logit[kWidth], slope[kWidth];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      logit[i] = scale * dot[i] + shift;
      largest = fmaxf(largest, logit[i]);
    }
    const bool all_negative = positive < 0 || positive >= kWidth;
    if (all_negative && count >= kWidth && largest < -kFar) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const float e = exp_of(logit[i]);
        slope[i] = e * __fdividef(1.0f, 1.0f + e);
        loss += log1p_of_small(e);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        // With l negated for a positive pair: loss = log(1 + eˡ), slope = σ(l), both from e^−|l|, so
        // a confident pair keeps its small loss and gradient.
        const float l = i == positive ? -logit[i] : logit[i], e = exp_of(-fabsf(l));
        const float sigmoid = (l >= 0 ? 1.0f : e) * __fdividef(1.0f, 1.0f + e);
        const bool inside = i < count;
        slope[i] = inside ? (i == positive ? -sigmoid : sigmoid) : 0.0f;
        loss += inside ? fmaxf(l, 0.0f) + log1p_of(e) : 0.0f;
      }
    }
    const float gain = scale * weight;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      dlog_scale += slope[i] * dot[i];
      dbias += slope[i];
      slope[i] *= gain;
    }
    if (!g) return;
    store_columns(g + row * stride + column, slope, count, true);
    if (!g_low) return;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) slope[i] -= static_cast<float>(bf16(slope[i]));
    store_columns(g_low + row * stride + column, slope, count, true);
  }
  __device__ __forceinline__ void finish(int part, int lane) {
    const float totals[kSums] = {warp_sum(loss) * weight, warp_sum(dlog_scale) * scale * weight,
                                 warp_sum(dbias) * weight};
#pragma unroll
    for (int k = 0; k < kSums; ++k)
      if (lane == k) sums[k * sums_stride + part] = totals[k];
  }
};

// One block for each of loss, dlog_scale, dbias: totals = or += the sums of a chunk; after the last
// chunk they are added to the outputs.
constexpr unsigned kSumThreads = 256;
__global__ void __launch_bounds__(kSumThreads)
    sigmoid_loss_sum_kernel(double* totals,     // (3)
                            float* loss,        // (1)
                            float* dlog_scale,  // (1) or null
                            float* dbias,       // (1) or null
                            const float* sums,  // (3, stride), `parts` of each row in use
                            int64_t stride, int64_t parts, bool first, bool last) {
  DYN_SMEM(smem);
  double total = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kSumThreads) total += sums[blockIdx.x * stride + i];
  total = block_sum(total, reinterpret_cast<double*>(smem));
  if (threadIdx.x != 0) return;
  if (!first) total += totals[blockIdx.x];
  totals[blockIdx.x] = total;
  float* const out = blockIdx.x == 0 ? loss : blockIdx.x == 1 ? dlog_scale : dbias;
  if (last && out) *out += static_cast<float>(total);
}

constexpr int kThirds = 3;
constexpr unsigned kSplitThreads = 256;
// to (rows, 3·D): `low` says which third has the low halves.
__global__ void __launch_bounds__(kSplitThreads)
    split_kernel(bf16* to, const float* from, int64_t size, int64_t D, int low) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kSplitThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kSplitThreads + threadIdx.x; i < size;
       i += step) {
    const float v = from[i];
    const bf16 high(v);
    bf16* const row = to + i / D * (kThirds * D) + i % D;
#pragma unroll
    for (int k = 0; k < kThirds; ++k)
      row[k * D] = k == low ? bf16(v - static_cast<float>(high)) : high;
  }
}

// Rows of x or y as the products read them. T: of the operands as they are.
template <class T> struct WholeRows {
  using Product = T;
  using Operand =
      std::conditional_t<std::is_same_v<T, float>, FloatOperand<true>, MatrixOperand<true>>;
  static constexpr bool kSplit = false;
  const T* high;
  int64_t D;
  WholeRows(Stream&, bf16*, const T* rows, int64_t, int64_t columns, int)
      : high(rows), D(columns) {}
  int64_t depth() const { return D; }
};
// float rows as thirds in `thirds`, of which number low_third has the low halves.
struct SplitRows {
  using Product = bf16;
  using Operand = MatrixOperand<true>;
  static constexpr bool kSplit = true;
  const bf16* high;
  int64_t D, low_third;
  SplitRows(Stream& s, bf16* thirds, const float* rows, int64_t count, int64_t columns, int low)
      : high(thirds), D(columns), low_third(low) {
    const int64_t size = count * D,
                  blocks = std::min<int64_t>(ceil_div<int64_t>(size, kSplitThreads), 4096);
    launch(split_kernel, static_cast<unsigned>(blocks), kSplitThreads, 0, s, thirds, rows, size, D,
           low);
  }
  int64_t depth() const { return kThirds * D; }
  const bf16* low() const { return high + low_third * D; }
};

bool splits_floats() {
  const char* const wish = std::getenv("SIGLIP2_F32");
  if (!wish || std::strcmp(wish, "exact") == 0) return false;
  if (std::strcmp(wish, "split") == 0) return true;
  throw std::invalid_argument(std::string("SIGLIP2_F32 must be exact or split but is ") + wish);
}

struct Outputs {
  float *loss, *dx, *dy, *dlog_scale, *dbias;  // all but loss may be null
};
struct Pairs {
  const float *log_scale, *bias;
  int64_t M, N, D, diagonal;  // diagonal: row0 − col0
  float weight;
};

template <class T, class Rows> void run_pairs(Stream& s, const T* x, const T* y, const Outputs& out,
                                              const Pairs& p, const Chunk& chunk) {
  using Product = typename Rows::Product;
  using Operand = typename Rows::Operand;
  const int64_t M = p.M, N = p.N, D = p.D;
  const int64_t most_rows = std::min(M, chunk.rows), most_columns = std::min(N, chunk.columns);
  const int64_t ld = ceil_div<int64_t>(most_columns, 8) * 8,
                most_g = out.dx || out.dy ? most_rows * ld : 0;
  Scratch<Product> g(s, most_g);
  Scratch<bf16> g_low(s, Rows::kSplit ? most_g : 0);
  Scratch<bf16> x_thirds(s, Rows::kSplit ? most_rows * kThirds * D : 0),
      y_thirds(s, Rows::kSplit ? most_columns * kThirds * D : 0);
  const int64_t most_parts = most_gemm_parts(most_rows, most_columns);
  Scratch<float> sums(s, kSums * most_parts);
  Scratch<double> totals(s, kSums);

  for (int64_t i = 0; i < M; i += chunk.rows) {
    const int64_t rows = std::min(M - i, chunk.rows);
    const Rows a(s, x_thirds.data(), x + i * D, rows, D, 2);
    for (int64_t j = 0; j < N; j += chunk.columns) {
      const int64_t columns = std::min(N - j, chunk.columns);
      const Rows b(s, y_thirds.data(), y + j * D, columns, D, 1);
      PairsEpilogue<Product> pairs{};
      pairs.g = g.data();
      pairs.g_low = g_low.data();
      pairs.sums = sums.data();
      pairs.log_scale = p.log_scale;
      pairs.bias = p.bias;
      pairs.sums_stride = most_parts;
      pairs.stride = ld;
      pairs.diagonal = p.diagonal + i - j;
      pairs.N = static_cast<int>(columns);
      pairs.weight = p.weight;
      const int64_t depth = a.depth();
      const int64_t parts = launch_gemm(s, Operand(a.high, rows, depth, depth),
                                        Operand(b.high, columns, depth, depth), rows, columns,
                                        depth, pairs, {1, depth});
      launch(sigmoid_loss_sum_kernel, kSums, kSumThreads, kSumThreads / kWarp * sizeof(double), s,
             totals.data(), out.loss, out.dlog_scale, out.dbias, sums.data(), most_parts, parts,
             i + j == 0, i + rows == M && j + columns == N);
      // to += G·y or Gᵀ·x, the small products first.
      const auto add = [&](float* to, bool transposed, const Rows& other) {
        const int64_t m = transposed ? columns : rows, k = transposed ? rows : columns;
        const auto product = [&](const Product* slopes, const Product* values) {
          gemm(s, {m,
                   D,
                   k,
                   dtype_of<Product>,
                   {slopes, ld, transposed},
                   {values, other.depth()},
                   to,
                   DType::f32,
                   D,
                   true});
        };
        if constexpr (Rows::kSplit) {
          product(g_low.data(), other.high);
          product(g.data(), other.low());
        }
        product(g.data(), other.high);
      };
      if (out.dx) add(out.dx + i * D, false, b);
      if (out.dy) add(out.dy + j * D, true, a);
    }
  }
}

}  // namespace

void sigmoid_loss_forward_backward(Stream& s, Tensor loss, Tensor dx, Tensor dy, Tensor dlog_scale,
                                   Tensor dbias, Tensor x, Tensor y, Tensor log_scale, Tensor bias,
                                   int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0,
                                   float weight) {
  if (M == 0 || N == 0) return;
  const Outputs out{loss.as<float>(1), dx.as_or_null<float>(M * D), dy.as_or_null<float>(N * D),
                    dlog_scale.as_or_null<float>(1), dbias.as_or_null<float>(1)};
  const Pairs p{
      log_scale.as<const float>(1), bias.as<const float>(1), M, N, D, row0 - col0, weight};
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T *const xs = x.as<const T>(M * D), *const ys = y.as<const T>(N * D);
    if constexpr (std::is_same_v<T, float>)
      if (splits_floats()) return run_pairs<T, SplitRows>(s, xs, ys, out, p, chunk_of<T>(D));
    run_pairs<T, WholeRows<T>>(s, xs, ys, out, p, chunk_of<T>(D));
  });
}

}  // namespace siglip2::cuda
