// What joint example selection (JEST, arXiv 2406.17711) needs of the pairwise sigmoid losses of a super-batch,
//   l_ij = exp(log_scale) · x_i·y_j + bias;   loss_ij = softplus(−z_ij l_ij),  z = +1 where i == j, else −1
// without the (B, B) matrix of them. Both add weight · (what is described) to scores, so that learner (weight 1) minus
// reference (weight −1) is two calls on one accumulator.
#pragma once
#include "../kernel.h"

// scores_i += weight · loss_ii
KERNEL(pair_scores_diagonal,
       Tensor scores,     // (B) f32 +=
       Tensor x,          // (B, D) unit rows, f32 or bf16
       Tensor y,          // (B, D) unit rows, same type
       Tensor log_scale,  // (1) f32
       Tensor bias,       // (1) f32
       int64_t B, int64_t D, float weight)

// scores_i += weight · Σ_k (loss_ik + loss_ki) over the chosen k ≠ i
KERNEL(pair_scores_chosen,
       Tensor scores,     // (B) f32 +=
       Tensor x,          // (B, D) unit rows, f32 or bf16
       Tensor y,          // (B, D) unit rows, same type
       Tensor chosen,     // (K) i32 in [0, B)
       Tensor log_scale,  // (1) f32
       Tensor bias,       // (1) f32
       int64_t B, int64_t K, int64_t D, float weight)
