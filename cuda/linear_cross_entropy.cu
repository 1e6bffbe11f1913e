// Vocabulary loss with all its gradients (formula in native/ops/linear_cross_entropy.h). Bound by products of rows·V·D, all
// by the GEMM core, with logits in float that never reach memory. The rows that count are numbered by one small
// kernel, so that the products visit no others; the host does not know how many there are, so it launches for all rows,
// and tiles beyond the count are left out. Then, a few thousand rows at a time:
//   1. the rows of h side by side,
//   2. logits = h·Wᵀ + bias, of which the epilogue keeps maximum and sum of exponentials of every 32, and the target's
//      logit; they give each row's lse, its loss and what its slopes need,
//   3. for a chunk of the vocabulary, a few thousand tokens: the logits again, of which the epilogue makes
//      G = (softmax − onehot)·weight in h's type; then dh += G·W, dweight += Gᵀ·h, dbias += Σ G.
// Four products of rows·V·D in place of the three that kept logits would take; those were written and read several
// times (4 bytes where a product of 768 takes the time of 2), and allowed so few rows at a time that reading and writing
// dweight for each took longer than multiplying. At the end one small kernel adds up the losses. Every sum has one
// owner and a fixed order, so results do not vary from run to run.
#include "../native/ops/linear_cross_entropy.h"
#include "gemm/gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kGroup = 32;  // logits that share a maximum and a sum
struct Limits {
  int64_t rows, bytes;  // rows at a time, and bytes of their G, before it of their maxima and sums
};
// Rows, and as many tokens, whose gradients make tiles for whole waves of the GPU.
template <class T> Limits limits_of(int64_t D) {
  const int64_t rows = rows_that_fill(D, 4096);
  return {rows, rows * rows * int64_t{sizeof(T)}};
}

// Which rows count, made on the device.
struct Counted {
  const int* order;   // (R) their indices, in order; only the first *count are set
  const int* count;   // (1)
  const float* each;  // (1) 1 / denominator; NaN when a target is out of range
};

// Of a product over the chunk from row `first`: nothing is done for rows that do not count.
template <class E> struct CountedRows : E {
  const int* count;
  int first;
  bool by_row;  // the product's rows are the chunk's; else it sums over them
  CountedRows(const E& epilogue, const Counted& counted, int64_t first_, bool by_row_)
      : E(epilogue), count(counted.count), first(static_cast<int>(first_)), by_row(by_row_) {}
  __device__ __forceinline__ bool skips(int row0) const {
    return first + (by_row ? row0 : 0) >= *count;
  }
  __device__ __forceinline__ int depth(int K) const { return by_row ? K : min(K, *count - first); }
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
  *each =
      any ? __int_as_float(0x7fc00000)
          : static_cast<float>(1.0 / (denominator != 0 ? static_cast<double>(denominator) : sum));
}

template <class T> __global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_zero_kernel(T* dh,  // (R, D)
                                     int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) dh[i] = static_cast<T>(0.0f);
}

// ---- logits and their slopes --------------------------------------------------------------------

// The chunk's rows of h side by side, and their targets; zeros and none behind the last one that counts.
template <class T> __global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_gather_kernel(T* rows,             // (chunk, D)
                                       int* row_targets,    // (chunk)
                                       const T* h,          // (R, D)
                                       const int* targets,  // (R)
                                       Counted counted, int64_t first, int64_t D) {
  const int64_t place = first + blockIdx.x, count = *counted.count;
  if (first >= count) return;
  const T* const from = place < count ? h + counted.order[place] * D : nullptr;
  for (int64_t d = threadIdx.x; d < D; d += kThreads)
    rows[blockIdx.x * D + d] = from ? from[d] : static_cast<T>(0.0f);
  if (threadIdx.x == 0) row_targets[blockIdx.x] = from ? targets[counted.order[place]] : -1;
}

// Sum of exponentials of some logits, as a multiple of e^most.
struct Exponentials {
  float most, sum;
};

// What the slopes of a row need: that of logit l is e^(l − most)·norm, of the target `own`.
struct RowSlopes {
  float most, norm, own;
  int target;
};

// Logits from products: those of v from N on are −∞.
template <int kWidth>
__device__ __forceinline__ void add_bias(float (&l)[kWidth], const float (&product)[kWidth],
                                         const float* bias, int column, int N) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    l[i] = column + i < N ? product[i] + (bias ? bias[column + i] : 0.0f) : -INFINITY;
}

// Maximum and sum of every kGroup logits, which lie in neighbouring lanes, and the logit of the target.
struct ExponentialsEpilogue : LongEpilogue {
  Exponentials* parts;   // (rows, stride)
  float* at;             // (rows)
  const float* bias;     // of this part of the vocabulary, or null
  const int* targets;    // (rows)
  int stride, N, first;  // token of column 0

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    constexpr unsigned kLanes = kGroup / kWidth;
    const unsigned lane = threadIdx.x % kWarp, mask = ((1u << kLanes) - 1)
                                                      << lane / kLanes * kLanes;
    float l[kWidth], most = -INFINITY, sum = 0;
    add_bias(l, product, bias, column, N);
    const int target = targets[row] - first - column;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      most = fmaxf(most, l[i]);
      if (i == target) at[row] = l[i];
    }
#pragma unroll
    for (unsigned d = 1; d < kLanes; d *= 2)
      most = fmaxf(most, __shfl_xor_sync(mask, most, static_cast<int>(d)));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += expf(l[i] - most);
#pragma unroll
    for (unsigned d = 1; d < kLanes; d *= 2) sum += __shfl_xor_sync(mask, sum, static_cast<int>(d));
    if (lane % kLanes == 0 && column < N)
      parts[static_cast<int64_t>(row) * stride + column / kGroup] = {most, sum};
  }
};

template <class T> struct SlopesEpilogue : LongEpilogue {
  T* g;               // (rows, stride)
  const float* bias;  // of this part of the vocabulary, or null
  const RowSlopes* rows;
  int64_t stride;
  int N, first;  // token of column 0

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    const RowSlopes r = rows[row];
    float l[kWidth];
    add_bias(l, product, bias, column, N);
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      l[i] = i == r.target - first - column ? r.own : expf(l[i] - r.most) * r.norm;
    store_columns(g + row * stride + column, l, N - column, true);
  }
};

struct Losses {
  double* losses;        // (R), by place in the order
  const float* weights;  // (R) or null
  const int* targets;    // (chunk)
  const float* at;       // (chunk) logits of the targets
  float grad_scale;
};

// A warp for each row of the chunk: its sum so far goes on over this part of the vocabulary; after the last part come its
// loss and what its slopes need.
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_rows_kernel(RowSlopes* rows,            // (chunk)
                                     double* totals,             // (chunk)
                                     float* maxima,              // (chunk)
                                     const Exponentials* parts,  // (chunk, stride), N in use
                                     Losses out, Counted counted, int64_t first, int64_t chunk,
                                     int64_t stride, int N, bool begins, bool ends) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp,
                place = first + r;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  if (r >= chunk) return;  // whole warps, and no barrier follows
  if (place >= *counted.count) {
    if (ends && lane == 0) rows[r] = {INFINITY, 0, 0, -1};  // its slopes are zeros
    return;
  }
  float most = begins || lane ? -INFINITY : maxima[r];
  double total = begins || lane ? 0 : totals[r];  // Σ exp(l − most)
  for (int i = lane; i < N; i += static_cast<int>(kWarp)) {
    const Exponentials part = parts[r * stride + i];
    if (part.most > most) {
      total *= exp(static_cast<double>(most) - part.most);
      most = part.most;
    }
    total += part.sum * exp(static_cast<double>(part.most) - most);
  }
  float largest = most;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, d));
  total = warp_sum(most == -INFINITY ? 0.0 : total * exp(static_cast<double>(most) - largest));
  if (lane != 0) return;
  maxima[r] = largest;
  totals[r] = total;
  if (!ends) return;
  const double w =
      (out.weights ? out.weights[counted.order[place]] : 1.0f) * static_cast<double>(*counted.each);
  const double at = static_cast<double>(out.at[r]) - largest, scale = w * out.grad_scale;
  out.losses[place] = w * (log(total) - at);
  // p − 1 from p would cancel for a confident row.
  rows[r] = {largest, static_cast<float>(scale / total),
             static_cast<float>(scale * ((exp(at) - total) / total)), out.targets[r]};
}

// ---- gradients ----------------------------------------------------------------------------------

// dh rows (gathered) = Σ_splits parts.
template <class T> __global__ void __launch_bounds__(kThreads)
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

// Sums of G over kSliceRows rows each; a thread owns a token.
constexpr int64_t kSliceRows = 64;
template <class T> __global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_slices_kernel(float* partial,  // (slices, columns)
                                       const T* g,      // (chunk, stride)
                                       Counted counted, int64_t first, int64_t columns,
                                       int64_t stride) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                begin = blockIdx.y * kSliceRows;
  if (c >= columns) return;  // no barrier follows
  const int64_t left = *counted.count - first,
                end = left < begin + kSliceRows ? left : begin + kSliceRows;
  float sum = 0;
  for (int64_t r = begin; r < end; ++r) sum += static_cast<float>(g[r * stride + c]);
  partial[blockIdx.y * columns + c] = sum;
}
__global__ void __launch_bounds__(kThreads)
    linear_cross_entropy_dbias_kernel(float* dbias,          // (columns)
                                      const float* partial,  // (slices, columns)
                                      int64_t slices, int64_t columns) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= columns) return;
  float sum = 0;
  for (int64_t i = 0; i < slices; ++i) sum += partial[i * columns + c];
  dbias[c] += sum;
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

template <class T, bool kDepthInLine> using Rows =
    std::conditional_t<std::is_same_v<T, float>, FloatOperand<kDepthInLine>,
                       MatrixOperand<kDepthInLine>>;

template <class T> struct Work {
  Stream& s;
  const T *h, *weight;
  const float* bias;
  const int* targets;
  const float* row_weights;
  T* dh;
  float *dweight, *dbias;
  double* losses;
  int64_t V, D;
  float grad_scale;
  Counted counted;
};

// What is kept of the chunk of rows.
template <class T> struct Chunk {
  int64_t rows, tokens,
      grouped;           // tokens of the vocabulary at a time: of G, and of the exponentials
  Scratch<T> h;          // (rows, D)
  Scratch<int> targets;  // (rows)
  Scratch<float> at, maxima;
  Scratch<double> totals;
  Scratch<RowSlopes> slopes;
  Scratch<uint8_t> shared;  // Exponentials, then G
  Chunk(Stream& s, int64_t R, int64_t V, int64_t D, const Limits& limits)
      : rows(std::min(R, limits.rows)),
        tokens(at_a_time(V, limits.bytes / rows / int64_t{sizeof(T)})),
        grouped(at_a_time(V, limits.bytes / rows / int64_t{sizeof(Exponentials)} * kGroup)),
        h(s, rows * D),
        targets(s, rows),
        at(s, rows),
        maxima(s, rows),
        totals(s, rows),
        slopes(s, rows),
        shared(s, rows * std::max(padded(tokens) * int64_t{sizeof(T)},
                                  ceil_div(grouped, kGroup) * int64_t{sizeof(Exponentials)})) {}
  static int64_t padded(int64_t columns) { return ceil_div<int64_t>(columns, 8) * 8; }

 private:
  // A multiple of what tiles want, unless it is all of them.
  static int64_t at_a_time(int64_t V, int64_t fit) {
    return std::min(V, std::max<int64_t>(fit / 128, 1) * 128);
  }
};

// logits of the tokens from v0 on, to an epilogue.
template <class T, class E> void multiply_logits(const Work<T>& w, Chunk<T>& c, int64_t first,
                                                 int64_t v0, int64_t tokens, const E& epilogue) {
  launch_gemm(w.s, Rows<T, true>(c.h.data(), c.rows, w.D, w.D),
              Rows<T, true>(w.weight + v0 * w.D, tokens, w.D, w.D), c.rows, tokens, w.D,
              CountedRows(epilogue, w.counted, first, true), Splits{1, w.D});
}

template <class T> void sum_exponentials(const Work<T>& w, Chunk<T>& c, int64_t first) {
  auto* const parts = reinterpret_cast<Exponentials*>(c.shared.data());
  const Losses losses{w.losses, w.row_weights, c.targets.data(), c.at.data(), w.grad_scale};
  for (int64_t v0 = 0; v0 < w.V; v0 += c.grouped) {
    const int64_t tokens = std::min(c.grouped, w.V - v0), stride = ceil_div(tokens, kGroup);
    ExponentialsEpilogue epilogue{};
    epilogue.parts = parts;
    epilogue.at = c.at.data();
    epilogue.bias = w.bias ? w.bias + v0 : nullptr;
    epilogue.targets = c.targets.data();
    epilogue.stride = static_cast<int>(stride);
    epilogue.N = static_cast<int>(tokens);
    epilogue.first = static_cast<int>(v0);
    multiply_logits(w, c, first, v0, tokens, epilogue);
    launch(linear_cross_entropy_rows_kernel,
           static_cast<unsigned>(ceil_div<int64_t>(c.rows, kWarps)), kThreads, 0, w.s,
           c.slopes.data(), c.totals.data(), c.maxima.data(),
           static_cast<const Exponentials*>(parts), losses, w.counted, first, c.rows, stride,
           static_cast<int>(stride), v0 == 0, v0 + tokens == w.V);
  }
}

template <class T> void add_gradients(const Work<T>& w, Chunk<T>& c, int64_t first) {
  const unsigned rows = static_cast<unsigned>(c.rows);
  T* const g = reinterpret_cast<T*>(c.shared.data());
  const int64_t row = c.padded(w.D);
  const Splits splits = splits_of(c.rows, w.D, c.tokens);
  Scratch<float> dh(w.s, w.dh ? splits.count * c.rows * row : 0);
  const int64_t slices = ceil_div(c.rows, kSliceRows);
  Scratch<float> sums(w.s, w.dbias ? slices * c.tokens : 0);
  for (int64_t v0 = 0; v0 < w.V; v0 += c.tokens) {
    const int64_t tokens = std::min(c.tokens, w.V - v0), stride = c.padded(tokens);
    const T* const weight = w.weight + v0 * w.D;
    SlopesEpilogue<T> epilogue{};
    epilogue.g = g;
    epilogue.bias = w.bias ? w.bias + v0 : nullptr;
    epilogue.rows = c.slopes.data();
    epilogue.stride = stride;
    epilogue.N = static_cast<int>(tokens);
    epilogue.first = static_cast<int>(v0);
    multiply_logits(w, c, first, v0, tokens, epilogue);
    // Tiles of rows that don't count have left what was in G: nothing below reads it.
    if (w.dh)
      launch_gemm(
          w.s, Rows<T, true>(g, c.rows, tokens, stride), Rows<T, false>(weight, tokens, w.D, w.D),
          c.rows, w.D, tokens,
          CountedRows(StoreEpilogue<float>(dh.data(), nullptr, w.D, row, v0 > 0, c.rows * row),
                      w.counted, first, true),
          splits);
    if (w.dweight)
      launch_gemm(w.s, Rows<T, false>(g, c.rows, tokens, stride),
                  Rows<T, false>(c.h.data(), c.rows, w.D, w.D), tokens, w.D, c.rows,
                  CountedRows(StoreEpilogue<float>(w.dweight + v0 * w.D, nullptr, w.D, w.D, true),
                              w.counted, first, false),
                  Splits{1, c.rows});
    if (w.dbias) {
      const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(tokens, kThreads));
      launch(linear_cross_entropy_slices_kernel<T>, dim3(blocks, static_cast<unsigned>(slices)),
             kThreads, 0, w.s, sums.data(), static_cast<const T*>(g), w.counted, first, tokens,
             stride);
      launch(linear_cross_entropy_dbias_kernel, blocks, kThreads, 0, w.s, w.dbias + v0,
             static_cast<const float*>(sums.data()), slices, tokens);
    }
  }
  if (w.dh)
    launch(linear_cross_entropy_dh_kernel<T>, rows, kThreads, 0, w.s, w.dh,
           static_cast<const float*>(dh.data()), w.counted, first, w.D, row, c.rows * row,
           static_cast<int>(splits.count));
}

void forward_backward(Stream& s, Tensor loss, Tensor dh, Tensor dweight, Tensor dbias, Tensor h,
                      Tensor weight, Tensor bias, Tensor targets, Tensor weights, int64_t R,
                      int64_t V, int64_t D, int64_t groups, float denominator, float grad_scale,
                      const Limits* fewer = nullptr) {
  if (R == 0) return;
  check_extent(R, V, D);
  dispatch_element(h.dtype, [&](auto t) {
    using T = decltype(t);
    Scratch<int> order(s, R + 1);
    Scratch<float> each(s, 1);
    Scratch<double> losses(s, R);
    Chunk<T> chunk(s, R, V, D, fewer ? *fewer : limits_of<T>(D));
    const Counted counted{order.data(), order.data() + R, each.data()};
    const Work<T> work{s,
                       h.as<T>(R * D),
                       weight.as<T>(V * D),
                       bias.as_or_null<float>(V),
                       targets.as<int>(R),
                       weights.as_or_null<float>(R),
                       dh.as_or_null<T>(R * D),
                       dweight.as_or_null<float>(V * D),
                       dbias.as_or_null<float>(V),
                       losses.data(),
                       V,
                       D,
                       grad_scale,
                       counted};
    launch(linear_cross_entropy_count_kernel, 1, kWarp, 0, s, order.data(), order.data() + R,
           each.data(), work.targets, work.row_weights, R, V, denominator);
    if (work.dh)
      launch(linear_cross_entropy_zero_kernel<T>,
             static_cast<unsigned>(ceil_div<int64_t>(R * D, kThreads)), kThreads, 0, s, work.dh,
             R * D);
    for (int64_t first = 0; first < R; first += chunk.rows) {
      launch(linear_cross_entropy_gather_kernel<T>, static_cast<unsigned>(chunk.rows), kThreads, 0,
             s, chunk.h.data(), chunk.targets.data(), work.h, work.targets, counted, first, D);
      sum_exponentials(work, chunk, first);
      if (work.dh || work.dweight || work.dbias) add_gradients(work, chunk, first);
    }
    launch(linear_cross_entropy_finish_kernel, static_cast<unsigned>(groups), kThreads,
           kWarps * sizeof(double), s, loss.as<float>(groups),
           static_cast<const double*>(losses.data()), counted, R / groups);
  });
}

}  // namespace

void linear_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dh, Tensor dweight,
                                           Tensor dbias, Tensor h, Tensor weight, Tensor bias,
                                           Tensor targets, Tensor weights, int64_t R, int64_t V,
                                           int64_t D, int64_t groups, float denominator,
                                           float grad_scale) {
  forward_backward(s, loss, dh, dweight, dbias, h, weight, bias, targets, weights, R, V, D, groups,
                   denominator, grad_scale);
}

}  // namespace siglip2::cuda
