// CPU row normalisation (l2_normalize.h). Bound by memory: a row is read into cache once.
#include "l2_normalize.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

void l2_normalize_forward(Stream&, Tensor y, Tensor norm, Tensor x, int64_t R, int64_t C,
                          float eps) {
  dispatch_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(R * C);
    float* length = norm.as<float>(R);
    const T* in = x.as<const T>(R * C);
    parallel_ranges(R, 1 + 8192 / C, [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) {
        const T* v = in + r * C;
        float square = 0;
#pragma omp simd reduction(+ : square)
        for (int64_t c = 0; c < C; ++c)
          square += static_cast<float>(v[c]) * static_cast<float>(v[c]);
        length[r] = __builtin_sqrtf(square);
        const float scale = 1.0f / (length[r] + eps);
        for (int64_t c = 0; c < C; ++c) out[r * C + c] = static_cast<float>(v[c]) * scale;
      }
    });
  });
}

void l2_normalize_backward(Stream&, Tensor dx, Tensor dy, Tensor x, Tensor norm, int64_t R,
                           int64_t C, float eps) {
  dispatch_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = dx.as<T>(R * C);
    const T *g = dy.as<const T>(R * C), *in = x.as<const T>(R * C);
    const float* length = norm.as<const float>(R);
    parallel_ranges(R, 1 + 8192 / C, [&](int64_t r0, int64_t r1) {
      for (int64_t r = r0; r < r1; ++r) {
        const T *v = in + r * C, *gr = g + r * C;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t c = 0; c < C; ++c) dot += static_cast<float>(v[c]) * static_cast<float>(gr[c]);
        const float scale = 1.0f / (length[r] + eps);
        const float along =
            length[r] > 0 ? dot * scale / length[r] : 0.0f;  // a zero row has no direction
        for (int64_t c = 0; c < C; ++c)
          out[r * C + c] = (static_cast<float>(gr[c]) - static_cast<float>(v[c]) * along) * scale;
      }
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(l2_normalize_forward);
OP(l2_normalize_backward);
