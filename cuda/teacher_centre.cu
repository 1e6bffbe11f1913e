// Centre and statistics of the self-distillation teacher (formulas in native/ops/teacher_centre.h).
// Bound by memory. A column sum belongs to one thread, which walks down the rows in order;
// neighbouring threads read neighbouring columns. A row's softmax belongs to one block.
#include "../native/ops/teacher_centre.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarp;
constexpr float kLowest = -3.402823466e38f;  // below every logit, and finite: differences stay so

unsigned column_blocks(int64_t K) { return static_cast<unsigned>(ceil_div<int64_t>(K, kThreads)); }

template <class T> __global__ void __launch_bounds__(kThreads)
    teacher_mean_kernel(float* mean,       // (K)
                        const T* teacher,  // (R, K)
                        int64_t R, int64_t K) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= K) return;
  double sum = 0;
  for (int64_t r = 0; r < R; ++r)
    sum += static_cast<double>(static_cast<float>(teacher[r * K + k]));
  mean[k] = static_cast<float>(sum / static_cast<double>(R));
}

__global__ void __launch_bounds__(kThreads) centre_update_kernel(float* centre,      // (K)
                                                                 const float* mean,  // (K)
                                                                 int64_t K, float momentum) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k < K) centre[k] = momentum * centre[k] + (1.0f - momentum) * mean[k];
}

// The block's maximum, for every thread.
__device__ __forceinline__ float block_max(float v, float* shared) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = v;
  __syncthreads();
  float most = shared[0];
  for (unsigned w = 1; w < kWarps; ++w) most = fmaxf(most, shared[w]);
  return most;
}

template <class T> __global__ void __launch_bounds__(kThreads)
    teacher_rows_kernel(float* rows,          // (3, R): maximum, 1/Σ exp, entropy
                        const T* teacher,     // (R, K)
                        const float* centre,  // (K)
                        int64_t R, int64_t K, float sharpen) {
  DYN_SMEM(smem);
  auto* const shared = reinterpret_cast<float*>(smem);
  const T* const t = teacher + static_cast<int64_t>(blockIdx.x) * K;
  float own = kLowest;
  for (int64_t k = threadIdx.x; k < K; k += kThreads)
    own = fmaxf(own, (static_cast<float>(t[k]) - centre[k]) * sharpen);
  const float most = block_max(own, shared);
  float sum = 0, dot = 0;
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const float l = (static_cast<float>(t[k]) - centre[k]) * sharpen - most;
    const float e = expf(l);
    sum += e;
    dot += e * l;
  }
  const float total = block_sum(sum, shared + kWarps);
  const float total_dot = block_sum(dot, shared + 2 * kWarps);
  if (threadIdx.x != 0) return;
  rows[blockIdx.x] = most;
  rows[R + blockIdx.x] = 1.0f / total;
  rows[2 * R + blockIdx.x] = logf(total) - total_dot / total;
}

template <class T> __global__ void __launch_bounds__(kThreads)
    teacher_mean_probability_kernel(float* mean,          // (K)
                                    const T* teacher,     // (R, K)
                                    const float* centre,  // (K)
                                    const float* rows,    // (3, R)
                                    int64_t R, int64_t K, float sharpen) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (k >= K) return;
  double sum = 0;
  for (int64_t r = 0; r < R; ++r) {
    const float l = (static_cast<float>(teacher[r * K + k]) - centre[k]) * sharpen - rows[r];
    sum += static_cast<double>(expf(l) * rows[R + r]);
  }
  mean[k] = static_cast<float>(sum / static_cast<double>(R));
}

__global__ void __launch_bounds__(kThreads)
    teacher_statistics_finish_kernel(float* result,      // (3)
                                     const float* rows,  // (3, R)
                                     const float* mean,  // (K)
                                     int64_t R, int64_t K) {
  DYN_SMEM(smem);
  auto* const shared = reinterpret_cast<double*>(smem);
  double entropy = 0, entropy_of_mean = 0;
  float largest = 0;
  for (int64_t r = threadIdx.x; r < R; r += kThreads)
    entropy += static_cast<double>(rows[2 * R + r]);
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const float p = mean[k];
    if (p > 0) entropy_of_mean -= static_cast<double>(p) * static_cast<double>(logf(p));
    largest = fmaxf(largest, p);
  }
  const double total = block_sum(entropy, shared);
  const double total_of_mean = block_sum(entropy_of_mean, shared + kWarps);
  const float most = block_max(largest, reinterpret_cast<float*>(shared + 2 * kWarps));
  if (threadIdx.x != 0) return;
  result[0] = static_cast<float>(total / static_cast<double>(R));
  result[1] = static_cast<float>(total_of_mean);
  result[2] = most;
}

void check_rows(int64_t R) {
  if (R <= 0) throw std::invalid_argument("the mean of no teacher rows was asked for");
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void teacher_mean(Stream& s, Tensor mean, Tensor teacher, int64_t R, int64_t K) {
  check_rows(R);
  dispatch_element(teacher.dtype, [&](auto type) {
    using E = decltype(type);
    launch(teacher_mean_kernel<E>, column_blocks(K), kThreads, 0, s, mean.as<float>(K),
           teacher.as<const E>(R * K), R, K);
  });
}

void centre_update(Stream& s, Tensor centre, Tensor mean, int64_t K, float momentum) {
  launch(centre_update_kernel, column_blocks(K), kThreads, 0, s, centre.as<float>(K),
         mean.as<const float>(K), K, momentum);
}

void teacher_statistics(Stream& s, Tensor result, Tensor teacher, Tensor centre, int64_t R,
                        int64_t K, float temperature) {
  check_rows(R);
  const float sharpen = 1.0f / temperature;
  const float* const c = centre.as<const float>(K);
  Scratch<float> rows(s, 3 * R);
  Scratch<float> mean(s, K);
  dispatch_element(teacher.dtype, [&](auto type) {
    using E = decltype(type);
    const E* const t = teacher.as<const E>(R * K);
    launch(teacher_rows_kernel<E>, static_cast<unsigned>(R), kThreads, 3 * kWarps * sizeof(float),
           s, rows.data(), t, c, R, K, sharpen);
    launch(teacher_mean_probability_kernel<E>, column_blocks(K), kThreads, 0, s, mean.data(), t, c,
           rows.data(), R, K, sharpen);
  });
  launch(teacher_statistics_finish_kernel, 1, kThreads, 3 * kWarps * sizeof(double), s,
         result.as<float>(3), rows.data(), mean.data(), R, K);
}

}  // namespace siglip2::cuda
