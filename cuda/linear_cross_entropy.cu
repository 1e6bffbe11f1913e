// Vocabulary loss with all its gradients (formula in native/ops/linear_cross_entropy.h). Bound by
// three products of rows·V·D: the logits, dh and dweight, all by the GEMM core. The rows that count are
// numbered by one small kernel, so that the products visit no others; the host does not know how many
// there are, so it launches for all rows, and blocks beyond the count leave at once. Then, kChunkRows
// rows at a time, with their logits as the only large workspace:
//   1. the rows of h side by side, logits = h·Wᵀ + bias in float,
//   2. for each row: lse, its loss, and in place G = (softmax − onehot)·weight, in h's type,
//   3. dh = G·W (split along V to fill the GPU),  dweight += Gᵀ·h,  dbias += Σ G,
// and at the end one small kernel adds up the losses. Every sum has one owner and a fixed order, so
// results do not vary from run to run.
#include "../native/ops/linear_cross_entropy.h"
#include "gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kChunkRows = 256;  // two tiles of rows; logits of 256,000 tokens: 250 MiB
constexpr int64_t kMostLogits = 64 << 20;

// Which rows count, made on the device.
struct Counted {
  const int* order;    // (R) their indices, in order; only the first *count are set
  const int* count;    // (1)
  const float* each;   // (1) 1 / denominator; NaN when a target is out of range
};

// Of a product over the chunk from row `first`: nothing is done for rows that do not count.
template <class E> struct CountedRows : E {
  const int* count;
  int first;
  bool by_row;  // the product's rows are the chunk's; else it sums over them
  CountedRows(const E& epilogue, const Counted& counted, int64_t first_, bool by_row_)
      : E(epilogue), count(counted.count), first(static_cast<int>(first_)), by_row(by_row_) {}
  __device__ __forceinline__ bool skips(int row0) const { return first + (by_row ? row0 : 0) >= *count; }
};

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
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_zero_kernel(T* dh,  // (R, D)
                                     int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) dh[i] = static_cast<T>(0.0f);
}

// ---- logits and their slopes --------------------------------------------------------------------

// The chunk's rows of h side by side; zeros behind the last one that counts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_gather_kernel(T* rows,     // (chunk, D)
                                       const T* h,  // (R, D)
                                       Counted counted, int64_t first, int64_t D) {
  const int64_t place = first + blockIdx.x, count = *counted.count;
  if (first >= count) return;
  const T* const from = place < count ? h + counted.order[place] * D : nullptr;
  for (int64_t d = threadIdx.x; d < D; d += kThreads)
    rows[blockIdx.x * D + d] = from ? from[d] : static_cast<T>(0.0f);
}

__device__ __forceinline__ float block_max(float v, float* shared) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  float most = shared[0];
  for (unsigned w = 1; w < kWarps; ++w) most = fmaxf(most, shared[w]);
  return most;
}

// One block for each row: its loss, and its logits become G: the same `pitch` floats hold G's elements from their start.
template <class T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_slopes_kernel(float* logits,         // (chunk, pitch)
                                       double* losses,        // (R), by place in the order
                                       const int* targets,    // (R)
                                       const float* weights,  // (R) or null
                                       Counted counted, int64_t first, int64_t V, int64_t pitch,
                                       float grad_scale, bool gradients) {
  DYN_SMEM(smem);
  float* const maxima = reinterpret_cast<float*>(smem);
  double* const sums = reinterpret_cast<double*>(maxima + kWarp);  // kWarps + 1 of them
  const int64_t place = first + blockIdx.x, count = *counted.count;
  if (first >= count) return;  // the whole block
  float* const l = logits + static_cast<int64_t>(blockIdx.x) * pitch;
  T* const g = reinterpret_cast<T*>(l);
  if (place >= count) {  // the products sum over whole chunks
    for (int64_t v = threadIdx.x; v < V; v += kThreads) g[v] = static_cast<T>(0.0f);
    return;
  }
  const int row = counted.order[place], target = targets[row];
  float mine = -INFINITY;
  double part = 0;  // Σ exp(l − mine)
  for (int64_t v = threadIdx.x; v < V; v += kThreads) {
    const float x = l[v];
    if (x > mine) {
      part *= expf(mine - x);
      mine = x;
    }
    part += expf(x - mine);
  }
  const float most = block_max(mine, maxima);
  const double block_total = block_sum(part * expf(mine - most), sums);
  double* const shared_total = sums + kWarps;
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
  // p − 1 from p would cancel for a confident row.
  const float own = static_cast<float>(scale * ((exp(static_cast<double>(at) - most) - total) / total));
  for (int64_t v0 = 0; v0 < V; v0 += kThreads) {
    const int64_t v = v0 + threadIdx.x;
    const float slope = v >= V ? 0 : v == target ? own : expf(l[v] - most) * norm;
    // G may be narrower than the logits: what is written now has been read by now.
    if constexpr (sizeof(T) < sizeof(float)) __syncthreads();
    if (v < V) g[v] = static_cast<T>(slope);
  }
}

// ---- gradients ----------------------------------------------------------------------------------

// dh rows (gathered) = Σ_splits parts.
template <class T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_dh_kernel(T* dh,               // (R, D)
                                   const float* parts,  // (splits, chunk, stride)
                                   Counted counted, int64_t first, int64_t D, int64_t stride,
                                   int64_t split_stride, int splits) {
  const int64_t place = first + blockIdx.x;
  if (place >= *counted.count) return;
  T* const to = dh + counted.order[place] * D;
  for (int64_t d = threadIdx.x; d < D; d += kThreads) {
    float sum = 0;
    for (int s = 0; s < splits; ++s) sum += parts[s * split_stride + blockIdx.x * stride + d];
    to[d] = static_cast<T>(sum);
  }
}

// A thread owns a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_dbias_kernel(float* dbias,  // (V)
                                      const T* g,    // (chunk, stride)
                                      Counted counted, int64_t first, int64_t chunk, int64_t V,
                                      int64_t stride) {
  const int64_t v = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t left = *counted.count - first, rows = left < chunk ? left : chunk;
  if (v >= V) return;  // no barrier follows
  float sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += static_cast<float>(g[r * stride + v]);
  dbias[v] += sum;
}

// One block for each group.
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_finish_kernel(float* loss,           // (groups)
                                       const double* losses,  // (R)
                                       Counted counted, int64_t group_rows) {
  DYN_SMEM(smem);
  double total = 0;
  for (int64_t i = threadIdx.x; i < *counted.count; i += kThreads)
    if (counted.order[i] / group_rows == static_cast<int64_t>(blockIdx.x)) total += losses[i];
  const double sum = block_sum(total, reinterpret_cast<double*>(smem));
  const float each = *counted.each;
  if (threadIdx.x == 0) loss[blockIdx.x] += each != each ? each : static_cast<float>(sum);
}

// ---- launching ----------------------------------------------------------------------------------

template <class T, bool kDepthInLine>
using Rows = std::conditional_t<std::is_same_v<T, float>, FloatOperand<kDepthInLine>, MatrixOperand<kDepthInLine>>;

template <class T> struct Work {
  Stream& s;
  const T *h, *weight;
  const float* bias;
  const int* targets;
  const float* row_weights;
  T* dh;
  float *dweight, *dbias;
  double* losses;
  int64_t V, D, chunk, pitch;
  float grad_scale;
};

template <class T>
void run_chunk(const Work<T>& w, const Counted& counted, int64_t first, T* rows, float* logits) {
  constexpr int64_t kNarrower = sizeof(float) / sizeof(T);
  const unsigned chunk = static_cast<unsigned>(w.chunk);
  const Splits whole_depth{1, w.D}, whole_chunk{1, w.chunk};
  launch(linear_cross_entropy_gather_kernel<T>, chunk, kThreads, 0, w.s, rows, w.h, counted, first, w.D);
  launch_gemm(w.s, Rows<T, true>(rows, w.chunk, w.D, w.D), Rows<T, true>(w.weight, w.V, w.D, w.D), w.chunk, w.V, w.D,
              CountedRows(StoreEpilogue<float>(logits, w.bias, w.V, w.pitch, false), counted, first, true), whole_depth);
  const bool gradients = w.dh || w.dweight || w.dbias;
  launch(linear_cross_entropy_slopes_kernel<T>, chunk, kThreads, kWarp * sizeof(float) + (kWarps + 1) * sizeof(double),
         w.s, logits, w.losses, w.targets, w.row_weights, counted, first, w.V, w.pitch, w.grad_scale, gradients);
  const T* const g = reinterpret_cast<const T*>(logits);
  const int64_t stride = w.pitch * kNarrower;
  if (w.dh) {
    const Splits splits = splits_of(w.chunk, w.D, w.V);
    const int64_t row = ceil_div<int64_t>(w.D, 8) * 8;
    Scratch<float> parts(w.s, splits.count * w.chunk * row);
    launch_gemm(w.s, Rows<T, true>(g, w.chunk, w.V, stride), Rows<T, false>(w.weight, w.V, w.D, w.D), w.chunk, w.D, w.V,
                CountedRows(StoreEpilogue<float>(parts.data(), nullptr, w.D, row, false, w.chunk * row), counted, first,
                            true),
                splits);
    launch(linear_cross_entropy_dh_kernel<T>, chunk, kThreads, 0, w.s, w.dh, static_cast<const float*>(parts.data()),
           counted, first, w.D, row, w.chunk * row, static_cast<int>(splits.count));
  }
  if (w.dweight)
    launch_gemm(w.s, Rows<T, false>(g, w.chunk, w.V, stride), Rows<T, false>(rows, w.chunk, w.D, w.D), w.V, w.D, w.chunk,
                CountedRows(StoreEpilogue<float>(w.dweight, nullptr, w.D, w.D, true), counted, first, false),
                whole_chunk);
  if (w.dbias)
    launch(linear_cross_entropy_dbias_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(w.V, kThreads)), kThreads, 0,
           w.s, w.dbias, g, counted, first, w.chunk, w.V, stride);
}

}  // namespace

void linear_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dh, Tensor dweight,
                                           Tensor dbias, Tensor h, Tensor weight, Tensor bias,
                                           Tensor targets, Tensor weights, int64_t R, int64_t V,
                                           int64_t D, int64_t groups, float denominator,
                                           float grad_scale) {
  if (R == 0) return;
  check_extent(R, V, D);
  dispatch_element(h.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t pitch = ceil_div<int64_t>(V, 8) * 8;
    const int64_t chunk = std::min({R, kChunkRows, std::max<int64_t>(kMostLogits / pitch, 1)});
    Scratch<int> order(s, R + 1);
    Scratch<float> each(s, 1), logits(s, chunk * pitch);
    Scratch<double> losses(s, R);
    Scratch<T> rows(s, chunk * D);
    const Counted counted{order.data(), order.data() + R, each.data()};
    const Work<T> work{s, h.as<T>(R * D), weight.as<T>(V * D), bias.as_or_null<float>(V), targets.as<int>(R),
                       weights.as_or_null<float>(R), dh.as_or_null<T>(R * D), dweight.as_or_null<float>(V * D),
                       dbias.as_or_null<float>(V), losses.data(), V, D, chunk, pitch, grad_scale};
    launch(linear_cross_entropy_count_kernel, 1, kWarp, 0, s, order.data(), order.data() + R,
           each.data(), work.targets, work.row_weights, R, V, denominator);
    if (work.dh)
      launch(linear_cross_entropy_zero_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(R * D, kThreads)), kThreads, 0,
             s, work.dh, R * D);
    for (int64_t first = 0; first < R; first += chunk) run_chunk(work, counted, first, rows.data(), logits.data());
    launch(linear_cross_entropy_finish_kernel, static_cast<unsigned>(groups), kThreads, kWarps * sizeof(double), s,
           loss.as<float>(groups), static_cast<const double*>(losses.data()), counted, R / groups);
  });
}

}  // namespace siglip2::cuda
