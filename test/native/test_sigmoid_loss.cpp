// sigmoid_loss.cu against double precision: ragged tiles, several chunks, blocks of a larger pair
// matrix.
#include "../../cuda/gemm/cublaslt.cu"
#include "../../cuda/gemm/gemm.cu"
#include "../../cuda/sigmoid_loss.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;
using bf16 = __nv_bfloat16;

struct Case {
  int64_t M, N, D, row0 = 0, col0 = 0;
  float log_scale = std::log(10.0f), bias = -10;
  siglip2::cuda::Chunk chunk{};  // of zeros: what the shape asks for
};

template <class T> Buffer<T> unit_rows(Random& random, int64_t rows, int64_t D) {
  const auto b = random.buffer<T>(rows * D);
  Buffer<T> out(rows * D);
  for (int64_t r = 0; r < rows; ++r) {
    double norm = 0;
    for (int64_t d = 0; d < D; ++d) norm += b.at(r * D + d) * b.at(r * D + d);
    for (int64_t d = 0; d < D; ++d)
      out[r * D + d] = static_cast<T>(static_cast<float>(b.at(r * D + d) / std::sqrt(norm)));
  }
  return out;
}

double softplus_of(double a) {
  return a > 0 ? a + std::log1p(std::exp(-a)) : std::log1p(std::exp(a));
}

std::vector<double> values(const Buffer<float>& b) {
  std::vector<double> v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b.at(i));
  return v;
}

template <class T> void run(const Case& k, bool gradients = true) {
  const std::string what = std::string(test::type_name<T>) + " (" + std::to_string(k.M) + ", " +
                           std::to_string(k.N) + ", " + std::to_string(k.D) + ")";
  test::HostStream stream;
  Random random(static_cast<unsigned>(k.M + 31 * k.N + k.D));
  const auto x = unit_rows<T>(random, k.M, k.D), y = unit_rows<T>(random, k.N, k.D);
  const auto log_scale = random.buffer<float>(1, 0, k.log_scale),
             bias = random.buffer<float>(1, 0, k.bias);
  const float weight = 1.0f / 64;
  const auto loss = random.buffer<float>(1);
  const auto maybe = [&](int64_t n) {
    return gradients ? random.buffer<float>(n, 0.01f) : Buffer<float>();
  };
  const auto dx = maybe(k.M * k.D), dy = maybe(k.N * k.D), dlog_scale = maybe(1), dbias = maybe(1);

  auto want_loss = values(loss), want_dx = values(dx), want_dy = values(dy),
       want_dls = values(dlog_scale), want_db = values(dbias);
  const double scale = std::exp(log_scale.at(0));
  for (int64_t i = 0; i < k.M; ++i)
    for (int64_t j = 0; j < k.N; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < k.D; ++d) dot += x.at(i * k.D + d) * y.at(j * k.D + d);
      const double l = scale * dot + bias.at(0);
      const bool positive = k.row0 + i == k.col0 + j;
      want_loss[0] += static_cast<double>(weight) * softplus_of(positive ? -l : l);
      if (!gradients) continue;
      const double g = static_cast<double>(weight) *
                       (positive ? -1 / (1 + std::exp(l)) : 1 / (1 + std::exp(-l)));
      want_dls[0] += g * scale * dot;
      want_db[0] += g;
      for (int64_t d = 0; d < k.D; ++d) {
        want_dx[static_cast<size_t>(i * k.D + d)] += g * scale * y.at(j * k.D + d);
        want_dy[static_cast<size_t>(j * k.D + d)] += g * scale * x.at(i * k.D + d);
      }
    }
  if (k.chunk.rows)
    siglip2::cuda::run_pairs<T, siglip2::cuda::WholeRows<T>>(
        stream, x.data(), y.data(),
        {loss.data(), dx.data(), dy.data(), dlog_scale.data(), dbias.data()},
        {log_scale.data(), bias.data(), k.M, k.N, k.D, k.row0 - k.col0, weight}, k.chunk);
  else
    siglip2::cuda::sigmoid_loss_forward_backward(stream, loss, dx, dy, dlog_scale, dbias, x, y,
                                                 log_scale, bias, k.M, k.N, k.D, k.row0, k.col0,
                                                 weight);
  CHECK_CLOSE(loss, want_loss, 1e-9, what + " loss");
  if (!gradients) return;
  // G is stored in the operands' type.
  const double most = sizeof(T) == 2 ? test::tolerance<bf16> : 1e-9;
  CHECK_CLOSE(dx, want_dx, most, what + " dx");
  CHECK_CLOSE(dy, want_dy, most, what + " dy");
  CHECK_CLOSE(dlog_scale, want_dls, 1e-9, what + " dlog_scale");
  CHECK_CLOSE(dbias, want_db, 1e-9, what + " dbias");
}

template <class T> void run_all() {
  run<T>({1, 1, 1});
  run<T>({1, 63, 5});
  run<T>({65, 1, 72});
  run<T>({70, 65, 63, 3, 0});  // positives off the main diagonal
  if (test::small) return;
  run<T>({64, 64, 64});
  run<T>({13, 67, 768, 1000, 980});
  run<T>({33, 20, 16, 0, 4096});            // no positives at all
  run<T>({20, 20, 24, 0, 0, 5.0f, -3.0f});  // logits beyond ±100
  run<T>({20, 20, 24}, false);
}

TEST(sigmoid_loss_f32) { run_all<float>(); }
TEST(sigmoid_loss_split_f32) {
  setenv("SIGLIP2_F32", "split", 1);
  run_all<float>();
  setenv("SIGLIP2_F32", "fast", 1);
  bool refused = false;
  try {
    run<float>({1, 1, 1});
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
  unsetenv("SIGLIP2_F32");
}
TEST(sigmoid_loss_bf16) { run_all<__nv_bfloat16>(); }
TEST(sigmoid_loss_chunks) {
  run<float>({66, 37, 3, 0, 0, std::log(10.0f), -10, {64, 16}});
  if (test::small) return;
  run<__nv_bfloat16>({70, 67, 24, 3, 0, std::log(10.0f), -10, {32, 64}});
}
TEST(sigmoid_loss_workspace_below_200_MB) {
  using namespace siglip2::cuda;
  for (const int64_t D : {128, 512, 768, 1024, 1152, 1536, 2048}) {
    const Chunk whole = chunk_of<bf16>(D), wide = chunk_of<float>(D);
    const int64_t sums =
        kSums * static_cast<int64_t>(sizeof(float)) * most_gemm_parts(whole.rows, whole.columns);
    const int64_t thirds = kThirds * D * 2 * (wide.rows + wide.columns);
    CHECK(whole.rows * whole.columns * 2 + sums < 200'000'000);
    CHECK(wide.rows * wide.columns * 4 + thirds + sums < 200'000'000);
    // The products of a chunk fill nine tenths of the waves of tiles that they take.
    const int64_t tiles = tiles_of<HopperTile>(whole.rows, D),
                  waves = ceil_div(tiles, kTargetTiles);
    CHECK(10 * tiles >= 9 * waves * kTargetTiles);
  }
}

double rounded(double v) {
  return static_cast<double>(static_cast<float>(bf16(static_cast<float>(v))));
}

// At the largest scale that training reaches: what bf16 operands and float accumulation do to the
// logits, and that the gradients are no worse than twice those of a loss computed in bf16 throughout.
TEST(sigmoid_loss_accuracy_at_scale_112) {
  if (test::small) return;
  const int64_t B = 48, D = 768;
  const double scale = 112, bias = -16.5;
  test::HostStream stream;
  Random random(11);
  const auto x32 = unit_rows<float>(random, B, D), y32 = unit_rows<float>(random, B, D);
  // Texts resemble their images, as after training: cosine about 0.3 where a pair belongs together.
  for (int64_t i = 0; i < B * D; ++i) y32[i] = 0.3f * x32[i] + 0.954f * y32[i];
  const Buffer<bf16> x(B * D), y(B * D);
  for (int64_t i = 0; i < B * D; ++i) {
    x[i] = bf16(x32[i]);
    y[i] = bf16(y32[i]);
  }
  const Buffer<float> dots(B * B);
  siglip2::cuda::gemm(stream, {B,
                               B,
                               D,
                               siglip2::DType::bf16,
                               {x.data(), D},
                               {y.data(), D, true},
                               dots.data(),
                               siglip2::DType::f32,
                               B});
  double summed = 0, operands = 0, all_bf16 = 0;  // largest errors of a logit
  std::vector<double> want(static_cast<size_t>(B * D)), naive(want);
  for (int64_t i = 0; i < B; ++i)
    for (int64_t j = 0; j < B; ++j) {
      double exact = 0, of_rounded = 0;
      for (int64_t d = 0; d < D; ++d) {
        exact += x32.at(i * D + d) * y32.at(j * D + d);
        of_rounded += x.at(i * D + d) * y.at(j * D + d);
      }
      const double logit = rounded(rounded(scale * rounded(of_rounded)) + bias);
      summed = std::max(summed, scale * std::fabs(dots.at(i * B + j) - of_rounded));
      operands = std::max(operands, scale * std::fabs(dots.at(i * B + j) - exact));
      all_bf16 = std::max(all_bf16, std::fabs(logit - scale * exact - bias));
      const double z = i == j ? 1 : -1, l = scale * of_rounded + bias;
      const double g = -z / (1 + std::exp(z * l)),
                   g_naive = rounded(-z / (1 + std::exp(z * logit)));
      for (int64_t d = 0; d < D; ++d) {
        want[static_cast<size_t>(i * D + d)] += g * scale * y.at(j * D + d) / B;
        naive[static_cast<size_t>(i * D + d)] += rounded(g_naive * scale / B) * y.at(j * D + d);
      }
    }
  std::printf(
      "logit error at scale 112, D 768: %.2g by float sums, %.2g with bf16 operands, %.2g in "
      "bf16 throughout\n",
      summed, operands, all_bf16);
  CHECK(summed < 1e-4);
  CHECK(operands < 0.05);
  CHECK(all_bf16 > operands);

  const auto log_scale = random.buffer<float>(1, 0, static_cast<float>(std::log(scale))),
             shift = random.buffer<float>(1, 0, static_cast<float>(bias));
  const auto loss = random.buffer<float>(1, 0), dx = random.buffer<float>(B * D, 0);
  const siglip2::Tensor none;
  siglip2::cuda::sigmoid_loss_forward_backward(stream, loss, dx, none, none, none, x, y, log_scale,
                                               shift, B, B, D, 0, 0, 1.0f / static_cast<float>(B));
  double ours = 0, theirs = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    ours += std::pow(dx.at(static_cast<int64_t>(i)) - want[i], 2);
    theirs += std::pow(naive[i] - want[i], 2);
    norm += want[i] * want[i];
  }
  std::printf("relative error of dx: %.2g, in bf16 throughout %.2g\n", std::sqrt(ours / norm),
              std::sqrt(theirs / norm));
  CHECK(std::sqrt(ours) <= 2 * std::sqrt(theirs));

  // Float operands, split: as good as float.
  std::vector<double> exact(static_cast<size_t>(B * D));
  double exact_loss = 0, error = 0, size = 0;
  for (int64_t i = 0; i < B; ++i)
    for (int64_t j = 0; j < B; ++j) {
      double dot = 0;
      for (int64_t d = 0; d < D; ++d) dot += x32.at(i * D + d) * y32.at(j * D + d);
      const double z = i == j ? 1 : -1, l = scale * dot + bias, g = -z / (1 + std::exp(z * l));
      exact_loss += softplus_of(-z * l) / B;
      for (int64_t d = 0; d < D; ++d)
        exact[static_cast<size_t>(i * D + d)] += g * scale * y32.at(j * D + d) / B;
    }
  setenv("SIGLIP2_F32", "split", 1);
  const auto loss32 = random.buffer<float>(1, 0), dx32 = random.buffer<float>(B * D, 0);
  siglip2::cuda::sigmoid_loss_forward_backward(stream, loss32, dx32, none, none, none, x32, y32,
                                               log_scale, shift, B, B, D, 0, 0,
                                               1.0f / static_cast<float>(B));
  unsetenv("SIGLIP2_F32");
  for (size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(dx32.at(static_cast<int64_t>(i)) - exact[i], 2);
    size += exact[i] * exact[i];
  }
  std::printf("split float operands: relative error of the loss %.2g, of dx %.2g\n",
              std::fabs(loss32.at(0) / exact_loss - 1), std::sqrt(error / size));
  CHECK(std::fabs(loss32.at(0) / exact_loss - 1) < 2e-5);
  CHECK(std::sqrt(error / size) < 5e-5);
}

// The epilogue on Hopper's product, which small shapes do not choose, against the other product.
TEST(sigmoid_loss_pairs_on_sm90) {
  using namespace siglip2::cuda;
  const int64_t M = 140, N = 264, D = test::small ? 16 : 200;
  test::HostStream stream;
  Random random(13);
  const auto x = unit_rows<bf16>(random, M, D), y = unit_rows<bf16>(random, N, D);
  const auto log_scale = random.buffer<float>(1, 0, 3), bias = random.buffer<float>(1, 0, -5);
  const auto compute = [&](auto tile, const Buffer<bf16>& g, std::vector<double>& totals) {
    using Tile = decltype(tile);
    const int64_t parts = tiles_of<Tile>(M, N) * Tile::kWarps;
    const Buffer<float> sums(kSums * parts);
    PairsEpilogue<bf16> pairs{};
    pairs.g = g.data();
    pairs.sums = sums.data();
    pairs.log_scale = log_scale.data();
    pairs.bias = bias.data();
    pairs.sums_stride = parts;
    pairs.stride = N;
    pairs.diagonal = 5;
    pairs.N = static_cast<int>(N);
    pairs.weight = 0.25f;
    CHECK(launch_tiles<Tile>(stream, MatrixOperand<true>(x.data(), M, D, D),
                             MatrixOperand<true>(y.data(), N, D, D), M, N, D, Splits{1, D},
                             pairs) == parts);
    for (int64_t i = 0; i < sums.size(); ++i) totals[static_cast<size_t>(i / parts)] += sums.at(i);
  };
  const Buffer<bf16> g(M * N), other_g(M * N);
  std::vector<double> totals(kSums), other(kSums), want;
  compute(HopperTurns{}, g, totals);
  compute(SmallTile{}, other_g, other);
  for (int64_t i = 0; i < M * N; ++i) want.push_back(other_g.at(i));
  CHECK_CLOSE(g, want, 1e-7, "G");  // a few sums may round the other way
  for (size_t k = 0; k < kSums; ++k) CHECK(std::fabs(totals[k] / other[k] - 1) < 1e-5);
}

// Blocks of the pair matrix, one call each, add up to the whole, as the steps of a ring do.
TEST(sigmoid_loss_blocks_add_up) {
  constexpr int64_t B = 24, D = 8;
  test::HostStream stream;
  Random random(5);
  const auto x = unit_rows<float>(random, B, D), y = unit_rows<float>(random, B, D);
  const auto log_scale = random.buffer<float>(1, 0, 2), bias = random.buffer<float>(1, 0, -4);
  const auto zeros = [&](int64_t n) { return random.buffer<float>(n, 0); };
  const auto loss = zeros(1), part = zeros(1), dx = zeros(B * D), dx_part = zeros(B * D);
  const siglip2::Tensor none;
  siglip2::cuda::sigmoid_loss_forward_backward(stream, loss, dx, none, none, none, x, y, log_scale,
                                               bias, B, B, D, 0, 0, 1);
  for (int64_t at = 0; at < B; at += 12) {
    const siglip2::Tensor block{y.data() + at * D, 12 * D * 4, siglip2::DType::f32};
    siglip2::cuda::sigmoid_loss_forward_backward(stream, part, dx_part, none, none, none, x, block,
                                                 log_scale, bias, B, 12, D, 0, at, 1);
  }
  CHECK_CLOSE(part, values(loss), 1e-10, "loss of the blocks");
  CHECK_CLOSE(dx_part, values(dx), 1e-10, "dx of the blocks");
}

}  // namespace
