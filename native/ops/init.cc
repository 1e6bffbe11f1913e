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

// Coefficients c[0] … c[7] by Horner's rule.
double polynomial(const double (&c)[8], double x) {
  double y = c[7];
  for (int i = 6; i >= 0; --i) y = y * x + c[i];
  return y;
}

// Quantile of the standard normal distribution: Wichura, "Algorithm AS 241: the percentage points of the normal
// distribution", Applied Statistics 37 (1988), to double precision for u and 1 − u above e^−25, further out than a
// 32-bit word reaches. Monotone in u, so truncation is a matter of the range of u.
double normal_quantile(double u) {
  static constexpr double a[8] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                  1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                  3.3430575583588128105e4, 2.5090809287301226727e3};
  static constexpr double b[8] = {1, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
                                  2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
                                  5.2264952788528545610e3};
  static constexpr double c[8] = {1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
                                  3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
                                  2.27238449892691845833e-2, 7.74545014278341407640e-4};
  static constexpr double d[8] = {1, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
                                  1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
                                  1.05075007164441684324e-9};
  const double q = u - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial(a, r) / polynomial(b, r);
  }
  const double r = std::sqrt(-std::log(q < 0 ? u : 1 - u)) - 1.6;
  return std::copysign(polynomial(c, r) / polynomial(d, r), q);
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
