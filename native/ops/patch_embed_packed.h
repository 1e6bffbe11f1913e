// Patch embedding of packed NaFlex patches, bytes to tokens:
//   y[t] = W · (patches[t]/127.5 − 1) + bias + position[t]
// The K = P·P·3 bytes of a patch are in the order row, column, channel, as are the columns of the weight. y, dy and
// weight share one float type; bias, position and the gradients are f32. dposition is dy.
#pragma once
#include "../kernel.h"

KERNEL(patch_embed_packed_forward,
       Tensor y,         // (T, D)
       Tensor patches,   // (T, K) u8
       Tensor weight,    // (D, K)
       Tensor bias,      // (D)
       Tensor position,  // (T, D) f32
       int64_t T, int64_t K, int64_t D)

KERNEL(patch_embed_packed_backward,
       Tensor dweight,  // (D, K) += , or absent
       Tensor dbias,    // (D) += , or absent
       Tensor dy,       // (T, D)
       Tensor patches,  // (T, K) u8
       int64_t T, int64_t K, int64_t D)
