// Masked image modelling on embedded patches (SigLIP 2 §2.3): where the mask is set, the patch's embedding gives way to
// one learned token; the position stays.
//   y[b, n] = mask[b, n] ? token + position[n] : x[b, n]      x comes with its position added
// Backward: dx is dy outside the mask and zero inside; the masked dy are added to token and position, samples in order.
#pragma once
#include "../kernel.h"

KERNEL(mask_tokens_forward,
       Tensor y,         // (B, N, D)
       Tensor x,         // (B, N, D) f32 or bf16
       Tensor token,     // (D) f32
       Tensor position,  // (N, D) f32
       Tensor mask,      // (B, N) u8, nonzero: masked
       int64_t B, int64_t N, int64_t D)

KERNEL(mask_tokens_backward,
       Tensor dx,         // (B, N, D) set, or absent
       Tensor dtoken,     // (D) f32 += , or absent
       Tensor dposition,  // (N, D) f32 += , or absent
       Tensor dy,         // (B, N, D)
       Tensor mask,       // (B, N) u8
       int64_t B, int64_t N, int64_t D)
