// resize_bilinear.cu: uint8 bit for bit as native/cpu/resize.h (which is tested against PIL), f32 and its transpose
// against double precision.
#include "../../cuda/resize_bilinear.cu"
#include "../../native/cpu/resize.h"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

void run_bytes(int64_t B, int64_t H, int64_t W, int64_t C, int64_t OH, int64_t OW) {
  test::HostStream stream;
  const Buffer<uint8_t> x(B * H * W * C), y(B * OH * OW * C), want(B * OH * OW * C);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  siglip2::cuda::resize_bilinear_forward(stream, y, x, B, H, W, C, OH, OW);
  for (int64_t b = 0; b < B; ++b)
    siglip2::resize_u8(x.data() + b * H * W * C, H, W, C, want.data() + b * OH * OW * C, OH, OW);
  CHECK(std::memcmp(y.data(), want.data(), static_cast<size_t>(y.size())) == 0);
}
TEST(resize_bytes) {
  run_bytes(1, 1, 1, 3, 2, 3);
  run_bytes(2, 9, 7, 3, 4, 13);
  run_bytes(1, 12, 12, 1, 12, 5);
  if (!test::small) run_bytes(1, 61, 47, 3, 16, 16);
}

void run_floats(int64_t B, int64_t H, int64_t W, int64_t C, int64_t OH, int64_t OW) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(H + W));
  const auto x = random.buffer<float>(B * H * W * C), dy = random.buffer<float>(B * OH * OW * C);
  const Buffer<float> y(B * OH * OW * C), dx(B * H * W * C);
  const siglip2::ResizeAxis rows(H, OH), columns(W, OW);
  std::vector<double> want(static_cast<size_t>(y.size())), want_dx(static_cast<size_t>(dx.size()));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < OH; ++i)
      for (int64_t j = 0; j < OW; ++j)
        for (int64_t u = 0; u < rows.count[static_cast<size_t>(i)]; ++u)
          for (int64_t v = 0; v < columns.count[static_cast<size_t>(j)]; ++v)
            for (int64_t c = 0; c < C; ++c) {
              const double w = rows.weight[static_cast<size_t>(i * rows.taps + u)] *
                               columns.weight[static_cast<size_t>(j * columns.taps + v)];
              const int64_t to = ((b * OH + i) * OW + j) * C + c;
              const int64_t from = ((b * H + rows.first[static_cast<size_t>(i)] + u) * W +
                                    columns.first[static_cast<size_t>(j)] + v) *
                                       C +
                                   c;
              want[static_cast<size_t>(to)] += w * x.at(from);
              want_dx[static_cast<size_t>(from)] += w * dy.at(to);
            }
  siglip2::cuda::resize_bilinear_forward(stream, y, x, B, H, W, C, OH, OW);
  siglip2::cuda::resize_bilinear_backward(stream, dx, dy, B, H, W, C, OH, OW);
  CHECK_CLOSE(y, want, 1e-11, "y");
  CHECK_CLOSE(dx, want_dx, 1e-11, "dx");
}
TEST(resize_floats) {
  run_floats(1, 1, 1, 1, 3, 2);
  run_floats(2, 5, 7, 3, 9, 4);
  run_floats(1, 16, 16, 5, 6, 27);
}

}  // namespace
