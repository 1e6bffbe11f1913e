// select_token.cu: copies, so exact.
#include "../../cuda/select_token.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void run(int64_t B, int64_t tokens, int64_t C, int64_t index, int64_t shift) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(B + C));
  const auto x = random.buffer<T>(B * tokens * C, 1, 0, shift),
             dy = random.buffer<T>(B * C, 1, 0, shift);
  const Buffer<T> y(B * C), dx(B * tokens * C);
  siglip2::cuda::select_token_forward(stream, y, x, B, tokens, C, index);
  siglip2::cuda::select_token_backward(stream, dx, dy, B, tokens, C, index);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = (b * tokens + t) * C + c;
        if (t == index) CHECK(y.at(b * C + c) == x.at(i));
        CHECK(dx.at(i) == (t == index ? dy.at(b * C + c) : 0));
      }
}

TEST(select_token) {
  run<float>(1, 1, 1, 0, 0);
  run<float>(3, 5, 72, 4, 0);
  run<__nv_bfloat16>(2, 7, 64, 3, 1);
  run<__nv_bfloat16>(4, 3, 63, 0, 0);
}

}  // namespace
