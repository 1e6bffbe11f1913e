// AdamW over a flat arena, with gradient clipping, the moving average and the bf16 copy in the same
// pass. Bound by memory: 16 bytes read and 12 written for each parameter, 8 more for the average, 2
// for the copy. So one kernel, four elements for each thread and step, and nothing waits for the
// host: the clip factor comes from norm2.
//
// A block takes a chunk of the arena. It finds the segment of its first element by binary search;
// segments are much longer than a chunk as a rule, so its threads walk on from there.
#include "../native/ops/adamw.h"
#include <cmath>
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kChunk =
    4 * kThreads * 4;  // elements of one block: four steps of four elements for each thread
constexpr int64_t kMaxNormBlocks = 1024;  // fixed, so that the order of the sum depends on N alone

// ---- sum of squares -----------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) sum_of_squares_kernel(double* partial,  // (blocks)
                                                                  const float* x,   // (N)
                                                                  int64_t N, bool packs) {
  DYN_SMEM(smem);
  float total[4] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4; i < N;
       i += stride) {
    float v[4] = {};
    if (packs && i + 4 <= N) Pack<float>::load(x + i).unpack(v);
    else
      for (int64_t k = 0; k < 4 && i + k < N; ++k) v[k] = x[i + k];
#pragma unroll
    for (int k = 0; k < 4; ++k) total[k] += v[k] * v[k];
  }
  const double own =
      (static_cast<double>(total[0]) + total[1]) + (static_cast<double>(total[2]) + total[3]);
  const double sum = block_sum(own, reinterpret_cast<double*>(smem));
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_of_squares_finish_kernel(float* result,          // (1)
                                 const double* partial,  // (blocks)
                                 int64_t blocks) {
  DYN_SMEM(smem);
  double total = 0;
  for (int64_t b = threadIdx.x; b < blocks; b += kThreads) total += partial[b];
  const double sum = block_sum(total, reinterpret_cast<double*>(smem));
  if (threadIdx.x == 0) *result = static_cast<float>(sum);
}

// ---- step ---------------------------------------------------------------------------------------

struct AdamW {
  float* param;             // (N)
  float* m;                 // (N)
  float* v;                 // (N)
  float* ema;               // (N) or null
  __nv_bfloat16* copy;      // (N) or null
  const float* grad;        // (N)
  const float* norm2;       // (1)
  const int32_t* segments;  // (S, 2)
  const float* lr_scale;    // (S)
  const float* rates;       // (4) in place of lr, decay and corrections, or null
  int64_t N, S;
  float lr, beta1, beta2, eps, decay, clip, ema_decay;
  float correction1, correction2;  // 1 / (1 − β^t)
  bool packs;                      // every tensor of N elements can be read in 16-byte packs
};

// The first segment that ends after element i.
__device__ __forceinline__ int64_t segment_of(const AdamW& a, int64_t i) {
  int64_t low = 0, high = a.S - 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (a.segments[2 * middle] > i) high = middle;
    else low = middle + 1;
  }
  return low;
}

__device__ __forceinline__ void load_4(float (&v)[4], const float* p, int64_t i, int64_t N,
                                       bool packs) {
  if (packs && i + 4 <= N) return Pack<float>::load(p + i).unpack(v);
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = i + k < N ? p[i + k] : 0.0f;
}
__device__ __forceinline__ void store_4(float* p, const float (&v)[4], int64_t i, int64_t N,
                                        bool packs) {
  if (packs && i + 4 <= N) return Pack<float>::from(v).store(p + i);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (i + k < N) p[i + k] = v[k];
}
__device__ __forceinline__ void store_4(__nv_bfloat16* p, const float (&v)[4], int64_t i, int64_t N,
                                        bool packs) {
  if (packs && i + 4 <= N) {
    *reinterpret_cast<uint2*>(p + i) = uint2{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])};
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (i + k < N) p[i + k] = static_cast<__nv_bfloat16>(v[k]);
}

__global__ void __launch_bounds__(kThreads) adamw_step_kernel(const __grid_constant__ AdamW a) {
  const float norm = sqrtf(*a.norm2);
  const float factor = norm > a.clip ? a.clip / norm : 1.0f;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t end = begin + kChunk < a.N ? begin + kChunk : a.N;
  int64_t segment = segment_of(a, begin);
  const float base_lr = a.rates ? a.rates[0] : a.lr, base_decay = a.rates ? a.rates[1] : a.decay;
  const float correction1 = a.rates ? a.rates[2] : a.correction1,
              correction2 = a.rates ? a.rates[3] : a.correction2;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * 4; i < end; i += kThreads * 4) {
    float param[4], m[4], v[4], g[4];
    load_4(param, a.param, i, a.N, a.packs);
    load_4(m, a.m, i, a.N, a.packs);
    load_4(v, a.v, i, a.N, a.packs);
    load_4(g, a.grad, i, a.N, a.packs);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      while (segment + 1 < a.S && a.segments[2 * segment] <= i + k) ++segment;
      const float lr = base_lr * a.lr_scale[segment];
      const float decay = a.segments[2 * segment + 1] & 1 ? base_decay : 0.0f;
      const float clipped = g[k] * factor;
      m[k] = a.beta1 * m[k] + (1.0f - a.beta1) * clipped;
      v[k] = a.beta2 * v[k] + (1.0f - a.beta2) * clipped * clipped;
      const float update = m[k] * correction1 / (sqrtf(v[k] * correction2) + a.eps);
      param[k] -= lr * update + decay * param[k];
    }
    store_4(a.param, param, i, a.N, a.packs);
    store_4(a.m, m, i, a.N, a.packs);
    store_4(a.v, v, i, a.N, a.packs);
    if (a.copy) store_4(a.copy, param, i, a.N, a.packs);
    if (a.ema) {
      float ema[4];
      load_4(ema, a.ema, i, a.N, a.packs);
#pragma unroll
      for (int k = 0; k < 4; ++k) ema[k] += (1.0f - a.ema_decay) * (param[k] - ema[k]);
      store_4(a.ema, ema, i, a.N, a.packs);
    }
  }
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void sum_of_squares(Stream& s, Tensor result, Tensor x, int64_t N) {
  const float* const from = x.as<float>(N);
  float* const to = result.as<float>(1);
  const int64_t wanted = ceil_div<int64_t>(N, kChunk);
  const int64_t blocks = wanted < 1 ? 1 : wanted < kMaxNormBlocks ? wanted : kMaxNormBlocks;
  constexpr size_t smem = kThreads / kWarp * sizeof(double);
  Scratch<double> partial(s, blocks);
  launch(sum_of_squares_kernel, static_cast<unsigned>(blocks), kThreads, smem, s, partial.data(),
         from, N, aligned_16(from));
  launch(sum_of_squares_finish_kernel, 1, kThreads, smem, s, to, partial.data(), blocks);
}

void adamw_step(Stream& s, Tensor param, Tensor m, Tensor v, Tensor ema, Tensor copy, Tensor grad,
                Tensor norm2, Tensor segments, Tensor lr_scale, Tensor rates, int64_t N, int64_t S,
                int64_t step, float lr, float beta1, float beta2, float eps, float decay,
                float clip, float ema_decay) {
  if (N == 0) return;
  if (N > INT32_MAX)
    throw std::invalid_argument("adamw_step: the arena has more than 2^31 - 1 elements");
  if (S < 1 || (step < 1 && !rates))
    throw std::invalid_argument("adamw_step: segments and step must be at least 1");
  AdamW a{};
  a.param = param.as<float>(N);
  a.m = m.as<float>(N);
  a.v = v.as<float>(N);
  a.ema = ema.as_or_null<float>(N);
  a.copy = copy.as_or_null<__nv_bfloat16>(N);
  a.grad = grad.as<float>(N);
  a.norm2 = norm2.as<float>(1);
  a.segments = segments.as<int32_t>(2 * S);
  a.lr_scale = lr_scale.as<float>(S);
  a.rates = rates.as_or_null<float>(4);
  a.N = N;
  a.S = S;
  a.lr = lr;
  a.beta1 = beta1;
  a.beta2 = beta2;
  a.eps = eps;
  a.decay = decay;
  a.clip = clip;
  a.ema_decay = ema_decay;
  const double t = static_cast<double>(step);
  // Unused with rates, where the step is not known here.
  a.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta1), t)));
  a.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta2), t)));
  a.packs = aligned_16(a.param, a.m, a.v, a.ema, a.copy, a.grad);
  launch(adamw_step_kernel, static_cast<unsigned>(ceil_div<int64_t>(N, kChunk)), kThreads, 0, s, a);
}

}  // namespace siglip2::cuda
