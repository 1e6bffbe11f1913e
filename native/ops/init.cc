// CPU initial values (init.h). Four elements per Philox block; bound by its rounds.
#include "init.h"
#include <algorithm>
#include "../cpu/threads.h"
#include "../op.h"
#include "../philox.h"

namespace siglip2::cpu::ISA {

void init_random(Stream&, Tensor y, int64_t N, int64_t kind, float a, int64_t seed,
                 int64_t stream) {
  float* out = y.as<float>(N);
  if (kind == 0) {
    parallel_ranges(N, 65536, [&](int64_t i0, int64_t i1) { std::fill(out + i0, out + i1, a); });
    return;
  }
  if (kind < 0 || kind > 3)
    throw std::invalid_argument("kind of initial value must be 0…3 but is " + std::to_string(kind));
  const double low =
      kind == 2 ? 0.5 * std::erfc(2 * M_SQRT1_2) : 0.0;  // the quantile range of ±2 deviations
  parallel_ranges((N + 3) / 4, 256, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      const PhiloxWords words = philox_block(seed, stream, b);
      for (int64_t i = 4 * b; i < std::min(N, 4 * b + 4); ++i)
        out[i] = initial_value(words.w[i & 3], kind, a, low);
    }
  });
}

}  // namespace siglip2::cpu::ISA

OP(init_random);
