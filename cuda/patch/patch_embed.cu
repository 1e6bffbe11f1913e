// Patch embedding from the bytes of images and its gradients (native/ops/patch_embed.h); how is in patch_embed.cuh. A
// patch is P runs of 3·P bytes. column_sums makes dposition, over the samples, and dbias, over the positions of what the
// positions get. Every sum has a fixed order.
#include "../../native/ops/patch_embed.h"
#include "patch_embed.cuh"

namespace siglip2::cuda {

namespace {

patches::Patches patches_of(Tensor images, int64_t B, int64_t H, int64_t W, int64_t P) {
  if (P <= 0 || H < P || W < P) throw std::invalid_argument("an image is smaller than one patch");
  if (H > INT16_MAX || W > INT16_MAX)
    throw std::invalid_argument("an image has more than 32767 rows or columns");
  const int64_t N = H / P * (W / P);
  if (B * N > INT32_MAX) throw std::invalid_argument("there are more than 2^31 - 1 patches");
  patches::Patches p{};
  p.data = images.as<const uint8_t>(B * H * W * 3);
  p.lines = static_cast<int>(B * N);
  p.length = static_cast<int>(3 * P * P);
  p.run = static_cast<int>(3 * P);
  p.across = static_cast<int>(W / P);
  p.per_image = static_cast<int>(N);
  p.pitch = 3 * W;
  p.strip = 3 * W * P;
  p.image = 3 * W * H;
  p.packed = p.in_chunks(8);
  return p;
}

}  // namespace

void patch_embed_forward(Stream& s, Tensor y, Tensor images, Tensor weight, Tensor bias,
                         Tensor position, int64_t B, int64_t H, int64_t W, int64_t P, int64_t D,
                         bool flat) {
  const patches::Patches p = patches_of(images, B, H, W, P);
  if (p.lines == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    patches::embed_patches(s, y.as<T>(p.lines * D), p, weight.as<const T>(D * p.length),
                           bias.as<const float>(D), position.as<const float>(p.per_image * D),
                           p.per_image, D, {static_cast<int>(P), flat});
  });
}

void patch_embed_backward(Stream& s, Tensor dweight, Tensor dbias, Tensor dposition, Tensor dy,
                          Tensor images, int64_t B, int64_t H, int64_t W, int64_t P, int64_t D,
                          bool flat) {
  const patches::Patches p = patches_of(images, B, H, W, P);
  if (p.lines == 0 || D == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const g = dy.as<const T>(p.lines * D);
    const int64_t places = p.per_image * D;
    Scratch<float> by_place(s, places), sums(s, D);
    column_sums<false>(s, by_place.data(), g, p.lines * D, places);
    column_sums<false>(s, sums.data(), by_place.data(), places, D);
    if (float* const dp = dposition.as_or_null<float>(places))
      column_sums<true>(s, dp, by_place.data(), places, places);
    if (float* const db = dbias.as_or_null<float>(D)) column_sums<true>(s, db, sums.data(), D, D);
    if (float* const dw = dweight.as_or_null<float>(D * p.length))
      patches::add_weight_gradient(s, dw, g, sums.data(), p, D, {static_cast<int>(P), flat});
  });
}

}  // namespace siglip2::cuda
