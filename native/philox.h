// Random numbers that are a function of (seed, stream, index) alone, for the CPU and the CUDA kernels alike:
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and the quantile of the normal
// distribution. Plain arithmetic, so that both give the same words; log may differ in the last bit of a double.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define SIGLIP2_BOTH __host__ __device__
#else
#define SIGLIP2_BOTH
#endif

namespace siglip2 {

struct PhiloxWords {
  uint32_t w[4];
};

SIGLIP2_BOTH inline PhiloxWords philox(PhiloxWords c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.w[0], p1 = uint64_t{0xCD9E8D57} * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}
// The four words of block `block` of a stream: elements 4·block to 4·block + 3.
SIGLIP2_BOTH inline PhiloxWords philox_block(int64_t seed, int64_t stream, int64_t block) {
  return philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                  static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// In (0, 1): the half step keeps log() and the quantile finite.
SIGLIP2_BOTH inline double unit_interval(uint32_t w) { return (w + 0.5) / 4294967296.0; }

// Coefficients c[0] … c[7] by Horner's rule.
SIGLIP2_BOTH inline double polynomial_8(const double (&c)[8], double x) {
  double y = c[7];
  for (int i = 6; i >= 0; --i) y = y * x + c[i];
  return y;
}

// Quantile of the standard normal distribution: Wichura, "Algorithm AS 241: the percentage points of the normal
// distribution", Applied Statistics 37 (1988), to double precision for u and 1 − u above e^−25, further out than a
// 32-bit word reaches. Monotone in u, so truncation is a matter of the range of u.
SIGLIP2_BOTH inline double normal_quantile(double u) {
  constexpr double a[8] = {3.3871328727963666080e0, 1.3314166789178437745e2,
                           1.9715909503065514427e3, 1.3731693765509461125e4,
                           4.5921953931549871457e4, 6.7265770927008700853e4,
                           3.3430575583588128105e4, 2.5090809287301226727e3};
  constexpr double b[8] = {1,
                           4.2313330701600911252e1,
                           6.8718700749205790830e2,
                           5.3941960214247511077e3,
                           2.1213794301586595867e4,
                           3.9307895800092710610e4,
                           2.8729085735721942674e4,
                           5.2264952788528545610e3};
  constexpr double c[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                           5.76949722146069140550e0,  3.64784832476320460504e0,
                           1.27045825245236838258e0,  2.41780725177450611770e-1,
                           2.27238449892691845833e-2, 7.74545014278341407640e-4};
  constexpr double d[8] = {1,
                           2.05319162663775882187e0,
                           1.67638483018380384940e0,
                           6.89767334985100004550e-1,
                           1.48103976427480074590e-1,
                           1.51986665636164571966e-2,
                           5.47593808499534494600e-4,
                           1.05075007164441684324e-9};
  const double q = u - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * polynomial_8(a, r) / polynomial_8(b, r);
  }
  const double r = std::sqrt(-std::log(q < 0 ? u : 1 - u)) - 1.6;
  return std::copysign(polynomial_8(c, r) / polynomial_8(d, r), q);
}

// One value by native/ops/init.h's kind (1 to 3); low: the quantile at the lower end of a truncated normal.
SIGLIP2_BOTH inline float initial_value(uint32_t word, int64_t kind, float a, double low) {
  const double u = unit_interval(word);
  return static_cast<float>(a * (kind == 3 ? 2 * u - 1 : normal_quantile(low + (1 - 2 * low) * u)));
}

}  // namespace siglip2
