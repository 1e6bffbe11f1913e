// The running centre that keeps a self-distillation teacher from collapsing (DINO, arXiv 2104.14294, eq. 4), and the
// figures that tell whether it has. All sums have a fixed order.
//   mean_k = 1/R·Σ_r t_rk            before the temperature; several devices average it before the update
//   c ← m·c + (1 − m)·mean
//   statistics with p_r = softmax((t_r − c)/τ), p̄ = 1/R·Σ_r p_r:  1/R·Σ_r H(p_r),  H(p̄),  max_k p̄_k   (H in nats)
#pragma once
#include "../kernel.h"

KERNEL(teacher_mean,
       Tensor mean,     // (K) f32 set
       Tensor teacher,  // (R, K) f32 or bf16
       int64_t R, int64_t K)

KERNEL(centre_update,
       Tensor centre,  // (K) f32, in place
       Tensor mean,    // (K) f32
       int64_t K, float momentum)

KERNEL(teacher_statistics,
       Tensor result,   // (3) f32 set: mean entropy, entropy of the mean, largest share of the mean
       Tensor teacher,  // (R, K) f32 or bf16
       Tensor centre,   // (K) f32
       int64_t R, int64_t K, float temperature)
