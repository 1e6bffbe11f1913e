// Random initial values (native/ops/init.h), by the same code as the CPU's (native/philox.h), so a model starts from
// the same weights on every device. Runs once; bound by double arithmetic. A thread makes the four elements of a block.
#include "../native/ops/init.h"
#include <cmath>
#include "../native/philox.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    init_random_kernel(float* y,  // (N)
                       int64_t N, int64_t kind, float a, double low, int64_t seed, int64_t stream) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (4 * block >= N) return;
  const PhiloxWords words = kind == 0 ? PhiloxWords{} : philox_block(seed, stream, block);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (4 * block + k < N)
      y[4 * block + k] = kind == 0 ? a : initial_value(words.w[k], kind, a, low);
}

}  // namespace

void init_random(Stream& s, Tensor y, int64_t N, int64_t kind, float a, int64_t seed,
                 int64_t stream) {
  if (kind < 0 || kind > 3)
    throw std::invalid_argument("kind of initial value must be 0 to 3 but is " +
                                std::to_string(kind));
  if (N == 0) return;
  const double low =
      kind == 2 ? 0.5 * std::erfc(std::sqrt(2.0)) : 0.0;  // the quantile range of ±2 deviations
  launch(init_random_kernel, static_cast<unsigned>(ceil_div<int64_t>(N, 4 * kThreads)), kThreads, 0,
         s, y.as<float>(N), N, kind, a, low, seed, stream);
}

}  // namespace siglip2::cuda
