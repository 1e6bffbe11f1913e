// One token of every sequence: y[b] = x[b, index]. Backward is zero everywhere else.
#pragma once
#include "../kernel.h"

KERNEL(select_token_forward,
       Tensor y,  // (B, C)
       Tensor x,  // (B, T, C) f32 or bf16
       int64_t B, int64_t T, int64_t C, int64_t index)

KERNEL(select_token_backward,
       Tensor dx,  // (B, T, C) set
       Tensor dy,  // (B, C)
       int64_t B, int64_t T, int64_t C, int64_t index)
