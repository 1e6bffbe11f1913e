// init.cu: every element is the one that native/philox.h gives for it, whatever the length.
#include "../../cuda/init.cu"
#include "check.h"

namespace {

using test::Buffer;

TEST(init_random) {
  test::HostStream stream;
  for (const int64_t N : {1, 5, 1027}) {
    for (int64_t kind = 0; kind < 4; ++kind) {
      const Buffer<float> y(N);
      const double low = kind == 2 ? 0.5 * std::erfc(std::sqrt(2.0)) : 0.0;
      siglip2::cuda::init_random(stream, y, N, kind, 0.3f, 7, 2);
      for (int64_t i = 0; i < N; ++i) {
        const uint32_t word = siglip2::philox_block(7, 2, i / 4).w[i % 4];
        CHECK(y[i] == (kind == 0 ? 0.3f : siglip2::initial_value(word, kind, 0.3f, low)));
        if (kind == 2) CHECK(std::fabs(y[i]) <= 0.6000001f);
      }
    }
  }
}

TEST(init_random_rejects_other_kinds) {
  test::HostStream stream;
  bool thrown = false;
  try {
    siglip2::cuda::init_random(stream, Buffer<float>(1), 1, 4, 1, 0, 0);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}

}  // namespace
