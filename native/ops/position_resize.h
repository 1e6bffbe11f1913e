// Position embeddings of packed NaFlex images. The (G, G, D) grid is resized to the (rows, columns) of each image with
// an antialiased triangle filter at half-pixel centres, one axis after the other:
//   y[offset + i·columns + j] = Σ_a Σ_b R[i, a] · C[j, b] · grid[a, b]
// where the weights of an axis of n outputs are w[i, a] ∝ max(0, 1 − |a + ½ − (i + ½)·s| / max(1, s)), s = G/n, with
// rows that sum to 1. Backward is the transpose. Everything is f32; n has no limit.
#pragma once
#include "../kernel.h"

KERNEL(position_resize_forward,
       Tensor y,         // (T, D)
       Tensor position,  // (G·G, D)
       Tensor shapes,    // (S, 2) i32, rows and columns of each image
       Tensor offsets,   // (S + 1) i32, first token of each image, and T
       int64_t S, int64_t T, int64_t G, int64_t D)

KERNEL(position_resize_backward,
       Tensor dposition,  // (G·G, D) += , or absent
       Tensor dy,         // (T, D)
       Tensor shapes,     // (S, 2) i32
       Tensor offsets,    // (S + 1) i32
       int64_t S, int64_t T, int64_t G, int64_t D)
