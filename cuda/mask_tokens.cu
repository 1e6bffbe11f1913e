// Mask tokens (native/ops/mask_tokens.h). Copies; bound by memory. In backward a thread owns one
// dimension of one position and walks over the samples in order: that is the gradient of the
// position. A second kernel adds the positions up to the gradient of the token.
#include "../native/ops/mask_tokens.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

template <class T> __global__ void __launch_bounds__(kThreads)
    mask_tokens_forward_kernel(T* y,                   // (B, N, D)
                               const T* x,             // (B, N, D)
                               const float* token,     // (D)
                               const float* position,  // (N, D)
                               const uint8_t* mask,    // (B, N)
                               int64_t N, int64_t D) {
  const int64_t row = blockIdx.x, n = row % N;
  const bool masked = mask[row] != 0;
  for (int64_t d = threadIdx.x; d < D; d += kThreads)
    y[row * D + d] = masked ? static_cast<T>(token[d] + position[n * D + d]) : x[row * D + d];
}

template <class T> __global__ void __launch_bounds__(kThreads)
    mask_tokens_backward_kernel(T* dx,                // (B, N, D) or null
                                float* sums,          // (N, D) or null
                                float* dposition,     // (N, D) or null
                                const T* dy,          // (B, N, D)
                                const uint8_t* mask,  // (B, N)
                                int64_t B, int64_t N, int64_t D) {
  const int64_t n = blockIdx.y;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (d >= D) return;
  float sum = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t row = b * N + n;
    const bool masked = mask[row] != 0;
    const T g = dy[row * D + d];
    if (masked) sum += static_cast<float>(g);
    if (dx) dx[row * D + d] = masked ? static_cast<T>(0.0f) : g;
  }
  if (sums) sums[n * D + d] = sum;
  if (dposition) dposition[n * D + d] += sum;
}

__global__ void __launch_bounds__(kThreads) mask_tokens_token_kernel(float* dtoken,      // (D)
                                                                     const float* sums,  // (N, D)
                                                                     int64_t N, int64_t D) {
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (d >= D) return;
  float sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += sums[n * D + d];
  dtoken[d] += sum;
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void mask_tokens_forward(Stream& s, Tensor y, Tensor x, Tensor token, Tensor position, Tensor mask,
                         int64_t B, int64_t N, int64_t D) {
  if (B * N * D == 0) return;
  dispatch_element(x.dtype, [&](auto type) {
    using E = decltype(type);
    launch(mask_tokens_forward_kernel<E>, static_cast<unsigned>(B * N), kThreads, 0, s,
           y.as<E>(B * N * D), x.as<const E>(B * N * D), token.as<const float>(D),
           position.as<const float>(N * D), mask.as<const uint8_t>(B * N), N, D);
  });
}

void mask_tokens_backward(Stream& s, Tensor dx, Tensor dtoken, Tensor dposition, Tensor dy,
                          Tensor mask, int64_t B, int64_t N, int64_t D) {
  if (B * N * D == 0) return;
  float* const token = dtoken.as_or_null<float>(D);
  Scratch<float> sums(s, token ? N * D : 0);
  const auto columns = static_cast<unsigned>(ceil_div<int64_t>(D, kThreads));
  dispatch_element(dy.dtype, [&](auto type) {
    using E = decltype(type);
    launch(mask_tokens_backward_kernel<E>, dim3(columns, static_cast<unsigned>(N)), kThreads, 0, s,
           dx.as_or_null<E>(B * N * D), sums.data(), dposition.as_or_null<float>(N * D),
           dy.as<const E>(B * N * D), mask.as<const uint8_t>(B * N), B, N, D);
  });
  if (token) launch(mask_tokens_token_kernel, columns, kThreads, 0, s, token, sums.data(), N, D);
}

}  // namespace siglip2::cuda
