// LayerNorm over the last axis, with the residual addition that precedes it in a pre-LN block.
//   h = x + residual;  y = (h − mean(h)) / sqrt(var(h) + eps) · weight + bias
// Backward returns dx = d(h) + dsum, which is also the gradient of the residual, and adds to dweight, dbias.
// x, residual, sum, y, dy, dsum, dx share one float type; mean, rstd, weight, bias and their gradients are f32.
#pragma once
#include "../kernel.h"

KERNEL(layer_norm_forward,
       Tensor y,         // (R, C)
       Tensor sum,       // (R, C) h; absent without residual
       Tensor mean,      // (R)
       Tensor rstd,      // (R)
       Tensor x,         // (R, C)
       Tensor residual,  // (R, C) or absent
       Tensor weight,    // (C)
       Tensor bias,      // (C), or absent: 0
       int64_t R, int64_t C, float eps)

KERNEL(layer_norm_backward,
       Tensor dx,       // (R, C) set
       Tensor dweight,  // (C) += ; absent when frozen
       Tensor dbias,    // (C) += ; absent when frozen
       Tensor dy,       // (R, C)
       Tensor dsum,     // (R, C) gradient that reaches h directly, or absent
       Tensor h,        // (R, C) x, or sum when there was a residual
       Tensor weight,   // (C)
       Tensor mean,     // (R)
       Tensor rstd,     // (R)
       int64_t R, int64_t C)
