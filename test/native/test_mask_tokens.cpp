// mask_tokens.cu against double precision.
#include "../../cuda/mask_tokens.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void mask(int64_t B, int64_t N, int64_t D) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(B * 7 + D));
  const auto x = random.buffer<T>(B * N * D), dy = random.buffer<T>(B * N * D);
  const auto token = random.buffer<float>(D), position = random.buffer<float>(N * D);
  const auto dtoken = random.buffer<float>(D), dposition = random.buffer<float>(N * D);
  const Buffer<uint8_t> masked(B * N);
  for (int64_t i = 0; i < B * N; ++i) masked[i] = static_cast<uint8_t>(i * 7 % 3 == 0);
  std::vector<double> want_y, want_dx, want_token, want_position;
  for (int64_t d = 0; d < D; ++d) want_token.push_back(dtoken.at(d));
  for (int64_t i = 0; i < N * D; ++i) want_position.push_back(dposition.at(i));
  for (int64_t i = 0; i < B * N * D; ++i) {
    const int64_t row = i / D, d = i % D, place = row % N * D + d;
    const bool hidden = masked[row] != 0;
    want_y.push_back(hidden ? token.at(d) + position.at(place) : x.at(i));
    want_dx.push_back(hidden ? 0 : dy.at(i));
    if (!hidden) continue;
    want_token[static_cast<size_t>(d)] += dy.at(i);
    want_position[static_cast<size_t>(place)] += dy.at(i);
  }
  const Buffer<T> y(B * N * D), dx(B * N * D);
  siglip2::cuda::mask_tokens_forward(stream, y, x, token, position, masked, B, N, D);
  siglip2::cuda::mask_tokens_backward(stream, dx, dtoken, dposition, dy, masked, B, N, D);
  CHECK_CLOSE(y, want_y, test::tolerance<T>, "mask y");
  CHECK_CLOSE(dx, want_dx, test::tolerance<T>, "mask dx");
  CHECK_CLOSE(dtoken, want_token, 1e-11, "mask dtoken");
  CHECK_CLOSE(dposition, want_position, 1e-11, "mask dposition");
  // Frozen token and positions, and nobody before them.
  siglip2::cuda::mask_tokens_backward(stream, Buffer<T>(), Buffer<float>(), Buffer<float>(), dy,
                                      masked, B, N, D);
}

TEST(mask_tokens) {
  mask<float>(1, 1, 1);
  mask<float>(3, 5, 300);
  mask<__nv_bfloat16>(2, 7, 24);
}

}  // namespace
