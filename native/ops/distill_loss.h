// Self-distillation with centring (DINO, arXiv 2104.14294; SigLIP 2 §2.3 for images and for masked patches): the
// cross-entropy from the teacher's centred, sharpened distribution to the student's, value and gradient in one visit.
//   p = softmax((t − c)/τ_t),   q = softmax(s/τ_s),   ce_r = −Σ_k p_k·log q_k
//   loss += scale·Σ_r weight_r·ce_r;   dstudent = scale·weight_r/τ_s·(q − p)
// Student row r is matched with teacher row r mod T, so that the views of a batch, one view of all images after the
// other, share their teacher rows without a copy. The teacher gets no gradient.
#pragma once
#include "../kernel.h"

KERNEL(
    distill_loss_forward_backward,
    Tensor loss,      // (1) f32 +=
    Tensor dstudent,  // (R, K) set, of the student's type; may be student itself; absent: loss only
    Tensor student,   // (R, K) f32 or bf16
    Tensor teacher,   // (T, K) of the same type, R a multiple of T
    Tensor centre,    // (K) f32
    Tensor weights,   // (R) f32 or absent: all 1
    int64_t R, int64_t T, int64_t K, float student_temperature, float teacher_temperature,
    float scale)
