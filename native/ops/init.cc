// CPU initial values (init.h). Four elements per Philox block; bound by its rounds.
#include "init.h"
#include <array>
#include <cmath>
#include "../cpu/threads.h"

namespace siglip2::cpu::ISA {

namespace {

using Words = std::array<uint32_t, 4>;

Words philox(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// In (0, 1): the half step keeps log() and the quantile finite.
double unit(uint32_t w) { return (w + 0.5) / 4294967296.0; }

// Quantile of the standard normal distribution: a rational first guess (Abramowitz & Stegun 26.2.23, error < 4.5e-4)
// and two Newton steps on erfc, to double precision. Monotone in u, so truncation is a matter of the range of u.
double normal_quantile(double u) {
  const double p = u < 0.5 ? u : 1 - u, t = std::sqrt(-2 * std::log(p));
  double x = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  for (int i = 0; i < 2; ++i) {
    const double tail = 0.5 * std::erfc(x * M_SQRT1_2), density = std::exp(-0.5 * x * x) * 0.3989422804014327;
    x += (tail - p) / density;
  }
  return u < 0.5 ? -x : x;
}

}  // namespace

void init_random(Stream&, Tensor y, int64_t N, int64_t kind, float a, int64_t seed, int64_t stream) {
  float* out = y.as<float>(N);
  if (kind == 0) {
    parallel_ranges(N, 65536, [&](int64_t i0, int64_t i1) { std::fill(out + i0, out + i1, a); });
    return;
  }
  if (kind < 0 || kind > 3) throw std::invalid_argument("kind of initial value must be 0…3 but is " + std::to_string(kind));
  const double low = kind == 2 ? 0.5 * std::erfc(2 * M_SQRT1_2) : 0.0;  // the quantile range of ±2 deviations
  parallel_ranges((N + 3) / 4, 256, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      const Words w = philox({static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32), static_cast<uint32_t>(stream),
                              static_cast<uint32_t>(stream >> 32)},
                             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
      for (int64_t i = 4 * b; i < std::min(N, 4 * b + 4); ++i) {
        const double u = unit(w[static_cast<size_t>(i & 3)]);
        out[i] = static_cast<float>(a * (kind == 3 ? 2 * u - 1 : normal_quantile(low + (1 - 2 * low) * u)));
      }
    }
  });
}

}  // namespace siglip2::cpu::ISA

OP(init_random);
