// elementwise.cu against plain float arithmetic, which it is; packed and not, also in place.
#include "../../cuda/elementwise.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void run(int64_t N, int64_t shift) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(N));
  const auto a = random.buffer<T>(N, 1, 0, shift), b = random.buffer<T>(N, 1, 0, shift);
  const Buffer<T> y(N);
  const Buffer<float> wide(N);
  const Buffer<__nv_bfloat16> narrow(N);
  siglip2::cuda::add_forward(stream, y, a, b, N);
  siglip2::cuda::scale_cast(stream, wide, a, N, -0.25f);
  siglip2::cuda::scale_cast(stream, narrow, a, N, 1);
  for (int64_t i = 0; i < N; ++i) {
    const float va = static_cast<float>(a[i]), vb = static_cast<float>(b[i]);
    CHECK(static_cast<float>(y[i]) == static_cast<float>(static_cast<T>(va + vb)));
    CHECK(wide[i] == -0.25f * va);
    CHECK(static_cast<float>(narrow[i]) == static_cast<float>(static_cast<__nv_bfloat16>(va)));
  }
  siglip2::cuda::add_forward(stream, b, a, b, N);
  for (int64_t i = 0; i < N; ++i) CHECK(static_cast<float>(b[i]) == static_cast<float>(y[i]));
}

TEST(elementwise) {
  for (const int64_t shift : {0, 1}) {
    run<float>(1, shift);
    run<float>(1030, shift);
    run<__nv_bfloat16>(77, shift);
  }
}

}  // namespace
