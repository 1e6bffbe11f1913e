// The wrappers of ptx.cuh and wgmma.cuh, by kernels that use them as real ones do.
#include "check.h"
#include "kernels/depth_72.cuh"
#include "kernels/hopper_gemm.cuh"
#include "kernels/mma_gemm.cuh"
#include "kernels/small.cuh"
#include "tensor_map.h"

namespace {

using namespace siglip2::cuda;
using test::Buffer;
using test::Random;
using bf16 = __nv_bfloat16;

// op(B) is (K, N) when transposed, else (N, K).
std::vector<double> product(const Buffer<bf16>& a, const Buffer<bf16>& b, int M, int N, int K,
                            bool transposed) {
  std::vector<double> c;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (int k = 0; k < K; ++k)
        sum += a.at(i * K + k) * (transposed ? b.at(k * N + j) : b.at(j * K + k));
      c.push_back(sum);
    }
  return c;
}

template <bool kTransposeB> void run_mma(int M, int N, int K) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(M + N));
  const auto a = random.buffer<bf16>(M * K), b = random.buffer<bf16>(N * K);
  const Buffer<float> c(M * N);
  const dim3 grid(static_cast<unsigned>((N + 63) / 64), static_cast<unsigned>((M + 63) / 64));
  launch(mma_gemm_kernel<kTransposeB>, grid, 128, kMmaGemmSmem, stream, c.data(), a.data(),
         b.data(), M, N, K);
  CHECK_CLOSE(c, product(a, b, M, N, K, kTransposeB), 1e-11, "mma_gemm");
}
TEST(mma_gemm) {
  run_mma<false>(1, 1, 16);
  run_mma<false>(70, 63, 48);
  run_mma<true>(65, 72, 32);
}

template <bool kTransposeB, bool kRegisters> void run_hopper(int M, int N, int K) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(M + K));
  const auto a = random.buffer<bf16>(M * K), b = random.buffer<bf16>(N * K);
  const Buffer<float> c(M * N);
  const auto a_map = test::tensor_map(a.data(), K, M, 64, 64, 3);
  const auto b_map = kTransposeB ? test::tensor_map(b.data(), N, K, 64, 64, 3)
                                 : test::tensor_map(b.data(), K, N, 64, 64, 3);
  const dim3 grid(static_cast<unsigned>(N / 64), static_cast<unsigned>(M / 64));
  launch(hopper_gemm_kernel<kTransposeB, kRegisters>, grid, 256, kHopperGemmSmem, stream, a_map,
         b_map, c.data(), N, K);
  CHECK_CLOSE(c, product(a, b, M, N, K, kTransposeB), 1e-11, "hopper_gemm");
}
TEST(hopper_gemm) {
  run_hopper<false, false>(64, 64, test::small ? 256 : 512);
  run_hopper<true, true>(64, 64, 256);
  if (test::small) return;
  run_hopper<true, false>(128, 128, 128);
  run_hopper<false, true>(64, 128, 64);
}

TEST(head_dimension_72) {
  test::HostStream stream;
  Random random(1);
  const auto q = random.buffer<bf16>(64 * 72), k = random.buffer<bf16>(64 * 72),
             v = random.buffer<bf16>(64 * 72);
  const Buffer<float> o(64 * 72);
  launch(depth_72_kernel, 1, 128, kDepth72Smem, stream, q.data(), k.data(), v.data(), o.data());
  auto p = product(q, k, 64, 64, 72, false);
  for (double& s : p)
    s = static_cast<double>(static_cast<float>(bf16(static_cast<float>(s) * 0.1f)));
  std::vector<double> want(64 * 72);
  for (size_t i = 0; i < 64; ++i)
    for (size_t j = 0; j < 64; ++j)
      for (size_t d = 0; d < 72; ++d)
        want[i * 72 + d] += p[i * 64 + j] * v.at(static_cast<int64_t>(j * 72 + d));
  CHECK_CLOSE(o, want, 1e-6, "o");  // p may round the other way
}

TEST(wgmma_width_72) {
  test::HostStream stream;
  Random random(2);
  const auto a = random.buffer<bf16>(64 * 16), b = random.buffer<bf16>(72 * 16);
  const Buffer<float> c(64 * 72);
  launch(single_72_kernel, 1, 128, kSingleSmem, stream, a.data(), b.data(), c.data());
  CHECK_CLOSE(c, product(a, b, 64, 72, 16, false), 1e-12, "c");
}

TEST(tma_copies_and_keeps_to_the_bounds) {
  constexpr int kRows = 11, kColumns = 20;  // neither is a multiple of the box
  test::HostStream stream;
  Random random(3);
  const auto from = random.buffer<float>(kRows * kColumns);
  const Buffer<float> to(kRows * kColumns);
  launch(tma_copy_kernel, dim3(2, 2), 32, kTmaSmem, stream,
         test::tensor_map(from.data(), kColumns, kRows, kTmaColumns, kTmaRows, 0),
         test::tensor_map(to.data(), kColumns, kRows, kTmaColumns, kTmaRows, 0));
  std::vector<double> want;
  for (int64_t i = 0; i < from.size(); ++i) want.push_back(2 * from.at(i));
  CHECK_CLOSE(to, want, 0, "copy");
}

TEST(named_barriers) {
  test::HostStream stream;
  const Buffer<float> out(64);
  launch(named_barriers_kernel, 1, 128, kNamedBarriersSmem, stream, out.data(), 5);
  for (int i = 0; i < 64; ++i) CHECK(out[i] == static_cast<float>(5 * i + 10));
}

TEST(intrinsics) {
  test::HostStream stream;
  const Buffer<float> out(32 * 8);
  const Buffer<uint32_t> bits(2);
  launch(intrinsics_kernel, 1, 32, 0, stream, out.data(), bits.data());
  for (int l = 0; l < 32; ++l) {
    const float* row = out.data() + l * 8;
    CHECK(row[0] == static_cast<float>(l ^ 5));
    CHECK(row[1] == static_cast<float>(l % 8 + 3 < 8 ? l + 3 : l));
    CHECK(row[2] == static_cast<float>(l % 8 >= 3 ? l - 3 : l));
    CHECK(row[3] == static_cast<float>(l / 8 * 8 + 1));
    CHECK(row[4] == 496);
    CHECK(row[5] == std::ldexp(1.0f, l - 16));
    CHECK(row[6] == static_cast<float>(l % 2 ? 31 : 30));
    CHECK(std::fabs(row[7] * std::sqrt(static_cast<float>(l + 1)) - 1) < 1e-6f);
  }
  CHECK(bits[0] == 0x49249249u);
  CHECK(bits[1] == 0xc0203f80u);
}

TEST(atomics_over_blocks) {
  test::HostStream stream;
  Buffer<int> counter(1);
  Buffer<float> total(1);
  counter[0] = 0;
  total[0] = 0;
  launch(count_kernel, dim3(3, 2, 2), dim3(8, 4), 0, stream, counter.data(), total.data());
  CHECK(counter[0] == 384);
  CHECK(total[0] == 192);
}

}  // namespace
