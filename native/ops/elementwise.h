// Element by element: sums, and scaled copies between types. N elements each.
#pragma once
#include "../kernel.h"

KERNEL(add_forward,
       Tensor y,  // (N) a + b; may be a or b itself
       Tensor a,  // (N) f32 or bf16
       Tensor b,  // (N) same type
       int64_t N)

KERNEL(scale_cast,
       Tensor y,  // (N) scale · x, f32 or bf16
       Tensor x,  // (N) f32 or bf16
       int64_t N, float scale)
