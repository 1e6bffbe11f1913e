// Rows of unit length: y = x / (‖x‖ + eps), as big_vision's two towers do with eps = 1e-8.
//   dx = (dy − x·(x·dy) / (‖x‖·(‖x‖ + eps))) / (‖x‖ + eps)
#pragma once
#include "../kernel.h"

KERNEL(l2_normalize_forward,
       Tensor y,     // (R, C)
       Tensor norm,  // (R) f32, ‖x‖
       Tensor x,     // (R, C) f32 or bf16
       int64_t R, int64_t C, float eps)

KERNEL(l2_normalize_backward,
       Tensor dx,    // (R, C) set
       Tensor dy,    // (R, C)
       Tensor x,     // (R, C)
       Tensor norm,  // (R)
       int64_t R, int64_t C, float eps)
