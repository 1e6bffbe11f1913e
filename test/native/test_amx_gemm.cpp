// The product of inference on matrix units (native/cpu/amx_gemm.h) with tiles that are arrays, so that packing, bounds and
// independence of rows are checked on any machine.
#include "../../native/cpu/amx_gemm.h"
#include "check.h"

using siglip2::bf16;
using siglip2::DType;
using siglip2::Matrix;

namespace {

// What _tile_dpbf16ps does with four tiles: pairs of K neighbours, one step after the other.
void host_block(const uint16_t* a, const uint16_t* b, int64_t steps, float* c) {
  const auto value = [](uint16_t bits) {
    bf16 x;
    x.bits = bits;
    return static_cast<float>(x);
  };
  std::memset(c, 0, 32 * 32 * sizeof(float));
  for (int64_t k = 0; k < steps; ++k, a += 1024, b += 1024)
    for (int r = 0; r < 32; ++r)
      for (int n = 0; n < 32; ++n)
        for (int pair = 0; pair < 16; ++pair)
          for (int i = 0; i < 2; ++i)
            c[r * 32 + n] += value(a[r * 32 + pair * 2 + i]) *
                             value(b[n / 16 * 512 + pair * 32 + n % 16 * 2 + i]);
}

std::vector<bf16> random_values(int64_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16> out(static_cast<size_t>(n));
  for (auto& v : out) v = normal(rng);
  return out;
}

}  // namespace

TEST(amx_gemm_equals_a_double_product) {
  test::HostStream stream;
  const struct {
    int64_t M, N, K;
  } shapes[] = {{1, 1, 1},     {1, 33, 31},    {31, 32, 33}, {32, 31, 64},
                {65, 96, 100}, {300, 40, 588}, {3, 520, 434}};
  for (const auto& [M, N, K] : shapes)
    for (const bool transposed : {false, true})
      for (const DType type : {DType::bf16, DType::f32}) {
        const int64_t lda = K + 3, ldb = (transposed ? K : N) + 1, ldc = N + 2;
        const auto a = random_values(M * lda, 1), b = random_values((transposed ? N : K) * ldb, 2);
        std::vector<uint8_t> c(static_cast<size_t>(M * ldc * siglip2::size_of(type)), 0x55);
        siglip2::tiles::product(stream, M, N, K, 0.5f, {a.data(), DType::bf16, lda},
                                {b.data(), DType::bf16, ldb, transposed}, c.data(), type, ldc,
                                host_block);
        double worst = 0;
        for (int64_t m = 0; m < M; ++m)
          for (int64_t n = 0; n < ldc; ++n) {
            const int64_t at = m * ldc + n;
            if (n >= N) {  // between the rows nothing is written
              for (int64_t i = 0; i < siglip2::size_of(type); ++i)
                CHECK(c[static_cast<size_t>(at * siglip2::size_of(type) + i)] == 0x55);
              continue;
            }
            double sum = 0, size = 0;
            for (int64_t k = 0; k < K; ++k) {
              const double x = a[static_cast<size_t>(m * lda + k)],
                           y = b[static_cast<size_t>(transposed ? n * ldb + k : k * ldb + n)];
              sum += 0.5 * x * y;
              size += std::abs(x * y);
            }
            const double got =
                type == DType::f32
                    ? reinterpret_cast<const float*>(c.data())[at]
                    : static_cast<float>(reinterpret_cast<const bf16*>(c.data())[at]);
            worst = std::max(
                worst, std::abs(got - sum) / (type == DType::f32
                                                  ? 1e-6 * size + 1e-30
                                                  : 4e-3 * std::abs(sum) + 1e-6 * size + 1e-30));
          }
        CHECK(worst <= 1.0);
      }
}

TEST(amx_gemm_rows_do_not_depend_on_each_other) {
  test::HostStream stream;
  const int64_t M = 290, N = 70, K = 4304 / 16;
  const auto a = random_values(M * K, 3), b = random_values(N * K, 4);
  const auto rows = [&](int64_t from, int64_t count) {
    std::vector<bf16> c(static_cast<size_t>(count * N));
    siglip2::tiles::product(stream, count, N, K, 1.0f, {a.data() + from * K, DType::bf16, K},
                            {b.data(), DType::bf16, K, true}, c.data(), DType::bf16, N, host_block);
    return c;
  };
  const auto whole = rows(0, M);
  for (const auto& [from, count] :
       {std::pair<int64_t, int64_t>{0, 1}, {5, 7}, {31, 2}, {100, 33}, {255, 35}, {3, 260}})
    CHECK(std::memcmp(rows(from, count).data(), whole.data() + from * N,
                      static_cast<size_t>(count * N) * sizeof(bf16)) == 0);
}
