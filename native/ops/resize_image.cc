// resize_image.h. Bound by the horizontal pass of the filter.
#include "resize_image.h"
#include "../cpu/resize.h"

#if !defined(ISA)
#define ISA avx2
#endif

namespace siglip2::cpu::ISA {

void resize_image(ResizeMethod method, const uint8_t* in, int64_t H, int64_t W, int64_t C,
                  void* out, int64_t OH, int64_t OW) {
  auto* bytes = static_cast<uint8_t*>(out);
  switch (method) {
    case ResizeMethod::pil_bilinear: return resize_u8(in, H, W, C, bytes, OH, OW, Filter::bilinear);
    case ResizeMethod::pil_bicubic: return resize_u8(in, H, W, C, bytes, OH, OW, Filter::bicubic);
    case ResizeMethod::two_point: return resize_two_point(in, H, W, C, bytes, OH, OW);
    case ResizeMethod::f32: return resize_f32(in, H, W, C, static_cast<float*>(out), OH, OW);
  }
}

}  // namespace siglip2::cpu::ISA
