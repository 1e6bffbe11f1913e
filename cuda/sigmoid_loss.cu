// Pairwise sigmoid loss of SigLIP with all its gradients (formula in native/ops/sigmoid_loss.h).
// Bound by arithmetic: three products of M·N·D, for the logits, for dx and for dy. The pair matrix
// is cut into chunks whose gradients G fit the L2 cache; for each chunk
//   1. x·yᵀ by the GEMM core, with an epilogue that turns a tile of float logits, in registers, into
//      its share of loss, dlog_scale and dbias, and into G = exp(log_scale)·weight·(σ(l) − [positive]),
//   2. dx += G·y and 3. dy += Gᵀ·x, plain products; G is transposed on its way into registers.
// Logits, losses and sums are float whatever the operands are. G is stored in the operands' type: bf16
// has the range of float, and its relative error of 2⁻⁹ is that of the other operand. Every sum has
// one owner and a fixed order, so results do not vary from run to run.
#include "../native/ops/sigmoid_loss.h"
#include "gemm.h"
#include "gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

// Of the pair matrix: G of a chunk is 32 MiB, workspace is the same for any batch.
constexpr int64_t kChunkColumns = 4096;
template <class T> constexpr int64_t kChunkRows = (32 << 20) / kChunkColumns / int64_t{sizeof(T)};
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

template <class T> struct PairsEpilogue : Epilogue {
  T* g;                    // (M, stride) or null
  float* sums;             // (3, sums_stride)
  const float* log_scale;  // (1)
  const float* bias;       // (1)
  int64_t sums_stride, stride, diagonal;  // column − row of a positive pair
  int N;
  float weight;
  // of a thread
  float scale = 0, shift = 0, loss = 0, dlog_scale = 0, dbias = 0;

  __device__ __forceinline__ void begin(int) {
    scale = expf(*log_scale);
    shift = *bias;
    loss = dlog_scale = dbias = 0;
  }
  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&dot)[kWidth]) {
    const int count = N - column;
    float out[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float scaled = scale * dot[i], logit = scaled + shift;
      const bool positive = column + i - static_cast<int64_t>(row) == diagonal;
      // With l negated for a positive pair: loss = log(1 + eˡ), slope = σ(l), both from e^−|l|, so a
      // confident pair keeps its small loss and gradient.
      const float l = positive ? -logit : logit;
      const float e = ex2(-1.4426950408889634f * fabsf(l));
      const float sigmoid = (l >= 0 ? 1.0f : e) * __fdividef(1.0f, 1.0f + e);
      const bool inside = i < count;
      const float slope = inside ? weight * (positive ? -sigmoid : sigmoid) : 0.0f;
      loss += inside ? fmaxf(l, 0.0f) + log1p_of(e) : 0.0f;
      dlog_scale += slope * scaled;
      dbias += slope;
      out[i] = scale * slope;
    }
    if (g) store_columns(g + row * stride + column, out, count, true);
  }
  __device__ __forceinline__ void finish(int part, int lane) {
    const float totals[kSums] = {warp_sum(loss * weight), warp_sum(dlog_scale), warp_sum(dbias)};
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

template <class T>
using RowsOf = std::conditional_t<std::is_same_v<T, float>, FloatOperand<true>, MatrixOperand<true>>;

}  // namespace

void sigmoid_loss_forward_backward(Stream& s, Tensor loss, Tensor dx, Tensor dy, Tensor dlog_scale,
                                   Tensor dbias, Tensor x, Tensor y, Tensor log_scale, Tensor bias,
                                   int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0,
                                   float weight) {
  if (M == 0 || N == 0) return;
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const xs = x.as<const T>(M * D);
    const T* const ys = y.as<const T>(N * D);
    float* const dxs = dx.as_or_null<float>(M * D);
    float* const dys = dy.as_or_null<float>(N * D);
    const int64_t most_rows = std::min(M, kChunkRows<T>), most_columns = std::min(N, kChunkColumns);
    const int64_t ld = ceil_div<int64_t>(most_columns, 8) * 8;
    Scratch<T> g(s, dxs || dys ? most_rows * ld : 0);
    const int64_t most_parts = most_gemm_parts(most_rows, most_columns);
    Scratch<float> sums(s, kSums * most_parts);
    Scratch<double> totals(s, kSums);

    for (int64_t i = 0; i < M; i += kChunkRows<T>)
      for (int64_t j = 0; j < N; j += kChunkColumns) {
        const int64_t rows = std::min(M - i, kChunkRows<T>), columns = std::min(N - j, kChunkColumns);
        PairsEpilogue<T> pairs{};
        pairs.g = g.data();
        pairs.sums = sums.data();
        pairs.log_scale = log_scale.as<const float>(1);
        pairs.bias = bias.as<const float>(1);
        pairs.sums_stride = most_parts;
        pairs.stride = ld;
        pairs.diagonal = row0 + i - (col0 + j);
        pairs.N = static_cast<int>(columns);
        pairs.weight = weight;
        const int64_t parts =
            launch_gemm(s, RowsOf<T>(xs + i * D, rows, D, D), RowsOf<T>(ys + j * D, columns, D, D),
                        rows, columns, D, pairs, {1, D});
        launch(sigmoid_loss_sum_kernel, kSums, kSumThreads, kSumThreads / kWarp * sizeof(double), s,
               totals.data(), loss.as<float>(1), dlog_scale.as_or_null<float>(1),
               dbias.as_or_null<float>(1), sums.data(), most_parts, parts, i + j == 0,
               i + rows == M && j + columns == N);
        if (dxs)
          gemm(s, {rows, D, columns, x.dtype, {g.data(), ld}, {ys + j * D, D}, dxs + i * D,
                   DType::f32, D, true});
        if (dys)
          gemm(s, {columns, D, rows, x.dtype, {g.data(), ld, true}, {xs + i * D, D}, dys + j * D,
                   DType::f32, D, true});
      }
  });
}

}  // namespace siglip2::cuda
