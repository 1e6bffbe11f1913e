// Elementary functions written so that the compiler turns loops over them into vector code for each instruction set.
// Relative error of exp is below 3e-7 in float, checked against double in test/ops.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include "../tensor.h"

namespace siglip2 {

inline float exp_approx(float x) {
  // Range reduction x = n·ln2 + r, |r| ≤ ln2/2; polynomial for e^r; 2^n through the exponent bits.
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_approx(-x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^−|x|); log1p(y) = 2·atanh(y / (2 + y)) by its series, y in (0, 1].
inline float softplus(float x) {
  const float y = exp_approx(x < 0 ? x : -x);
  const float s = y / (2.0f + y), q = s * s;
  float p = 1.0f / 17;
  p = p * q + 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return (x > 0 ? x : 0.0f) + 2.0f * s * p;
}

// Φ(x), the distribution of the normal law, from e = exp(−x²/2): the tail Φ(−|x|) = e·P(t), t = 1 / (1 + 0.21|x|), with P
// fitted to a relative 1.3e-8 over |x| < 13.5.
inline float normal_cdf(float x, float e) {
  const float t = 1.0f / (1.0f + 0.21f * (x < 0 ? -x : x));
  float p = -0.0720338512f;
  p = p * t + 0.285452796f;
  p = p * t - 0.334188447f;
  p = p * t + 0.354032300f;
  p = p * t - 0.0972447948f;
  p = p * t + 0.126354762f;
  p = p * t + 0.0687901789f;
  p = p * t + 0.0851293941f;
  p = p * t + 0.0837077038f;
  const float tail = p * t * e;
  return x < 0 ? tail : 1.0f - tail;
}

// GELU, either the tanh form (flax and PyTorch "tanh"), x·σ(2u) with u = sqrt(2/π)(x + 0.044715 x³), or exact, x·Φ(x).
template <bool kExact> inline float gelu(float x) {
  if constexpr (kExact) return x * normal_cdf(x, exp_approx(-0.5f * x * x));
  const float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x * sigmoid(u2);
}
template <bool kExact> inline float gelu_gradient(float x) {
  if constexpr (kExact) {
    const float e = exp_approx(-0.5f * x * x);
    return normal_cdf(x, e) + x * e * 0.398942280f;
  }
  const float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  const float s = sigmoid(u2);
  return s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
}

// fn(std::bool_constant<exact>): a form of GELU that loops know when they are compiled.
template <class Fn> void dispatch_gelu(bool exact, Fn fn) {
  if (exact) fn(std::true_type{});
  else fn(std::false_type{});
}

}  // namespace siglip2
