// position_resize.cu and patch_embed_packed.cu against double precision, at ragged sizes.
#include "../../cuda/patch/patch_embed_packed.cu"
#include "../../cuda/position_resize.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

// Weights of one axis, (n, G): the formula of position_resize.h over all cells.
std::vector<double> axis_weights(int64_t G, int64_t n) {
  std::vector<double> w(static_cast<size_t>(n * G));
  const double s = static_cast<double>(G) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t a = 0; a < G; ++a) {
      const double distance = static_cast<double>(a) + 0.5 - (static_cast<double>(i) + 0.5) * s;
      sum += w[static_cast<size_t>(i * G + a)] =
          std::max(0.0, 1 - std::fabs(distance) / std::max(1.0, s));
    }
    for (int64_t a = 0; a < G; ++a) w[static_cast<size_t>(i * G + a)] /= sum;
  }
  return w;
}

void positions(int64_t G, int64_t D, const std::vector<std::pair<int, int>>& grids) {
  const auto S = static_cast<int64_t>(grids.size());
  const Buffer<int32_t> shapes(2 * S), offsets(S + 1);
  offsets[0] = 0;
  for (int64_t s = 0; s < S; ++s) {
    const auto [rows, columns] = grids[static_cast<size_t>(s)];
    shapes[2 * s] = rows;
    shapes[2 * s + 1] = columns;
    offsets[s + 1] = offsets[s] + rows * columns;
  }
  const int64_t T = offsets[S], cells = G * G;
  Random random(static_cast<unsigned>(G * 31 + D));
  const auto position = random.buffer<float>(cells * D), dy = random.buffer<float>(T * D),
             dposition = random.buffer<float>(cells * D);
  const Buffer<float> y(T * D);
  std::vector<double> want(static_cast<size_t>(T * D)), want_d(static_cast<size_t>(cells * D));
  for (int64_t i = 0; i < cells * D; ++i) want_d[static_cast<size_t>(i)] = dposition.at(i);
  int64_t token = 0;
  for (const auto& [rows, columns] : grids) {
    const auto down = axis_weights(G, rows), across = axis_weights(G, columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j, ++token)
        for (int64_t a = 0; a < G; ++a)
          for (int64_t b = 0; b < G; ++b) {
            const double w =
                down[static_cast<size_t>(i * G + a)] * across[static_cast<size_t>(j * G + b)];
            for (int64_t d = 0; d < D; ++d) {
              const int64_t cell = (a * G + b) * D + d;
              want[static_cast<size_t>(token * D + d)] += w * position.at(cell);
              want_d[static_cast<size_t>(cell)] += w * dy.at(token * D + d);
            }
          }
  }
  test::HostStream stream;
  siglip2::cuda::position_resize_forward(stream, y, position, shapes, offsets, S, T, G, D);
  siglip2::cuda::position_resize_backward(stream, dposition, dy, shapes, offsets, S, T, G, D);
  const std::string what = "grid " + std::to_string(G) + ", " + std::to_string(T) + " tokens";
  CHECK_CLOSE(y, want, 1e-11, what + " y");
  CHECK_CLOSE(dposition, want_d, 1e-11, what + " dposition");
}

TEST(positions_of_packed_images) {
  positions(1, 1, {{1, 1}, {2, 3}});
  positions(5, 3, {{5, 5}, {1, 13}, {7, 2}, {3, 4}});
  positions(4, 130, {{3, 5}, {2, 2}});
  if (!test::small) positions(16, 2, {{6, 10}, {27, 12}, {1, 70}, {1, 1}});
}

template <class T> void patches(int64_t rows, int64_t K, int64_t D, bool gradients) {
  Random random(static_cast<unsigned>(rows + K + D));
  const Buffer<uint8_t> bytes(rows * K);
  for (int64_t i = 0; i < rows * K; ++i) bytes[i] = static_cast<uint8_t>(i * 151 % 256);
  const auto weight = random.buffer<T>(D * K, 0.3f);
  const auto dy = random.buffer<T>(rows * D);
  const auto bias = random.buffer<float>(D), position = random.buffer<float>(rows * D);
  const auto dweight = gradients ? random.buffer<float>(D * K) : Buffer<float>();
  const auto dbias = gradients ? random.buffer<float>(D) : Buffer<float>();
  const Buffer<T> y(rows * D);
  std::vector<double> want(static_cast<size_t>(rows * D)), want_w(static_cast<size_t>(D * K)),
      want_b(static_cast<size_t>(D));
  for (int64_t d = 0; gradients && d < D; ++d) {
    want_b[static_cast<size_t>(d)] = dbias.at(d);
    for (int64_t k = 0; k < K; ++k) want_w[static_cast<size_t>(d * K + k)] = dweight.at(d * K + k);
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < D; ++d) {
      double sum = bias.at(d) + position.at(r * D + d);
      for (int64_t k = 0; k < K; ++k) {
        const double x = bytes[r * K + k] / 127.5 - 1;
        sum += x * weight.at(d * K + k);
        want_w[static_cast<size_t>(d * K + k)] += x * dy.at(r * D + d);
      }
      want[static_cast<size_t>(r * D + d)] = sum;
      want_b[static_cast<size_t>(d)] += dy.at(r * D + d);
    }
  test::HostStream stream;
  siglip2::cuda::patch_embed_packed_forward(stream, y, bytes, weight, bias, position, rows, K, D);
  siglip2::cuda::patch_embed_packed_backward(stream, dweight, dbias, dy, bytes, rows, K, D);
  const std::string what = std::string(test::type_name<T>) + " (" + std::to_string(rows) + ", " +
                           std::to_string(K) + ") → " + std::to_string(D);
  CHECK_CLOSE(y, want, test::tolerance<T>, what + " y");
  if (!gradients) return;
  CHECK_CLOSE(dweight, want_w, 1e-11, what + " dweight");
  CHECK_CLOSE(dbias, want_b, 1e-11, what + " dbias");
}

template <class T> void patch_sizes() {
  patches<T>(1, 3, 1, true);
  patches<T>(3, 12, 5, false);
  patches<T>(65, 17, 66, true);
  if (!test::small) patches<T>(70, 48, 130, true);
}

TEST(packed_patches_f32) { patch_sizes<float>(); }
TEST(packed_patches_bf16) { patch_sizes<__nv_bfloat16>(); }

// Through wgmma, several tiles to a block. Up to 768 values the weight stays in shared memory: one step along the
// depth, fewer than there are stages, and more; the last one part of a stage.
TEST(packed_patches_on_hopper) {
  patches<__nv_bfloat16>(200, 48, 8, false);
  patches<__nv_bfloat16>(300, test::small ? 336 : 624, 136, false);
  patches<__nv_bfloat16>(520, 816, 8, false);
  if (test::small) return;
  patches<__nv_bfloat16>(1030, 144, 16, false);
  patches<__nv_bfloat16>(300, 816, 136, false);
  cuda_host::config().wgmma = false;
  patches<__nv_bfloat16>(300, 624, 136, false);
  cuda_host::config().wgmma = true;
}

}  // namespace
