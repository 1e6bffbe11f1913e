// Element by element (elementwise.h). Bound by memory.
#include "elementwise.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

void add_forward(Stream&, Tensor y, Tensor a, Tensor b, int64_t N) {
  dispatch_float(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(N);
    const T *pa = a.as<const T>(N), *pb = b.as<const T>(N);
    parallel_ranges(N, 16384, [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i)
        out[i] = static_cast<float>(pa[i]) + static_cast<float>(pb[i]);
    });
  });
}

void scale_cast(Stream&, Tensor y, Tensor x, int64_t N, float scale) {
  dispatch_float(y.dtype, [&](auto ty) {
    dispatch_float(x.dtype, [&](auto tx) {
      using Y = decltype(ty);
      using X = decltype(tx);
      Y* out = y.as<Y>(N);
      const X* in = x.as<const X>(N);
      parallel_ranges(N, 16384, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; ++i) out[i] = static_cast<float>(in[i]) * scale;
      });
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(add_forward);
OP(scale_cast);
