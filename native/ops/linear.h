// Fully connected layer with weights as Hugging Face stores them: y = x·Wᵀ + b, optionally through GELU.
// `exact_gelu` is its form: x·Φ(x), or else the approximation by tanh.
// The matrix product is the device library's; bias, GELU and their gradients are one pass over its result.
// x, y, pre, dy, dx and weight share one float type; bias and the gradients dweight, dbias are f32.
#pragma once
#include "../kernel.h"

KERNEL(
    linear_forward,
    Tensor y,  // (M, N)
    Tensor
        pre,  // (M, N) x·Wᵀ + b before GELU, for backward; absent without GELU. On the CPU it may be y
    Tensor x,       // (M, K)
    Tensor weight,  // (N, K)
    Tensor bias,    // (N) or absent
    int64_t M, int64_t N, int64_t K, bool exact_gelu)

KERNEL(linear_backward,
       Tensor dx,       // (M, K) set, or absent; with x_pre it is the gradient of that
       Tensor dweight,  // (N, K) += , or absent
       Tensor dbias,    // (N) += , or absent
       Tensor dy,       // (M, N)
       Tensor pre,      // (M, N) as saved; absent without GELU
       Tensor x,        // (M, K)
       Tensor x_pre,    // (M, K) such that x = GELU(x_pre), or absent
       Tensor weight,   // (N, K)
       int64_t M, int64_t N, int64_t K, bool exact_gelu)
