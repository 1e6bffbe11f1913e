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
  siglip2::cuda::linear_cross_entropy_forward_backward(stream, loss, dh, dweight, dbias, h, weight,
                                                       bias, targets, weights, k.R, k.V, k.D,
                                                       k.groups, k.denominator, grad_scale);
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
TEST(linear_cross_entropy_chunks) {
  if (test::small) return;
  run<float>({2 * siglip2::cuda::kChunkRows + 3, 3, 2, 1, true, true, true, 2});
  run<float>({siglip2::cuda::kChunkRows + 4, 5, 1, 4});
}

// No row counts: nothing changes but dh, which is zero.
TEST(linear_cross_entropy_nothing) { run<float>({3, 5, 2, 1, false, true, true, 1}); }

TEST(linear_cross_entropy_no_token) {
  test::HostStream stream;
  Random random(3);
  const auto h = random.buffer<float>(4), weight = random.buffer<float>(6), loss = random.buffer<float>(1);
  Buffer<int> targets(2);
  targets[0] = 1;
  targets[1] = 3;  // of three tokens
  const siglip2::Tensor none;
  siglip2::cuda::linear_cross_entropy_forward_backward(stream, loss, none, none, none, h, weight,
                                                       none, targets, none, 2, 3, 2, 1, 0, 1);
  CHECK(std::isnan(loss[0]));
}

}  // namespace
