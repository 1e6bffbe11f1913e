// gather_rows.cu: copies, and an index from outside.
#include "../../cuda/gather_rows.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

template <class T> void gather(int64_t R, int64_t D) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(R + D));
  const int64_t M = (R + 1) / 2;
  const auto x = random.buffer<T>(R * D), dy = random.buffer<T>(M * D);
  const Buffer<int32_t> index(M);
  std::vector<double> want_y, want_dx(static_cast<size_t>(R * D));
  for (int64_t m = 0; m < M; ++m) {
    index[m] = static_cast<int32_t>(2 * m);
    for (int64_t d = 0; d < D; ++d) {
      want_y.push_back(x.at(2 * m * D + d));
      want_dx[static_cast<size_t>(2 * m * D + d)] = dy.at(m * D + d);
    }
  }
  const Buffer<T> y(M * D), dx(R * D);
  siglip2::cuda::gather_rows_forward(stream, y, x, index, M, R, D);
  siglip2::cuda::gather_rows_backward(stream, dx, dy, index, M, R, D);
  CHECK_CLOSE(y, want_y, 0, "gather y");
  CHECK_CLOSE(dx, want_dx, 0, "gather dx");
  // An index from outside reads nothing foreign and shows in the result.
  index[M - 1] = static_cast<int32_t>(R);
  siglip2::cuda::gather_rows_forward(stream, y, x, index, M, R, D);
  CHECK(std::isnan(y.at(M * D - 1)));
}

TEST(gather_rows) {
  gather<float>(1, 1);
  gather<float>(9, 300);
  gather<__nv_bfloat16>(6, 24);
}

}  // namespace
