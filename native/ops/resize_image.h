// One image resized in the calling thread, without a device: what data loading and the encoders' preprocessing use.
// Not an op: there are no tensors; compiled once per instruction set like the ops.
#pragma once
#include <cstdint>

namespace siglip2 {

enum class ResizeMethod : int {
  pil_bilinear,  // uint8 → uint8, bit-identical to PIL's BILINEAR
  pil_bicubic,   // uint8 → uint8, bit-identical to PIL's BICUBIC
  two_point,     // uint8 → uint8, TensorFlow's bilinear without antialiasing, truncated
  f32            // uint8 → f32 in [0, 255], antialiased bilinear without rounding
};

namespace cpu::avx2 {
// in (H, W, C) → out (OH, OW, C), float for ResizeMethod::f32.
void resize_image(ResizeMethod method, const uint8_t* in, int64_t H, int64_t W, int64_t C,
                  void* out, int64_t OH, int64_t OW);
}  // namespace cpu::avx2
namespace cpu::avx512 {
void resize_image(ResizeMethod method, const uint8_t* in, int64_t H, int64_t W, int64_t C,
                  void* out, int64_t OH, int64_t OW);
}

}  // namespace siglip2
