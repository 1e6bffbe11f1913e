// l2_normalize.cu against double precision.
#include "../../cuda/l2_normalize.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void run(int64_t R, int64_t C, float eps, int64_t shift) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(R + C));
  const auto x = random.buffer<T>(R * C, 1, 0, shift), dy = random.buffer<T>(R * C, 1, 0, shift);
  if (R > 1)
    for (int64_t c = 0; c < C; ++c) x[c] = static_cast<T>(0.0f);  // a row of zeros
  const Buffer<T> y(R * C), dx(R * C);
  const Buffer<float> norm(R);
  std::vector<double> want(static_cast<size_t>(R * C)), want_dx(static_cast<size_t>(R * C));
  for (int64_t r = 0; r < R; ++r) {
    double square = 0, dot = 0;
    for (int64_t c = 0; c < C; ++c) square += x.at(r * C + c) * x.at(r * C + c);
    for (int64_t c = 0; c < C; ++c) dot += x.at(r * C + c) * dy.at(r * C + c);
    const double length = std::sqrt(square), scale = 1 / (length + static_cast<double>(eps));
    for (int64_t c = 0; c < C; ++c) {
      const auto i = static_cast<size_t>(r * C + c);
      want[i] = x.at(r * C + c) * scale;
      want_dx[i] =
          (dy.at(r * C + c) - (length > 0 ? x.at(r * C + c) * dot * scale / length : 0)) * scale;
    }
  }
  siglip2::cuda::l2_normalize_forward(stream, y, norm, x, R, C, eps);
  siglip2::cuda::l2_normalize_backward(stream, dx, dy, x, norm, R, C, eps);
  CHECK_CLOSE(y, want, test::tolerance<T>, test::type_name<T>);
  CHECK_CLOSE(dx, want_dx, C > 1 ? test::tolerance<T> : 1, test::type_name<T>);
}

TEST(l2_normalize) {
  for (const int64_t shift : {0, 1}) {
    run<float>(1, 1, 0.1f, shift);
    run<float>(3, 72, 0.1f, shift);
    run<__nv_bfloat16>(9, 63, 0.1f, shift);
    run<__nv_bfloat16>(5, 768, 0.1f, shift);
  }
}

}  // namespace
