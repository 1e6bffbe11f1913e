// GELU and its derivative: in its tanh form, x·σ(2u) with u = √(2/π)·(x + 0.044715 x³), and exact, x·Φ(x).
#pragma once
#include "common.cuh"

namespace siglip2::cuda {

// σ(2u) without overflow: e^−2u is at most infinite, whose reciprocal is zero.
__device__ __forceinline__ float gelu_gate(float x) {
  const float u2 = 1.5957691216057308f * (x + 0.044715f * x * x * x);
  return 1.0f / (1.0f + expf(-u2));
}
__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x); }
__device__ __forceinline__ float gelu_gradient(float x) {
  const float s = gelu_gate(x);
  return s + x * s * (1.0f - s) * 1.5957691216057308f * (1.0f + 0.134145f * x * x);
}

// Φ(x), accurate in the tail too.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * erfcf(-0.70710678f * x); }
__device__ __forceinline__ float gelu(float x, bool exact) {
  return exact ? x * normal_cdf(x) : gelu(x);
}
__device__ __forceinline__ float gelu_gradient(float x, bool exact) {
  return exact ? normal_cdf(x) + x * 0.39894228f * expf(-0.5f * x * x) : gelu_gradient(x);
}

}  // namespace siglip2::cuda
