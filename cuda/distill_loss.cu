// Self-distillation loss and its gradient (formula in native/ops/distill_loss.h). Bound by memory:
// one block takes a student row and its teacher row and reads both twice, first for the maxima and
// sums of two softmaxes at once (online, so there is no pass for the maxima alone), then for the
// loss and the gradient, which is written once. The views that share a teacher row find it in the
// L2 cache. Row losses are added up at the end by one block in a fixed order.
#include "../native/ops/distill_loss.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarp;
constexpr float kLowest = -3.402823466e38f;  // below every logit, and finite: differences stay so

// Σ exp(x − most) over the values seen so far.
struct Softmax {
  float most = kLowest, sum = 0;

  __device__ __forceinline__ void add(float x) {
    if (x > most) {
      sum = sum * expf(most - x) + 1.0f;
      most = x;
    } else {
      sum += expf(x - most);
    }
  }
  __device__ __forceinline__ void add(const Softmax& other) {
    const float larger = fmaxf(most, other.most);
    sum = sum * expf(most - larger) + other.sum * expf(other.most - larger);
    most = larger;
  }
};

// All threads get the block's softmax; `shared` holds one for each warp.
__device__ __forceinline__ Softmax block_softmax(Softmax own, Softmax* shared) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    Softmax other;
    other.most = __shfl_xor_sync(kAllLanes, own.most, d);
    other.sum = __shfl_xor_sync(kAllLanes, own.sum, d);
    own.add(other);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = own;
  __syncthreads();
  Softmax total = shared[0];
  for (unsigned w = 1; w < kWarps; ++w) total.add(shared[w]);
  return total;
}

template <class T> __global__ void __launch_bounds__(kThreads)
    distill_loss_rows_kernel(float* rows,           // (R) scale · weight · ce
                             T* dstudent,           // (R, K) or null; may be student
                             const T* student,      // (R, K)
                             const T* teacher,      // (teacher_rows, K)
                             const float* centre,   // (K)
                             const float* weights,  // (R) or null
                             int64_t teacher_rows, int64_t K, float student_sharpen,
                             float teacher_sharpen, float scale) {
  DYN_SMEM(smem);
  auto* const shared = reinterpret_cast<Softmax*>(smem);
  const int64_t row = blockIdx.x;
  const T* const s = student + row * K;
  const T* const t = teacher + row % teacher_rows * K;
  T* const g = dstudent ? dstudent + row * K : nullptr;
  const float factor = scale * (weights ? weights[row] : 1.0f);
  Softmax own_q, own_p;
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    own_q.add(static_cast<float>(s[k]) * student_sharpen);
    own_p.add((static_cast<float>(t[k]) - centre[k]) * teacher_sharpen);
  }
  const Softmax q = block_softmax(own_q, shared), p = block_softmax(own_p, shared + kWarps);
  const float log_sum = logf(q.sum), q_norm = 1.0f / q.sum, p_norm = 1.0f / p.sum;
  const float slope = factor * student_sharpen;
  float ce = 0;
  for (int64_t k = threadIdx.x; k < K; k += kThreads) {
    const float l = static_cast<float>(s[k]) * student_sharpen - q.most;
    const float target =
        expf((static_cast<float>(t[k]) - centre[k]) * teacher_sharpen - p.most) * p_norm;
    ce += target * (log_sum - l);
    // A row of weight 0 has no gradient whatever its logits are.
    if (g) g[k] = static_cast<T>(factor != 0 ? slope * (expf(l) * q_norm - target) : 0.0f);
  }
  const float total = block_sum(ce, reinterpret_cast<float*>(shared + 2 * kWarps));
  if (threadIdx.x == 0) rows[row] = factor != 0 ? factor * total : 0.0f;
}

__global__ void __launch_bounds__(kThreads) distill_loss_finish_kernel(float* loss,        // (1)
                                                                       const float* rows,  // (R)
                                                                       int64_t R) {
  DYN_SMEM(smem);
  double own = 0;
  for (int64_t r = threadIdx.x; r < R; r += kThreads) own += static_cast<double>(rows[r]);
  const double total = block_sum(own, reinterpret_cast<double*>(smem));
  if (threadIdx.x == 0) *loss += static_cast<float>(total);
}

}  // namespace

// ---- launcher -----------------------------------------------------------------------------------

void distill_loss_forward_backward(Stream& stream, Tensor loss, Tensor dstudent, Tensor student,
                                   Tensor teacher, Tensor centre, Tensor weights, int64_t R,
                                   int64_t T, int64_t K, float student_temperature,
                                   float teacher_temperature, float scale) {
  if (R == 0 || K == 0) return;
  if (T <= 0 || R % T != 0)
    throw std::invalid_argument("the student rows are not a multiple of the teacher rows");
  Scratch<float> rows(stream, R);
  dispatch_element(student.dtype, [&](auto type) {
    using E = decltype(type);
    launch(distill_loss_rows_kernel<E>, static_cast<unsigned>(R), kThreads,
           2 * kWarps * sizeof(Softmax) + kWarps * sizeof(float), stream, rows.data(),
           dstudent.as_or_null<E>(R * K), student.as<const E>(R * K), teacher.as<const E>(T * K),
           centre.as<const float>(K), weights.as_or_null<const float>(R), T, K,
           1.0f / student_temperature, 1.0f / teacher_temperature, scale);
  });
  launch(distill_loss_finish_kernel, 1, kThreads, kWarps * sizeof(double), stream,
         loss.as<float>(1), rows.data(), R);
}

}  // namespace siglip2::cuda
