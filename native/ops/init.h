// Random initial values. Element i of stream `stream` under `seed` is a function of those three numbers alone
// (Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so it depends on no thread count.
// kind: 0 constant a; 1 normal with standard deviation a; 2 the same truncated at ±2 standard deviations (of the normal
// before truncation; a is that one's); 3 uniform in [−a, a).
#pragma once
#include "../kernel.h"

KERNEL(init_random,
       Tensor y,  // (N) f32
       int64_t N, int64_t kind, float a, int64_t seed, int64_t stream)
