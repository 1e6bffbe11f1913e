// Antialiased bilinear resizing (triangle filter, half-pixel centres) of (B, H, W, C) to (B, OH, OW, C).
// uint8: bit-identical to PIL's BILINEAR. f32: the same weights without rounding, for position embeddings
// (torch's interpolate with antialias). Backward is the transpose, for f32.
#pragma once
#include "../kernel.h"

KERNEL(resize_bilinear_forward,
       Tensor y,  // (B, OH, OW, C)
       Tensor x,  // (B, H, W, C) u8 or f32
       int64_t B, int64_t H, int64_t W, int64_t C, int64_t OH, int64_t OW)

KERNEL(resize_bilinear_backward,
       Tensor dx,  // (B, H, W, C) f32, set
       Tensor dy,  // (B, OH, OW, C) f32
       int64_t B, int64_t H, int64_t W, int64_t C, int64_t OH, int64_t OW)
