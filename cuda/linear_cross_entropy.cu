// Vocabulary loss with all its gradients (formula in native/ops/linear_cross_entropy.h). Bound by
// three products of rows·V·D: the logits, dh and dweight. The rows that count are numbered by one
// small kernel, so that the products visit no others; the host does not know how many there are, so
// it launches for all rows and blocks beyond the count leave at once. Then, kChunkRows rows at a
// time, with their logits as the only large workspace:
//   1. logits = h·Wᵀ + bias,
//   2. for each row: lse, its loss, and in place G = (softmax − onehot)·weight,
//   3. dh = G·W,  dweight += Gᵀ·h,  dbias += Σ G,
// and at the end one small kernel adds up the losses. Every sum has one owner and a fixed order, so
// results do not vary from run to run. Operands are widened to float on their way into shared memory
// and everything after that is float; all products share one 64 × 64 tile with 4 × 4 outputs for
// each thread.
#include "../native/ops/linear_cross_entropy.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16;
constexpr int kTileThreads = 256;  // 16 × 16 threads of 4 × 4 outputs
constexpr int kPitch = kTile + 4;  // keeps rows 16-byte aligned and moves them to other banks
constexpr size_t kTileSmem = 2 * kDepth * kPitch * sizeof(float);
constexpr int64_t kChunkRows = 192;  // logits of 256,000 tokens: 187 MiB
constexpr int64_t kMostLogits = 48 << 20;

// Which rows count, made on the device.
struct Counted {
  const int* order;    // (R) their indices, in order; only the first *count are set
  const int* count;    // (1)
  const float* each;   // (1) 1 / denominator; NaN when a target is out of range
};

// An operand of a product, (rows, depth); outside of it are zeros. With `order`, row i (or depth i,
// when gathered along it) lies at order[first + i].
template <class T> struct Operand {
  const T* data;
  int64_t rows, depth;
  int64_t row_step, depth_step;  // one of them is 1: neighbouring threads walk along that one
  const int* order = nullptr;
  bool gather_depth = false;

  // Puts rows [row0, row0 + 64), depth [k0, k0 + 16) to shared memory as (depth, row).
  __device__ __forceinline__ void load(float* tile, int64_t row0, int64_t k0) const {
    const int t = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int part = 0; part < kTile * kDepth / kTileThreads; ++part) {
      const int i = part * kTileThreads + t;
      const int k = depth_step == 1 ? i % kDepth : i / kTile;
      const int r = depth_step == 1 ? i / kDepth : i % kTile;
      float value = 0;
      if (row0 + r < rows && k0 + k < depth) {
        const int64_t row = order && !gather_depth ? order[row0 + r] : row0 + r;
        const int64_t at = order && gather_depth ? order[k0 + k] : k0 + k;
        value = static_cast<float>(data[row * row_step + at * depth_step]);
      }
      tile[k * kPitch + r] = value;
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

__device__ __forceinline__ int64_t chunk_rows(const Counted& counted, int64_t first, int64_t most) {
  const int64_t left = *counted.count - first;
  return left < most ? left : most;
}

// ---- which rows count ---------------------------------------------------------------------------

// One warp walks over all rows: lanes find their places by counting the lanes before them.
__global__ void __launch_bounds__(kWarp)
    linear_cross_entropy_count_kernel(int* order,            // (R)
                                      int* count,            // (1)
                                      float* each,           // (1)
                                      const int* targets,    // (R)
                                      const float* weights,  // (R) or null
                                      int64_t R, int64_t V, float denominator) {
  const int lane = static_cast<int>(threadIdx.x);
  int found = 0;
  bool bad = false;
  double total = 0;
  for (int64_t r0 = 0; r0 < R; r0 += kWarp) {
    const int64_t r = r0 + lane;
    const int target = r < R ? targets[r] : -1;
    const float w = r < R && weights ? weights[r] : 1.0f;
    bad = bad || target < -1 || target >= V;
    const bool counts = target >= 0 && target < V && w != 0;
    const unsigned mask = __ballot_sync(kAllLanes, counts);
    if (counts) {
      order[found + __popc(mask & ((1u << lane) - 1))] = static_cast<int>(r);
      total += w;
    }
    found += __popc(mask);
  }
  const double sum = warp_sum(total);
  const unsigned any = __ballot_sync(kAllLanes, bad);
  if (lane != 0) return;
  *count = found;
  *each = any ? __int_as_float(0x7fc00000)
              : static_cast<float>(1.0 / (denominator != 0 ? static_cast<double>(denominator) : sum));
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_zero_kernel(T* dh,  // (R, D)
                                     int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  if (i < n) dh[i] = static_cast<T>(0.0f);
}

// ---- logits and their slopes --------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_logits_kernel(float* logits,        // (chunk, V)
                                       Operand<T> h,         // (chunk, D), gathered
                                       Operand<T> weight,    // (V, D)
                                       const float* bias,    // (V) or null
                                       Counted counted, int64_t first) {
  DYN_SMEM(smem);
  h.rows = chunk_rows(counted, first, h.rows);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  if (row0 >= h.rows) return;  // the whole block
  float c[4][4];
  multiply_tile(c, h, row0, weight, column0, reinterpret_cast<float*>(smem));
  const int64_t row = row0 + threadIdx.x / 16 * 4, column = column0 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < h.rows && column + j < weight.rows)
        logits[(row + i) * weight.rows + column + j] = c[i][j] + (bias ? bias[column + j] : 0.0f);
}

__device__ __forceinline__ float block_max(float v, float* shared) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  float most = shared[0];
  for (unsigned w = 1; w < kTileThreads / kWarp; ++w) most = fmaxf(most, shared[w]);
  return most;
}

// One block for each row: its loss, and its logits become G.
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_slopes_kernel(float* logits,         // (chunk, V)
                                       double* losses,        // (R), by place in the order
                                       const int* targets,    // (R)
                                       const float* weights,  // (R) or null
                                       Counted counted, int64_t first, int64_t V, float grad_scale,
                                       bool gradients) {
  DYN_SMEM(smem);
  float* const maxima = reinterpret_cast<float*>(smem);
  double* const sums = reinterpret_cast<double*>(maxima + kWarp);  // kTileThreads / kWarp + 1 of them
  const int64_t place = first + blockIdx.x;
  if (place >= *counted.count) return;  // the whole block
  const int row = counted.order[place], target = targets[row];
  float* const l = logits + static_cast<int64_t>(blockIdx.x) * V;
  float most = -INFINITY;
  for (int64_t v = threadIdx.x; v < V; v += kTileThreads) most = fmaxf(most, l[v]);
  most = block_max(most, maxima);
  double part = 0;
  for (int64_t v = threadIdx.x; v < V; v += kTileThreads) part += expf(l[v] - most);
  const double block_total = block_sum(part, sums);
  double* const shared_total = sums + kTileThreads / kWarp;
  const double w = (weights ? weights[row] : 1.0f) * static_cast<double>(*counted.each);
  const float at = l[target];
  if (threadIdx.x == 0) {
    *shared_total = block_total;
    losses[place] = w * (log(block_total) + (static_cast<double>(most) - at));
  }
  __syncthreads();  // everybody has read l[target], and the total is there
  if (!gradients) return;
  const double total = *shared_total, scale = w * grad_scale;
  const float norm = static_cast<float>(scale / total);
  for (int64_t v = threadIdx.x; v < V; v += kTileThreads) l[v] = expf(l[v] - most) * norm;
  __syncthreads();
  // p − 1 from p would cancel for a confident row.
  if (threadIdx.x == 0)
    l[target] = static_cast<float>(scale * ((exp(static_cast<double>(at) - most) - total) / total));
}

// ---- gradients ----------------------------------------------------------------------------------

// dh rows (gathered) = g (chunk, V) · W (V, D).
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_dh_kernel(T* dh,             // (R, D)
                                   Operand<float> g,  // (chunk, V)
                                   Operand<T> weight,  // (D, V): the transposed view of (V, D)
                                   Counted counted, int64_t first) {
  DYN_SMEM(smem);
  g.rows = chunk_rows(counted, first, g.rows);
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  if (row0 >= g.rows) return;  // the whole block
  float c[4][4];
  multiply_tile(c, g, row0, weight, column0, reinterpret_cast<float*>(smem));
  const int64_t row = row0 + threadIdx.x / 16 * 4, column = column0 + threadIdx.x % 16 * 4;
  const int64_t D = weight.rows;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < g.rows && column + j < D)
        dh[counted.order[first + row + i] * D + column + j] = static_cast<T>(c[i][j]);
}

// dweight (V, D) += gᵀ (V, chunk) · h (chunk, D).
template <class T>
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_dweight_kernel(float* dweight,    // (V, D)
                                        Operand<float> g,  // (V, chunk): transposed view
                                        Operand<T> h,      // (D, chunk): transposed view, gathered
                                        Counted counted, int64_t first) {
  DYN_SMEM(smem);
  g.depth = h.depth = chunk_rows(counted, first, g.depth);
  if (g.depth <= 0) return;  // the whole grid
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile,
                column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  float c[4][4];
  multiply_tile(c, g, row0, h, column0, reinterpret_cast<float*>(smem));
  const int64_t row = row0 + threadIdx.x / 16 * 4, column = column0 + threadIdx.x % 16 * 4;
  const int64_t D = h.rows;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < g.rows && column + j < D) dweight[(row + i) * D + column + j] += c[i][j];
}

// A thread owns a token.
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_dbias_kernel(float* dbias,    // (V)
                                      const float* g,  // (chunk, V)
                                      Counted counted, int64_t first, int64_t most, int64_t V) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * kTileThreads + threadIdx.x;
  const int64_t rows = chunk_rows(counted, first, most);
  if (v >= V) return;  // no barrier follows
  float sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += g[r * V + v];
  dbias[v] += sum;
}

// One block for each group.
__global__ void __launch_bounds__(kTileThreads)
    linear_cross_entropy_finish_kernel(float* loss,           // (groups)
                                       const double* losses,  // (R)
                                       Counted counted, int64_t group_rows) {
  DYN_SMEM(smem);
  double total = 0;
  for (int64_t i = threadIdx.x; i < *counted.count; i += kTileThreads)
    if (counted.order[i] / group_rows == static_cast<int64_t>(blockIdx.x)) total += losses[i];
  const double sum = block_sum(total, reinterpret_cast<double*>(smem));
  const float each = *counted.each;
  if (threadIdx.x == 0) loss[blockIdx.x] += each != each ? each : static_cast<float>(sum);
}

dim3 tile_grid(int64_t rows, int64_t columns) {
  return {static_cast<unsigned>(ceil_div<int64_t>(columns, kTile)),
          static_cast<unsigned>(ceil_div<int64_t>(rows, kTile))};
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

// ---- launcher -----------------------------------------------------------------------------------

void linear_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dh, Tensor dweight,
                                           Tensor dbias, Tensor h, Tensor weight, Tensor bias,
                                           Tensor targets, Tensor weights, int64_t R, int64_t V,
                                           int64_t D, int64_t groups, float denominator,
                                           float grad_scale) {
  if (R == 0) return;
  dispatch_element(h.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const hs = h.as<T>(R * D);
    const T* const ws = weight.as<T>(V * D);
    const float* const b = bias.as_or_null<float>(V);
    const int* const target = targets.as<int>(R);
    const float* const row_weights = weights.as_or_null<float>(R);
    T* const dhs = dh.as_or_null<T>(R * D);
    float* const dws = dweight.as_or_null<float>(V * D);
    float* const dbs = dbias.as_or_null<float>(V);
    const int64_t fits = kMostLogits / V;
    const int64_t at_once = least(least(R, kChunkRows), fits > 0 ? fits : 1);
    Scratch<int> order(s, R + 1);
    Scratch<float> each(s, 1), logits(s, at_once * V);
    Scratch<double> losses(s, R);
    const Counted counted{order.data(), order.data() + R, each.data()};
    const bool gradients = dhs || dws || dbs;

    launch(linear_cross_entropy_count_kernel, 1, kWarp, 0, s, order.data(), order.data() + R,
           each.data(), target, row_weights, R, V, denominator);
    if (dhs)
      launch(linear_cross_entropy_zero_kernel<T>,
             static_cast<unsigned>(ceil_div<int64_t>(R * D, kTileThreads)), kTileThreads, 0, s, dhs,
             R * D);
    for (int64_t first = 0; first < R; first += at_once) {
      const int* const here = order.data() + first;
      launch(linear_cross_entropy_logits_kernel<T>, tile_grid(at_once, V), kTileThreads, kTileSmem,
             s, logits.data(), Operand<T>{hs, at_once, D, D, 1, here}, Operand<T>{ws, V, D, D, 1}, b,
             counted, first);
      launch(linear_cross_entropy_slopes_kernel, static_cast<unsigned>(at_once), kTileThreads,
             kWarp * sizeof(float) + (kTileThreads / kWarp + 1) * sizeof(double), s, logits.data(),
             losses.data(), target, row_weights, counted, first, V, grad_scale, gradients);
      if (dhs)
        launch(linear_cross_entropy_dh_kernel<T>, tile_grid(at_once, D), kTileThreads, kTileSmem, s,
               dhs, Operand<float>{logits.data(), at_once, V, V, 1}, Operand<T>{ws, D, V, 1, D},
               counted, first);
      if (dws)
        launch(linear_cross_entropy_dweight_kernel<T>, tile_grid(V, D), kTileThreads, kTileSmem, s,
               dws, Operand<float>{logits.data(), V, at_once, 1, V},
               Operand<T>{hs, D, at_once, 1, D, here, true}, counted, first);
      if (dbs)
        launch(linear_cross_entropy_dbias_kernel,
               static_cast<unsigned>(ceil_div<int64_t>(V, kTileThreads)), kTileThreads, 0, s, dbs,
               static_cast<const float*>(logits.data()), counted, first, at_once, V);
    }
    launch(linear_cross_entropy_finish_kernel, static_cast<unsigned>(groups), kTileThreads,
           kTileThreads / kWarp * sizeof(double), s, loss.as<float>(groups),
           static_cast<const double*>(losses.data()), counted, R / groups);
  });
}

}  // namespace siglip2::cuda
