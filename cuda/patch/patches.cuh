// Patches as bytes in memory, of images on a grid or one after another: what every kernel of patch_embed.cuh and
// patch_embed_sm90.cuh reads.
#pragma once
#include "../common.cuh"

namespace siglip2::cuda::patches {

constexpr float kScale = 1.0f / 127.5f;  // of a byte's value in a pixel, x / 127.5 − 1

// Where the patches lie; a line of an operand is a patch, `at` a value of it.
struct Patches {
  const uint8_t* data;
  int lines, length;  // all patches, the values of one
  // Patches of an image stand side by side, `across` in a strip; a patch is runs of `run` bytes, `pitch` apart.
  int run, across, per_image;
  int64_t pitch, strip, image;  // bytes from a run, a strip of patches and an image to the next
  bool packed;                  // in_chunks(8)

  __device__ __forceinline__ const uint8_t* corner(int patch) const {
    const int n = patch % per_image;
    return data + patch / per_image * image + n / across * strip +
           n % across * static_cast<int64_t>(run);
  }
  __device__ __forceinline__ int64_t offset(int at) const { return at / run * pitch + at % run; }
  // Values from a multiple of `bytes` on, up to 16 of them, are as many aligned bytes one after another.
  bool in_chunks(int bytes) const {
    return run % bytes == 0 && pitch % bytes == 0 && strip % bytes == 0 && image % bytes == 0 &&
           aligned_16(data);
  }
};

}  // namespace siglip2::cuda::patches
