// Cross-entropy of the softmax over the last axis with integer targets, value and gradient in one pass over the rows:
//   ce_r = lse(l_r) − (1 − s)·l_r[target_r] − s/V·Σ_v l_r[v],   lse = max + log Σ exp(l − max)
//   loss += Σ_r weight_r·ce_r / denominator;   dlogits = (softmax − (1 − s)·onehot − s/V)·weight_r / denominator
// over the rows whose target is not −1; s is the label smoothing. A denominator of 0 stands for Σ weight_r over those
// rows: the mean. With an explicit one the calls over chunks of rows add up to the call over all.
#pragma once
#include "../kernel.h"

KERNEL(softmax_cross_entropy_forward_backward,
       Tensor loss,     // (1) f32 +=
       Tensor dlogits,  // (R, V) set, of the logits' type; may be logits itself; absent: loss only
       Tensor logits,   // (R, V) f32 or bf16
       Tensor targets,  // (R) i32 in [0, V), or −1: the row is ignored
       Tensor weights,  // (R) f32 or absent: all 1
       int64_t R, int64_t V, float denominator, float smoothing)
