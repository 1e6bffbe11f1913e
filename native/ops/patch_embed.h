// Patch embedding from bytes: images → P×P patches (VALID, stride P) → x/127.5 − 1 → projection + bias + position.
// On the CPU the pixels may also be f32 in [0, 255], not rounded.
//   y[b, n] = W · (patch(b, n)/127.5 − 1) + bias + position[n]
// weight is (D, 3·P·P) with columns in the order channel, row, column (Hugging Face convolution) or, when flat, row,
// column, channel (NaFlex). y, dy and weight share one float type; bias, position and all gradients are f32.
#pragma once
#include "../kernel.h"

KERNEL(patch_embed_forward,
       Tensor y,         // (B, N, D), N = floor(H/P)·floor(W/P), row-major
       Tensor images,    // (B, H, W, 3) u8 (CPU: or f32)
       Tensor weight,    // (D, 3·P·P)
       Tensor bias,      // (D)
       Tensor position,  // (N, D)
       int64_t B, int64_t H, int64_t W, int64_t P, int64_t D, bool flat)

KERNEL(patch_embed_backward,
       Tensor dweight,    // (D, 3·P·P) += , or absent
       Tensor dbias,      // (D) += , or absent
       Tensor dposition,  // (N, D) += , or absent
       Tensor dy,         // (B, N, D)
       Tensor images,     // (B, H, W, 3) u8 (CPU: or f32)
       int64_t B, int64_t H, int64_t W, int64_t P, int64_t D, bool flat)
