// Cross-entropy of a vocabulary projection, value and all gradients in one pass, for logits l = h·Wᵀ + b that are too
// large to keep: (rows, V) of them are made, used and thrown away for a few rows at a time.
//   ce_r = lse(l_r) − l_r[target_r],   lse = max + log Σ exp(l − max) in f32, online over tiles of the vocabulary
//   loss[g] += Σ_{r in group g} weight_r·ce_r / denominator
//   G_r = (softmax(l_r) − onehot)·weight_r·grad_scale / denominator
//   dh = G·W,   dweight += Gᵀ·h,   dbias += Σ_r G_r
// over the rows whose target is not −1 and whose weight is not 0; only those rows are multiplied at all. The rows fall
// into equal groups in their order, R / groups each. A denominator of 0 stands for Σ weight_r over the rows that count.
// h, dh and weight share one float type; everything else that is not an index is f32.
#pragma once
#include "../kernel.h"

KERNEL(linear_cross_entropy_forward_backward,
       Tensor loss,     // (groups) +=
       Tensor dh,       // (R, D) set (0 in rows that don't count), or absent
       Tensor dweight,  // (V, D) += , or absent
       Tensor dbias,    // (V) += , or absent
       Tensor h,        // (R, D)
       Tensor weight,   // (V, D)
       Tensor bias,     // (V) or absent
       Tensor targets,  // (R) i32 in [0, V), or −1: the row is ignored
       Tensor weights,  // (R) f32 or absent: all 1
       int64_t R, int64_t V, int64_t D, int64_t groups, float denominator, float grad_scale)
