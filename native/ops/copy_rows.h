// Rows of one tensor to given places in another: y[to[i]] = x[from[i]] for i in [0, n). The caches of the decoder are
// extended and re-ordered by it. No two `to` may be equal; x and y share one float type and may not overlap.
#pragma once
#include "../kernel.h"

KERNEL(copy_rows_forward,
       Tensor y,     // (Y, C) set in the rows `to`, others unchanged
       Tensor x,     // (X, C)
       Tensor to,    // (n) i32 in [0, Y)
       Tensor from,  // (n) i32 in [0, X)
       int64_t n, int64_t Y, int64_t X, int64_t C)
