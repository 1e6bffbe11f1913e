// Rows of a token table plus learned positions: y[r] = table[ids[r]] + position[r mod L].
// The gradient of the table adds the rows of equal ids in their order, so it is the same for any number of threads.
#pragma once
#include "../kernel.h"

KERNEL(embedding_forward,
       Tensor y,         // (R, D) f32 or bf16
       Tensor ids,       // (R) i32 in [0, V)
       Tensor table,     // (V, D) f32, on the CPU also bf16
       Tensor position,  // (L, D) f32
       int64_t R, int64_t V, int64_t L, int64_t D)

KERNEL(embedding_backward,
       Tensor dtable,     // (V, D) f32 += , or absent
       Tensor dposition,  // (L, D) f32 += , or absent
       Tensor dy,         // (R, D)
       Tensor ids,        // (R) i32
       int64_t R, int64_t V, int64_t L, int64_t D)
