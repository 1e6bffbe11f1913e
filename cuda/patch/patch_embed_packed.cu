// Embedding of packed patches and its gradients (native/ops/patch_embed_packed.h); how is in patch_embed.cuh. A patch is
// one run of K bytes, and every patch has a position of its own.
#include "../../native/ops/patch_embed_packed.h"
#include "patch_embed.cuh"

namespace siglip2::cuda {

namespace {

patches::Patches packed_patches(Tensor bytes, int64_t T, int64_t K) {
  check_extent(T, K, 0);
  patches::Patches p{};
  p.data = bytes.as<const uint8_t>(T * K);
  p.lines = static_cast<int>(T);
  p.length = p.run = static_cast<int>(K);
  p.across = p.per_image = 1;
  p.image = K;
  p.packed = p.in_chunks(8);
  return p;
}

constexpr patches::Columns kAsTheyLie{1, true};

}  // namespace

void patch_embed_packed_forward(Stream& s, Tensor y, Tensor bytes, Tensor weight, Tensor bias,
                                Tensor position, int64_t T, int64_t K, int64_t D) {
  if (T == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using E = decltype(t);
    patches::embed_patches(s, y.as<E>(T * D), packed_patches(bytes, T, K),
                           weight.as<const E>(D * K), bias.as<const float>(D),
                           position.as<const float>(T * D), T, D, kAsTheyLie);
  });
}

void patch_embed_packed_backward(Stream& s, Tensor dweight, Tensor dbias, Tensor dy, Tensor bytes,
                                 int64_t T, int64_t K, int64_t D) {
  if (T == 0 || D == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using E = decltype(t);
    const E* const g = dy.as<const E>(T * D);
    Scratch<float> sums(s, D);
    column_sums<false>(s, sums.data(), g, T * D, D);
    if (float* const db = dbias.as_or_null<float>(D)) column_sums<true>(s, db, sums.data(), D, D);
    if (float* const dw = dweight.as_or_null<float>(D * K))
      patches::add_weight_gradient(s, dw, g, sums.data(), packed_patches(bytes, T, K), D,
                                   kAsTheyLie);
  });
}

}  // namespace siglip2::cuda
