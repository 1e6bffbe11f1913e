// linear_cross_entropy.cu against double precision: ragged tiles, several chunks of rows, rows that
// don't count, groups, a target that is no token.
#include "../../cuda/linear_cross_entropy.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

struct Case {
  int64_t R, V, D, groups = 1;
  bool weighted = false, biased = true, gradients = true;
  int64_t ignored = 0;  // every so many-th row
  float denominator = 0, scale = 1;
  siglip2::cuda::Limits limits{};  // of zeros: what the shape asks for
};

Buffer<int> targets_of(const Case& k) {
  Buffer<int> targets(k.R);
  for (int64_t r = 0; r < k.R; ++r)
    targets[r] = k.ignored && r % k.ignored == 0 ? -1 : static_cast<int>(r * (k.V - 1) % k.V);
  return targets;
}

std::vector<double> values(const Buffer<float>& b) {
  std::vector<double> v;
  for (int64_t i = 0; i < b.size(); ++i) v.push_back(b.at(i));
  return v;
}

template <class T> void run(const Case& k) {
  const std::string what = std::string(test::type_name<T>) + " (" + std::to_string(k.R) + ", " +
                           std::to_string(k.V) + ", " + std::to_string(k.D) + ")";
  test::HostStream stream;
  Random random(static_cast<unsigned>(k.R + 31 * k.V + k.D));
  const auto h = random.buffer<T>(k.R * k.D);
  const auto weight = random.buffer<T>(k.V * k.D, k.scale / std::sqrt(static_cast<float>(k.D)));
  const auto bias = k.biased ? random.buffer<float>(k.V) : Buffer<float>();
  const auto targets = targets_of(k);
  const auto weights = k.weighted ? random.buffer<float>(k.R, 0.2f, 1) : Buffer<float>();
  if (k.weighted) weights[k.R - 1] = 0;
  const auto loss = random.buffer<float>(k.groups);
  const auto maybe = [&](int64_t n) {
    return k.gradients ? random.buffer<float>(n, 0.01f) : Buffer<float>();
  };
  const auto dweight = maybe(k.V * k.D), dbias = maybe(k.V);
  const auto dh = k.gradients ? Buffer<T>(k.R * k.D) : Buffer<T>();
  const float grad_scale = 0.75f;

  auto want_loss = values(loss), want_dweight = values(dweight), want_dbias = values(dbias);
  std::vector<double> want_dh(static_cast<size_t>(dh.size()), 0.0), l(static_cast<size_t>(k.V));
  double total = 0;
  for (int64_t r = 0; r < k.R; ++r)
    if (targets[r] >= 0) total += k.weighted ? weights.at(r) : 1;
  const double denominator = k.denominator != 0 ? static_cast<double>(k.denominator) : total;
  for (int64_t r = 0; r < k.R; ++r) {
    const double w = (k.weighted ? weights.at(r) : 1) / denominator;
    if (targets[r] < 0 || w == 0) continue;
    double sum = 0;
    for (int64_t v = 0; v < k.V; ++v) {
      double dot = k.biased ? bias.at(v) : 0;
      for (int64_t d = 0; d < k.D; ++d) dot += h.at(r * k.D + d) * weight.at(v * k.D + d);
      l[static_cast<size_t>(v)] = dot;
      sum += std::exp(dot);
    }
    want_loss[static_cast<size_t>(r / (k.R / k.groups))] +=
        w * (std::log(sum) - l[static_cast<size_t>(targets[r])]);
    if (!k.gradients) continue;
    for (int64_t v = 0; v < k.V; ++v) {
      const double p = std::exp(l[static_cast<size_t>(v)]) / sum;
      const double g = (p - (v == targets[r] ? 1 : 0)) * w * static_cast<double>(grad_scale);
      want_dbias[static_cast<size_t>(v)] += g;
      for (int64_t d = 0; d < k.D; ++d) {
        want_dh[static_cast<size_t>(r * k.D + d)] += g * weight.at(v * k.D + d);
        want_dweight[static_cast<size_t>(v * k.D + d)] += g * h.at(r * k.D + d);
      }
    }
  }
  siglip2::cuda::forward_backward(stream, loss, dh, dweight, dbias, h, weight, bias, targets,
                                  weights, k.R, k.V, k.D, k.groups, k.denominator, grad_scale,
                                  k.limits.rows ? &k.limits : nullptr);
  CHECK_CLOSE(loss, want_loss, 1e-11, what + " loss");
  if (!k.gradients) return;
  const double most = 2 * test::tolerance<T>;  // the slopes are rounded to T, too
  CHECK_CLOSE(dh, want_dh, most, what + " dh");
  CHECK_CLOSE(dweight, want_dweight, most, what + " dweight");
  CHECK_CLOSE(dbias, want_dbias, most, what + " dbias");
}

template <class T> void run_all() {
  run<T>({1, 2, 1});
  run<T>({5, 67, 3, 1, true, true, true, 2});
  run<T>({6, 20, 17, 3, false, false, true, 0, 4});
  if (test::small) return;
  run<T>({66, 130, 65, 2, true, true, true, 3});
  run<T>({4, 300, 8, 1, false, true, false});
  run<T>({3, 40, 8, 1, false, true, true, 0, 0, 20});
}

TEST(linear_cross_entropy_f32) { run_all<float>(); }
TEST(linear_cross_entropy_bf16) { run_all<__nv_bfloat16>(); }
// Chunks of rows, and of the vocabulary, which has 128 tokens in one at least; the last rows don't fill a tile.
TEST(linear_cross_entropy_chunks) {
  run<float>({70, 5, 2, 2, true, true, true, 2, 0, 1, {64, 1}});
  if (test::small) return;
  run<float>({198, 3, 2, 1, true, true, true, 3, 0, 1, {128, 1 << 20}});
  run<float>({66, 260, 2, 1, true, true, true, 0, 0, 1, {64, 1}});
  run<__nv_bfloat16>({130, 300, 24, 1, true, true, true, 3, 0, 1, {128, 1}});
}

// The products on Hopper, which small shapes do not choose, against the others: rows that don't count in the last tile and
// in one of their own, and a cluster's pair of tiles of which one is left out.
TEST(linear_cross_entropy_on_sm90) {
  using namespace siglip2::cuda;
  using bf16 = __nv_bfloat16;
  const int64_t R = test::small ? 136 : 390, V = test::small ? 40 : 300, D = test::small ? 16 : 72;
  const int counted = test::small ? 20 : 130, stride = static_cast<int>(ceil_div(V, kGroup)),
            row = static_cast<int>((V + 7) / 8 * 8);
  test::HostStream stream;
  Random random(9);
  const auto h = random.buffer<bf16>(R * D), weight = random.buffer<bf16>(V * D, 0.3f);
  const auto bias = random.buffer<float>(V);
  const Buffer<int> order(R), count(1), targets(R);
  count[0] = counted;
  const Buffer<RowSlopes> slopes(R);
  for (int64_t r = 0; r < R; ++r) {
    targets[r] = r < counted ? static_cast<int>(r * 7 % V) : -1;
    if (r < counted) slopes[r] = {1, 0.01f, -0.5f, targets[r]};
    else slopes[r] = {INFINITY, 0, 0, -1};
  }
  const Counted rows{order.data(), count.data(), nullptr};
  struct Results {
    std::vector<double> parts, at, g, dweight;
  };
  const auto compute = [&](auto tile, auto plain_tile) {
    using Tile = decltype(tile);
    const Buffer<Exponentials> parts(R * stride);
    const Buffer<float> at(R), dweight(V * D);
    const Buffer<bf16> g(R * row);
    const MatrixOperand<true> a(h.data(), R, D, D), b(weight.data(), V, D, D);
    ExponentialsEpilogue sums{};
    sums.parts = parts.data();
    sums.at = at.data();
    sums.bias = bias.data();
    sums.targets = targets.data();
    sums.stride = stride;
    sums.N = static_cast<int>(V);
    launch_tiles<Tile>(stream, a, b, R, V, D, Splits{1, D}, CountedRows(sums, rows, 0, true));
    SlopesEpilogue<bf16> of_g{};
    of_g.g = g.data();
    of_g.bias = bias.data();
    of_g.rows = slopes.data();
    of_g.stride = row;
    of_g.N = static_cast<int>(V);
    launch_tiles<Tile>(stream, a, b, R, V, D, Splits{1, D}, CountedRows(of_g, rows, 0, true));
    for (int64_t i = (counted + 127) / 128 * 128 * row; i < g.size(); ++i)
      g[i] = NAN;  // of tiles left out
    launch_tiles<decltype(plain_tile)>(
        stream, MatrixOperand<false>(g.data(), R, V, row), MatrixOperand<false>(h.data(), R, D, D),
        V, D, R, Splits{1, R},
        CountedRows(StoreEpilogue<float>(dweight.data(), nullptr, D, D, false), rows, 0, false));
    Results results;
    for (int64_t i = 0; i < counted * stride; ++i)
      results.parts.push_back(std::log(static_cast<double>(parts[i].sum)) +
                              static_cast<double>(parts[i].most));
    for (int64_t r = 0; r < counted; ++r) {
      results.at.push_back(at.at(r));
      for (int64_t v = 0; v < V; ++v) results.g.push_back(g.at(r * row + v));
    }
    for (int64_t i = 0; i < V * D; ++i) results.dweight.push_back(dweight.at(i));
    return results;
  };
  const Results got = compute(HopperTurns{}, HopperTile{}),
                want = compute(SmallTile{}, SmallTile{});
  const auto close = [](const std::vector<double>& a, const std::vector<double>& b, double most) {
    CHECK(a.size() == b.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (a[i] - b[i]) * (a[i] - b[i]);
      size += b[i] * b[i];
    }
    CHECK(error <= most * size);
  };
  close(got.parts, want.parts, 1e-11);
  close(got.at, want.at, 1e-11);
  close(got.g, want.g, 1e-7);  // a few sums may round the other way
  close(got.dweight, want.dweight, 1e-7);
}

// No row counts: nothing changes but dh, which is zero.
TEST(linear_cross_entropy_nothing) { run<float>({3, 5, 2, 1, false, true, true, 1}); }

TEST(linear_cross_entropy_no_token) {
  test::HostStream stream;
  Random random(3);
  const auto h = random.buffer<float>(4), weight = random.buffer<float>(6),
             loss = random.buffer<float>(1);
  Buffer<int> targets(2);
  targets[0] = 1;
  targets[1] = 3;  // of three tokens
  const siglip2::Tensor none;
  siglip2::cuda::linear_cross_entropy_forward_backward(stream, loss, none, none, none, h, weight,
                                                       none, targets, none, 2, 3, 2, 1, 0, 1);
  CHECK(std::isnan(loss[0]));
}

}  // namespace
