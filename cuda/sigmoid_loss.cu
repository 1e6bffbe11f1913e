// Pairwise sigmoid loss of SigLIP with all its gradients (formula in native/ops/sigmoid_loss.h).
// Bound by arithmetic: three products of M·N·D, for the logits, for dx and for dy. The pair matrix
// is cut into chunks that stay in the L2 cache; for each chunk
//   1. pairs: l = exp(log_scale)·x·yᵀ + bias, its loss, and G = weight·(σ(l) − [positive]),
//   2. dx += exp(log_scale)·G·y,
//   3. dy += exp(log_scale)·Gᵀ·x,
// and at the end one small kernel adds up loss, dlog_scale and dbias. Every sum has one owner and a
// fixed order, so results do not vary from run to run. Operands are widened to float on their way
// into shared memory and everything after that is float; all three products share one 64 × 64 tile
// with 4 × 4 outputs for each thread.
#include "../native/ops/sigmoid_loss.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16;
constexpr int kTileThreads = 256;  // 16 × 16 threads of 4 × 4 outputs
constexpr int kPitch = kTile + 4;  // keeps rows 16-byte aligned and moves them to other banks
constexpr size_t kTileSmem = 2 * kDepth * kPitch * sizeof(float);
constexpr int64_t kChunkRows = 2048, kChunkColumns = 4096;  // G of a chunk: 32 MiB
constexpr int kSums = 3;                                    // loss, dlog_scale, dbias

constexpr int64_t padded(int64_t n) { return ceil_div<int64_t>(n, kTile) * kTile; }

// A (rows, depth) operand as it lies in memory; outside of it are zeros.
template <class T> struct Operand {
  const T* data;
  int64_t rows, depth;  // what exists
  int64_t row_step, depth_step;  // one of them is 1: neighbouring threads walk along that one

  // Puts rows [row0, row0 + 64), depth [k0, k0 + 16) to shared memory as (depth, row).
  __device__ __forceinline__ void load(float* tile, int64_t row0, int64_t k0) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int part = 0; part < kTile * kDepth / kTileThreads; ++part) {
      const int i = part * kTileThreads + t;
      const int k = depth_step == 1 ? i % kDepth : i / kTile;
      const int r = depth_step == 1 ? i / kDepth : i % kTile;
      const bool inside = row0 + r < rows && k0 + k < depth;
      tile[k * kPitch + r] =
          inside ? static_cast<float>(data[(row0 + r) * row_step + (k0 + k) * depth_step]) : 0.0f;
    }
  }
};

// c (64, 64) = a (64, depth) · b (64, depth)ᵀ; thread t has the 4 rows from 4 (t / 16) and the 4
// columns from 4 (t % 16).
template <class A, class B>
__device__ __forceinline__ void multiply_tile(float (&c)[4][4], const Operand<A>& a, int64_t row0,
                                              const Operand<B>& b, int64_t column0, float* smem) {
  float* const a_tile = smem;
  float* const b_tile = smem + kDepth * kPitch;
  const int row = static_cast<int>(threadIdx.x) / 16 * 4,
            column = static_cast<int>(threadIdx.x) % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) c[i][j] = 0;
  for (int64_t k0 = 0; k0 < a.depth; k0 += kDepth) {
    a.load(a_tile, row0, k0);
    b.load(b_tile, column0, k0);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float u[4], v[4];
      Pack<float>::load(a_tile + k * kPitch + row).unpack(u);
      Pack<float>::load(b_tile + k * kPitch + column).unpack(v);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] += u[i] * v[j];
    }
    __syncthreads();
  }
}

// log(1 + e^a) without overflow, and without losing small values to the 1.
__device__ __forceinline__ float softplus(float a) {
  return fmaxf(a, 0.0f) + log1pf(expf(-fabsf(a)));
}
__device__ __forceinline__ float sigmoid(float a) {
  const float e = expf(-fabsf(a));
  return (a >= 0 ? 1.0f : e) / (1.0f + e);
}

// ---- pairs --------------------------------------------------------------------------------------

// One tile of the chunk for each block. Rows and columns count from the start of the chunk.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    sigmoid_loss_pairs_kernel(float* g,      // (padded rows, ld) or null; zero in the padding
                              float* sums,   // (3, all tiles) of this call
                              Operand<T> x,  // (rows, D)
                              Operand<T> y,  // (columns, D)
                              const float* log_scale,        // (1)
                              const float* bias,             // (1)
                              int64_t ld, int64_t diagonal,  // column − row of a positive pair
                              int64_t first_tile, int64_t tiles_across, int64_t all_tiles,
                              float weight) {
  DYN_SMEM(smem);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  float c[4][4];
  multiply_tile(c, x, row0, y, column0, reinterpret_cast<float*>(smem));
  const float scale = expf(*log_scale), b = *bias;
  const int64_t row = row0 + threadIdx.x / 16 * 4, column = column0 + threadIdx.x % 16 * 4;
  float loss = 0, dlog_scale = 0, dbias = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float scaled = scale * c[i][j], logit = scaled + b;
      const bool inside = row + i < x.rows && column + j < y.rows;
      const bool positive = column + j - (row + i) == diagonal;
      // σ(l) − 1 = −σ(−l), so a confident positive keeps its small gradient.
      const float slope = positive ? -sigmoid(-logit) : sigmoid(logit);
      out[j] = inside ? weight * slope : 0.0f;
      loss += inside ? softplus(positive ? -logit : logit) : 0.0f;
      dlog_scale += out[j] * scaled;
      dbias += out[j];
    }
    if (g) Pack<float>::from(out).store(g + (row + i) * ld + column);
  }
  float* const shared = reinterpret_cast<float*>(smem);
  const float totals[kSums] = {block_sum(loss * weight, shared),
                               block_sum(dlog_scale, shared + kWarp),
                               block_sum(dbias, shared + 2 * kWarp)};
  if (threadIdx.x != 0) return;
  const int64_t tile = first_tile + blockIdx.y * tiles_across + blockIdx.x;
#pragma unroll
  for (int k = 0; k < kSums; ++k) sums[k * all_tiles + tile] = totals[k];
}

// One block for each of loss, dlog_scale, dbias.
__global__ void __launch_bounds__(kTileThreads)
    sigmoid_loss_finish_kernel(float* loss,        // (1)
                               float* dlog_scale,  // (1) or null
                               float* dbias,       // (1) or null
                               const float* sums,  // (3, tiles)
                               int64_t tiles) {
  DYN_SMEM(smem);
  double total = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kTileThreads) total += sums[blockIdx.x * tiles + i];
  const double sum = block_sum(total, reinterpret_cast<double*>(smem));
  float* const out = blockIdx.x == 0 ? loss : blockIdx.x == 1 ? dlog_scale : dbias;
  if (threadIdx.x == 0 && out) *out += static_cast<float>(sum);
}

// ---- gradients ----------------------------------------------------------------------------------

// out (rows, D) += exp(log_scale) · g (rows, depth) · other (depth, D); for dy, g is transposed.
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    sigmoid_loss_gradient_kernel(float* out,        // (rows, D)
                                 Operand<float> g,  // (rows, depth)
                                 Operand<T> other,  // (D, depth): the transposed view of (depth, D)
                                 const float* log_scale) {
  DYN_SMEM(smem);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  float c[4][4];
  multiply_tile(c, g, row0, other, column0, reinterpret_cast<float*>(smem));
  const float scale = expf(*log_scale);
  const int64_t D = other.rows;
  const int64_t row = row0 + threadIdx.x / 16 * 4, column = column0 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < g.rows && column + j < D) out[(row + i) * D + column + j] += scale * c[i][j];
}

dim3 tile_grid(int64_t rows, int64_t columns) {
  return {static_cast<unsigned>(ceil_div<int64_t>(columns, kTile)),
          static_cast<unsigned>(ceil_div<int64_t>(rows, kTile))};
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

// ---- launcher -----------------------------------------------------------------------------------

void sigmoid_loss_forward_backward(Stream& s, Tensor loss, Tensor dx, Tensor dy, Tensor dlog_scale,
                                   Tensor dbias, Tensor x, Tensor y, Tensor log_scale, Tensor bias,
                                   int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0,
                                   float weight) {
  if (M == 0 || N == 0) return;
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const xs = x.as<T>(M * D);
    const T* const ys = y.as<T>(N * D);
    float* const dxs = dx.as_or_null<float>(M * D);
    float* const dys = dy.as_or_null<float>(N * D);
    const float* const ls = log_scale.as<float>(1);
    const float* const b = bias.as<float>(1);
    const int64_t chunk_rows = least(padded(M), kChunkRows), ld = least(padded(N), kChunkColumns);
    const int64_t all_tiles = padded(M) / kTile * (padded(N) / kTile);
    Scratch<float> g(s, dxs || dys ? chunk_rows * ld : 0);
    Scratch<float> sums(s, kSums * all_tiles);

    int64_t first_tile = 0;
    for (int64_t i = 0; i < M; i += kChunkRows)
      for (int64_t j = 0; j < N; j += kChunkColumns) {
        const int64_t rows = least(M - i, kChunkRows), columns = least(N - j, kChunkColumns);
        const dim3 grid = tile_grid(rows, columns);
        launch(sigmoid_loss_pairs_kernel<T>, grid, kTileThreads, kTileSmem, s, g.data(),
               sums.data(), Operand<T>{xs + i * D, rows, D, D, 1},
               Operand<T>{ys + j * D, columns, D, D, 1}, ls, b, ld, (row0 + i) - (col0 + j),
               first_tile, static_cast<int64_t>(grid.x), all_tiles, weight);
        first_tile += static_cast<int64_t>(grid.x) * grid.y;
        if (dxs)
          launch(sigmoid_loss_gradient_kernel<T>, tile_grid(rows, D), kTileThreads, kTileSmem, s,
                 dxs + i * D, Operand<float>{g.data(), rows, columns, ld, 1},
                 Operand<T>{ys + j * D, D, columns, 1, D}, ls);
        if (dys)
          launch(sigmoid_loss_gradient_kernel<T>, tile_grid(columns, D), kTileThreads, kTileSmem, s,
                 dys + j * D, Operand<float>{g.data(), columns, rows, 1, ld},
                 Operand<T>{xs + i * D, D, rows, 1, D}, ls);
      }
    launch(sigmoid_loss_finish_kernel, kSums, kTileThreads, kTileThreads / kWarp * sizeof(double),
           s, loss.as<float>(1), dlog_scale.as_or_null<float>(1), dbias.as_or_null<float>(1),
           sums.data(), all_tiles);
  });
}

}  // namespace siglip2::cuda
