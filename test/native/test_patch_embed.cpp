// patch_embed.cu against double precision: ragged images, both weight layouts, sums cut into slices.
#include "../../cuda/patch/patch_embed.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void run(int64_t B, int64_t H, int64_t W, int64_t P, int64_t D, bool flat) {
  const int64_t across = W / P, N = H / P * across, K = 3 * P * P, R = B * N;
  const std::string what = std::string(test::type_name<T>) + " " + std::to_string(R) + "×" +
                           std::to_string(K) + "→" + std::to_string(D);
  test::HostStream stream;
  Random random(static_cast<unsigned>(R + D));
  const Buffer<uint8_t> images(B * H * W * 3);
  for (int64_t i = 0; i < images.size(); ++i)
    images[i] = static_cast<uint8_t>(i * 2654435761u >> 11);
  const auto weight = random.buffer<T>(D * K, 0.2f);
  const auto bias = random.buffer<float>(D), position = random.buffer<float>(N * D);
  const auto dy = random.buffer<T>(R * D);
  const auto dweight = random.buffer<float>(D * K), dbias = random.buffer<float>(D);
  const auto dposition = random.buffer<float>(N * D);
  const Buffer<T> y(R * D);
  std::vector<double> want(static_cast<size_t>(R * D)), want_weight, want_bias, want_position;
  for (int64_t i = 0; i < D * K; ++i) want_weight.push_back(dweight.at(i));
  for (int64_t i = 0; i < D; ++i) want_bias.push_back(dbias.at(i));
  for (int64_t i = 0; i < N * D; ++i) want_position.push_back(dposition.at(i));
  for (int64_t r = 0; r < R; ++r)
    for (int64_t d = 0; d < D; ++d) {
      const int64_t b = r / N, n = r % N;
      const double g = dy.at(r * D + d);
      double sum = bias.at(d) + position.at(n * D + d);
      for (int64_t i = 0; i < P; ++i)
        for (int64_t j = 0; j < P; ++j)
          for (int64_t c = 0; c < 3; ++c) {
            const double x =
                images[((b * H + n / across * P + i) * W + n % across * P + j) * 3 + c] / 127.5 - 1;
            const int64_t k = d * K + (flat ? (i * P + j) * 3 + c : (c * P + i) * P + j);
            sum += x * weight.at(k);
            want_weight[static_cast<size_t>(k)] += x * g;
          }
      want[static_cast<size_t>(r * D + d)] = sum;
      want_bias[static_cast<size_t>(d)] += g;
      want_position[static_cast<size_t>(n * D + d)] += g;
    }
  siglip2::cuda::patch_embed_forward(stream, y, images, weight, bias, position, B, H, W, P, D,
                                     flat);
  siglip2::cuda::patch_embed_backward(stream, dweight, dbias, dposition, dy, images, B, H, W, P, D,
                                      flat);
  CHECK_CLOSE(y, want, test::tolerance<T>, what + " y");
  CHECK_CLOSE(dweight, want_weight, test::tolerance<T>, what + " dweight");
  CHECK_CLOSE(dbias, want_bias, 1e-10, what + " dbias");
  CHECK_CLOSE(dposition, want_position, 1e-10, what + " dposition");
}

TEST(patch_embed_f32) {
  run<float>(1, 2, 2, 2, 1, false);
  run<float>(2, 9, 14, 4, 5, true);
  if (!test::small) run<float>(3, 16, 18, 8, 66, false);
}
TEST(patch_embed_bf16) {
  run<__nv_bfloat16>(1, 7, 5, 5, 8, true);
  if (!test::small) run<__nv_bfloat16>(2, 16, 32, 8, 72, false);
}

// Patches whose runs are aligned go through wgmma where there are two tiles of them for two multiprocessors.
TEST(patch_embed_on_hopper) {
  run<__nv_bfloat16>(3, 33, 720, 16, 8, true);  // 270 patches
  if (test::small) return;
  run<__nv_bfloat16>(2, 163, 272, 16, 136, false);  // three tiles for each block
  run<__nv_bfloat16>(2, 260, 288, 32, 136, true);   // 144 patches
}
TEST(patch_embed_before_hopper) {
  cuda_host::config().wgmma = false;
  run<__nv_bfloat16>(3, 33, 720, 16, 8, true);
  cuda_host::config().wgmma = true;
}

TEST(patch_embed_rejects_images_below_one_patch) {
  test::HostStream stream;
  bool thrown = false;
  try {
    siglip2::cuda::patch_embed_forward(stream, {}, {}, {}, {}, {}, 1, 7, 9, 8, 4, false);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}

}  // namespace
