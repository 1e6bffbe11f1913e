// Pairwise sigmoid loss of SigLIP (arXiv 2303.15343, eq. 1–2), value and all gradients in one pass:
//   l_ij = exp(log_scale) · x_i·y_j + bias;   L = weight · Σ_ij softplus(−z_ij l_ij),  z = +1 where row0+i == col0+j, else −1
// with weight = 1 / (global batch). Never B×B in memory: tiles of the pair matrix are produced, turned into loss and
// G = weight·(σ(l) − [i==j]) and consumed. The call covers a block of rows and columns of the global pair matrix, so
// the same kernel serves chunks and the steps of a ring: every output accumulates (+=).
#pragma once
#include "../kernel.h"

KERNEL(sigmoid_loss_forward_backward,
       Tensor loss,        // (1) f32 +=
       Tensor dx,          // (M, D) f32 += , or absent: loss only
       Tensor dy,          // (N, D) f32 += , or absent
       Tensor dlog_scale,  // (1) f32 += , or absent
       Tensor dbias,       // (1) f32 += , or absent
       Tensor x,           // (M, D) unit rows, f32 or bf16
       Tensor y,           // (N, D) unit rows, same type
       Tensor log_scale,   // (1) f32
       Tensor bias,        // (1) f32
       int64_t M, int64_t N, int64_t D, int64_t row0, int64_t col0, float weight)
