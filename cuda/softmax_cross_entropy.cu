// Softmax cross-entropy with its gradient (native/ops/softmax_cross_entropy.h). Bound by memory: a block takes a row
// and reads it twice, once for maximum and sum of exponentials together (the sum is scaled down whenever the maximum
// grows), once for the gradient, then mostly from the L2 cache. Sums: float within a pack, double beyond; the blocks'
// losses are added in order at the end.
#include "../native/ops/softmax_cross_entropy.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kFinishThreads = 1024;

// ---- one over the sum of the weights that count -------------------------------------------------

__global__ void __launch_bounds__(kFinishThreads)
    cross_entropy_count_kernel(double* each,            // (1) 1 / denominator; 0 when no row counts
                               const int32_t* targets,  // (R)
                               const float* weights,    // (R) or null
                               int64_t R, int64_t V, float denominator) {
  DYN_SMEM(smem);
  double own = 0;
  for (int64_t r = threadIdx.x; r < R; r += kFinishThreads)
    if (targets[r] >= 0 && targets[r] < V) own += weights ? weights[r] : 1.0f;
  const double counted = block_sum(own, reinterpret_cast<double*>(smem));
  if (threadIdx.x != 0) return;
  const double total = denominator != 0 ? static_cast<double>(denominator) : counted;
  *each = total != 0 ? 1.0 / total : 0.0;
}

// ---- rows ---------------------------------------------------------------------------------------

// Σ exp(l − max) over some of a row, kept as (max, sum); and Σ l for label smoothing.
struct Sums {
  float max;
  double exp_sum, sum;
};
__device__ __forceinline__ Sums merge(const Sums& a, const Sums& b) {
  const float max = fmaxf(a.max, b.max);
  // The scale of an empty part is exp(−∞ − max) = 0, except where both are empty.
  const float scale_a = a.max == max ? 1.0f : expf(a.max - max),
              scale_b = b.max == max ? 1.0f : expf(b.max - max);
  return {max, a.exp_sum * scale_a + b.exp_sum * scale_b, a.sum + b.sum};
}
__device__ __forceinline__ Sums warp_merge(Sums v) {  // every lane gets the same
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    Sums other;
    other.max = __shfl_xor_sync(kAllLanes, v.max, d);
    other.exp_sum = __shfl_xor_sync(kAllLanes, v.exp_sum, d);
    other.sum = __shfl_xor_sync(kAllLanes, v.sum, d);
    v = merge(v, other);
  }
  return v;
}

template <class T, int kPack> __global__ void __launch_bounds__(kThreads)
    cross_entropy_rows_kernel(double* losses,          // (R)
                              T* dlogits,              // (R, V) or null; may be the logits
                              const T* logits,         // (R, V)
                              const int32_t* targets,  // (R)
                              const float* weights,    // (R) or null
                              const double* each,      // (1)
                              Faults* faults, int64_t V, float smoothing) {
  DYN_SMEM(smem);
  Sums* const shared = reinterpret_cast<Sums*>(smem);  // (warps)
  const int64_t r = blockIdx.x, first = static_cast<int64_t>(threadIdx.x) * kPack;
  constexpr int64_t kStep = kThreads * kPack;
  const T* const l = logits + r * V;
  T* const g = dlogits ? dlogits + r * V : nullptr;
  const int32_t target = targets[r];
  const bool valid = target >= 0 && target < V;
  if (!valid && target != -1 && threadIdx.x == 0)
    note_fault(faults, FaultKind::class_target, r, target, V);
  const double w = valid ? (weights ? weights[r] : 1.0f) * *each : 0.0;
  if (w == 0) {  // the whole block
    if (threadIdx.x == 0) losses[r] = 0;
    constexpr float zeros[kPack] = {};
    if (g)
      for (int64_t v = first; v < V; v += kStep) store_values(g + v, zeros);
    return;
  }
  const float at = static_cast<float>(l[target]);  // before anybody overwrites it
  Sums own{-INFINITY, 0, 0};
  for (int64_t v = first; v < V; v += kStep) {
    float x[kPack];
    load_values(x, l + v);
    float max = own.max, part = 0, plain = 0;
#pragma unroll
    for (int i = 0; i < kPack; ++i) max = fmaxf(max, x[i]);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      part += x[i] == max ? 1.0f : expf(x[i] - max);  // also where max is −∞
      plain += x[i];
    }
    own.exp_sum = (own.max == max ? own.exp_sum : own.exp_sum * expf(own.max - max)) + part;
    own.max = max;
    own.sum += plain;
  }
  own = warp_merge(own);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = own;
  __syncthreads();
  Sums row = shared[0];
  for (unsigned i = 1; i < kThreads / kWarp; ++i) row = merge(row, shared[i]);
  const double uniform = static_cast<double>(smoothing) / static_cast<double>(V);
  if (threadIdx.x == 0)  // the difference of max and l[target] is taken first: both may be large
    losses[r] =
        w * (log(row.exp_sum) + (static_cast<double>(row.max) - at) +
             smoothing * static_cast<double>(at) - (smoothing != 0 ? uniform * row.sum : 0.0));
  if (!g) return;
  const float norm = static_cast<float>(w / row.exp_sum), shift = static_cast<float>(w * uniform);
  const float hit = static_cast<float>(w * (exp(static_cast<double>(at) - row.max) / row.exp_sum -
                                            uniform - (1.0 - static_cast<double>(smoothing))));
  for (int64_t v = first; v < V; v += kStep) {
    float x[kPack];
    load_values(x, l + v);
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      x[i] = v + i == target ? hit : expf(x[i] - row.max) * norm - shift;
    store_values(g + v, x);
  }
}

__global__ void __launch_bounds__(kFinishThreads)
    cross_entropy_finish_kernel(float* loss,           // (1) +=
                                const double* losses,  // (R)
                                int64_t R) {
  DYN_SMEM(smem);
  double own = 0;
  for (int64_t r = threadIdx.x; r < R; r += kFinishThreads) own += losses[r];
  const double sum = block_sum(own, reinterpret_cast<double*>(smem));
  if (threadIdx.x == 0) *loss += static_cast<float>(sum);
}

}  // namespace

// ---- launcher -----------------------------------------------------------------------------------

void softmax_cross_entropy_forward_backward(Stream& s, Tensor loss, Tensor dlogits, Tensor logits,
                                            Tensor targets, Tensor weights, int64_t R, int64_t V,
                                            float denominator, float smoothing) {
  if (R == 0 || V == 0) return;
  const int32_t* const target = targets.as<const int32_t>(R);
  const float* const weight = weights.as_or_null<const float>(R);
  constexpr size_t kSmem = kFinishThreads / kWarp * sizeof(double);
  Scratch<double> each(s, 1), losses(s, R);
  launch(cross_entropy_count_kernel, 1, kFinishThreads, kSmem, s, each.data(), target, weight, R, V,
         denominator);
  dispatch_element(logits.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const l = logits.as<const T>(R * V);
    T* const g = dlogits.as_or_null<T>(R * V);
    dispatch_packs<T>(V % Pack<T>::size == 0 && aligned_16(l, g), [&](auto pack) {
      launch(cross_entropy_rows_kernel<T, pack.value>, static_cast<unsigned>(R), kThreads,
             kThreads / kWarp * sizeof(Sums), s, losses.data(), g, l, target, weight, each.data(),
             s.faults(), V, smoothing);
    });
  });
  launch(cross_entropy_finish_kernel, 1, kFinishThreads, kSmem, s, loss.as<float>(1), losses.data(),
         R);
}

}  // namespace siglip2::cuda
