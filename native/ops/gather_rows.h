// Chosen rows of a matrix: y[m] = x[index[m]], the tokens at masked positions say. The indices ascend without repeats,
// so in backward every row of dx has at most one source: it is set once, zero where nothing was chosen.
#pragma once
#include "../kernel.h"

KERNEL(gather_rows_forward,
       Tensor y,      // (M, D)
       Tensor x,      // (R, D) f32 or bf16
       Tensor index,  // (M) i32, ascending in [0, R)
       int64_t M, int64_t R, int64_t D)

KERNEL(gather_rows_backward,
       Tensor dx,     // (R, D) set
       Tensor dy,     // (M, D)
       Tensor index,  // (M) i32
       int64_t M, int64_t R, int64_t D)
