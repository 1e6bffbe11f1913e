// Adam with decoupled weight decay over a flat arena (big_vision's order of operations: clip, Adam, ×lr, + decay·θ,
// ×schedule), the exponential moving average and the bf16 copy of the weights in the same pass.
//   g ← g · min(1, clip / ‖g‖)      (norm2 holds ‖g‖², so nothing waits for the host)
//   m ← β1 m + (1−β1) g;  v ← β2 v + (1−β2) g²
//   θ ← θ − lr·lr_scale·(m/(1−β1^t)) / (sqrt(v/(1−β2^t)) + eps) − decay·wd·θ ;  ema ← ema + (1−ema_decay)(θ − ema)
// where per segment lr_scale multiplies the learning rate and wd is 0 or 1; `decay` is schedule(t)·weight_decay.
#pragma once
#include "../kernel.h"

KERNEL(sum_of_squares,
       Tensor result,  // (1) f32, set; summed in a fixed order
       Tensor x,       // (N) f32
       int64_t N)

KERNEL(
    adamw_step,
    Tensor param,  // (N) f32 master weights
    Tensor m,      // (N) f32
    Tensor v,      // (N) f32
    Tensor ema,    // (N) f32, or absent
    Tensor copy,   // (N) bf16 copy of the new weights, or absent
    Tensor grad,   // (N) f32
    Tensor norm2,  // (1) f32 squared global gradient norm
    Tensor
        segments,  // (S, 2) i32: end offset of the segment (exclusive), bit 0 of the second word = decayed
    Tensor lr_scale,  // (S) f32
    Tensor
        rates,  // (4) f32 lr, decay, 1/(1−β1^t), 1/(1−β2^t), read on the device in place of lr, decay and step
                // when a recorded step is replayed; or absent
    int64_t N, int64_t S, int64_t step, float lr, float beta1, float beta2, float eps, float decay,
    float clip, float ema_decay)
