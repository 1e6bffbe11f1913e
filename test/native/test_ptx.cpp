// The wrappers of ptx.cuh and wgmma.cuh, by kernels that use them as real ones do.
#include "check.h"
#include "kernels/depth_72.cuh"
#include "kernels/hopper_gemm.cuh"
#include "kernels/mma_gemm.cuh"
#include "kernels/small.cuh"
#include "kernels/wgmma_tile.cuh"
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

TEST(wgmma_tiles) {
  test::HostStream stream;
  each_wgmma_case([&](const char* name, auto k) {
    if (test::small && k.kN > 64) return;
    Random random(static_cast<unsigned>(k.kN));
    const auto a = random.buffer<bf16>(64 * kTileDepth), b = random.buffer<bf16>(k.kN * kTileDepth);
    const Buffer<float> c(64 * k.kN);
    using Tile = typename decltype(k)::Tile;
    launch(k.kKernel, 1, 128, Tile::kSmem, stream, Tile::A::map(a.data()), Tile::B::map(b.data()),
           a.data(), c.data());
    const Buffer<bf16> rows(64 * kTileDepth);  // A as (64, depth)
    for (int m = 0; m < 64; ++m)
      for (int i = 0; i < kTileDepth; ++i)
        rows[m * kTileDepth + i] = k.kTransposeA ? a[i * 64 + m] : a[m * kTileDepth + i];
    CHECK_CLOSE(c, product(rows, b, 64, k.kN, kTileDepth, k.kTransposeB), 1e-11, name);
  });
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

TEST(cluster_shares_copies) {
  constexpr int kRounds = 5, kClusters = 2;
  test::HostStream stream;
  Random random(6);
  const auto from = random.buffer<float>(kRounds * kTmaRows * kTmaColumns);
  const Buffer<float> out(kClusters * 2 * 32);
  launch_clusters(
      cluster_kernel<>, 2, kClusters * 2, 32, kClusterSmem, stream,
      test::tensor_map(from.data(), kTmaColumns, kRounds * kTmaRows, kTmaColumns, kTmaRows, 0),
      kRounds, out.data());
  std::vector<double> want;
  for (int block = 0; block < kClusters * 2; ++block)
    for (int lane = 0; lane < 32; ++lane) {
      double total = block % 2;
      for (int r = 0; r < kRounds; ++r)
        for (int i = lane; i < kTmaRows * kTmaColumns; i += 32)
          total += from.at(r * kTmaRows * kTmaColumns + i) * (i + 1);
      want.push_back(total);
    }
  CHECK_CLOSE(out, want, 1e-11, "cluster");
}

TEST(tma_box_of_three_dimensions) {
  constexpr int kColumns = 72, kHeads = 3, kRows = 5;
  test::HostStream stream;
  Random random(4);
  const auto from = random.buffer<bf16>(kColumns * kHeads * kRows);
  const Buffer<bf16> out(kBoxRows * kBoxColumns);
  launch(tma_box_kernel, 1, 32, kBoxSmem, stream,
         tensor_map_of<3>(from.data(), {kColumns, kHeads, kRows}, {kColumns, kColumns * kHeads},
                          {kBoxColumns, 1, kBoxRows}, Swizzle::bytes64),
         64, 1, 2, out.data());
  for (int r = 0; r < kBoxRows; ++r)
    for (int c = 0; c < kBoxColumns; ++c) {
      const bool inside = 64 + c < kColumns && 2 + r < kRows;
      CHECK(out.at(r * kBoxColumns + c) ==
            (inside ? from.at(((2 + r) * kHeads + 1) * kColumns + 64 + c) : 0));
    }
}

TEST(copies_shorter_than_16_bytes) {
  test::HostStream stream;
  const Buffer<uint32_t> from(128), out(128);
  for (int i = 0; i < 128; ++i) from[i] = 0x01020304u * static_cast<unsigned>(i + 1);
  launch(short_copy_kernel, 1, 32, kShortCopySmem, stream, from.data(), out.data());
  for (int l = 0; l < 32; ++l) {
    unsigned char got[16], want[16] = {};
    std::memcpy(got, out.data() + l * 4, 16);
    std::memcpy(want, from.data() + l * 4, static_cast<size_t>(l / 2));
    CHECK(std::memcmp(got, want, 16) == 0);
  }
}

TEST(mbarrier_phases) {
  test::HostStream stream;
  const Buffer<int> out(32);
  launch(mbarrier_phases_kernel, 1, 64, kPhasesSmem, stream, 5, out.data());
  for (int l = 0; l < 32; ++l) CHECK(out[l] == 15 * (31 - l));
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

TEST(rounding_to_bf16) {
  test::HostStream stream;
  Buffer<float> x(32), out(32);
  for (int i = 0; i < 32; ++i) x[i] = std::ldexp(1 + static_cast<float>(i) / 1024, i - 16);
  x[0] = INFINITY, x[1] = -1e-40f, x[2] = 3.4e38f;
  launch(round_kernel, 1, 32, 0, stream, x.data(), out.data());
  for (int i = 3; i < 32; ++i) {  // eight bits: to multiples of 1/128 of the leading one
    const int tie = i * 128 % 1024 * 2 == 1024, down = i / 8;
    const int steps = tie ? down + down % 2 : (i + 4) / 8;
    CHECK(out[i] == std::ldexp(1 + static_cast<float>(steps) / 128, i - 16));
  }
  CHECK(std::isinf(out[0]) && std::isinf(out[2]) && out[1] < 0);
}

TEST(sums_of_bf16_pairs) {
  test::HostStream stream;
  const auto x = Random(4).buffer<float>(32);
  const Buffer<uint32_t> out(32);
  launch(bf16_sums_kernel, 1, 32, 0, stream, x.data(), out.data());
  const auto rounded = [](double v) {  // to eight bits, ties to even
    const int exponent = std::ilogb(v) - 7;
    return std::ldexp(std::nearbyint(std::ldexp(v, -exponent)), exponent);
  };
  for (int i = 0; i < 32; ++i) {
    const double low = rounded(rounded(x.at(i)) + rounded(x.at(i ^ 1)));
    const double high = rounded(rounded(3 * x[31 - i]) + rounded(x.at(i)));
    CHECK(__uint_as_float(out[i] << 16) == low && __uint_as_float(out[i] & 0xffff0000u) == high);
  }
}

TEST(extremes) {
  test::HostStream stream;
  Buffer<unsigned long long> least(1);
  Buffer<int> most(1), taken(2);
  least[0] = ~0ull, most[0] = -1, taken[0] = taken[1] = 0;
  launch(extremes_kernel, 1, 64, 0, stream, least.data(), most.data(), taken.data());
  CHECK(least[0] == 5ull << 32);
  CHECK(most[0] == 63 && taken[0] == 1 && taken[1] == 7);
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
