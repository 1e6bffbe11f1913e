// adamw.cu against double precision: segments that end anywhere, unaligned arenas,
// every optional output.
#include "../../cuda/adamw.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

struct Segment {
  int32_t end;
  bool decayed;
  float lr_scale;
};
struct Case {
  int64_t N;
  std::vector<Segment> segments;
  float clip = 1;
  int64_t step = 1, offset = 0;
  bool ema = true, copy = true;
};

void run(const Case& k) {
  const std::string what = "N = " + std::to_string(k.N);
  const float lr = 1e-2f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-6f, decay = 1e-3f,
              ema_decay = 0.99f;
  const auto S = static_cast<int64_t>(k.segments.size());
  test::HostStream stream;
  Random random(static_cast<unsigned>(k.N));
  const auto param = random.buffer<float>(k.N, 1, 0, k.offset), m = random.buffer<float>(k.N, 0.1f);
  const auto v = random.buffer<float>(k.N, 0.01f, 0.1f), grad = random.buffer<float>(k.N);
  const auto ema = k.ema ? random.buffer<float>(k.N) : Buffer<float>();
  const auto copy = k.copy ? Buffer<__nv_bfloat16>(k.N) : Buffer<__nv_bfloat16>();
  const Buffer<int32_t> segments(2 * S);
  const Buffer<float> lr_scale(S), norm2(1);
  for (int64_t i = 0; i < S; ++i) {
    segments[2 * i] = k.segments[static_cast<size_t>(i)].end;
    segments[2 * i + 1] = k.segments[static_cast<size_t>(i)].decayed;
    lr_scale[i] = k.segments[static_cast<size_t>(i)].lr_scale;
  }
  for (int64_t i = 0; i < k.N; ++i) v[i] = std::fabs(v[i]);

  double squares = 0;
  for (int64_t i = 0; i < k.N; ++i) squares += grad.at(i) * grad.at(i);
  siglip2::cuda::sum_of_squares(stream, norm2, grad, k.N);
  CHECK_CLOSE(norm2, {squares}, 1e-12, what + " sum of squares");

  const auto count = static_cast<size_t>(k.N);
  std::vector<double> want_param(count), want_m(count), want_v(count), want_ema(count);
  const double b1 = static_cast<double>(beta1), b2 = static_cast<double>(beta2),
               t = static_cast<double>(k.step);
  const double factor = std::min(1.0, static_cast<double>(k.clip) / std::sqrt(squares));
  size_t segment = 0;
  for (int64_t i = 0; i < k.N; ++i) {
    while (k.segments[segment].end <= i) ++segment;
    const auto u = static_cast<size_t>(i);
    const double g = grad.at(i) * factor,
                 rate = static_cast<double>(lr) * static_cast<double>(k.segments[segment].lr_scale);
    want_m[u] = b1 * m.at(i) + (1 - b1) * g;
    want_v[u] = b2 * v.at(i) + (1 - b2) * g * g;
    const double root = std::sqrt(want_v[u] / (1 - std::pow(b2, t))) + static_cast<double>(eps);
    want_param[u] = param.at(i) - rate * (want_m[u] / (1 - std::pow(b1, t))) / root -
                    (k.segments[segment].decayed ? static_cast<double>(decay) * param.at(i) : 0);
    if (k.ema)
      want_ema[u] = ema.at(i) + (1 - static_cast<double>(ema_decay)) * (want_param[u] - ema.at(i));
  }
  siglip2::cuda::adamw_step(stream, param, m, v, ema, copy, grad, norm2, segments, lr_scale,
                            siglip2::Tensor{}, k.N, S, k.step, lr, beta1, beta2, eps, decay, k.clip,
                            ema_decay);
  CHECK_CLOSE(param, want_param, 1e-11, what + " param");
  CHECK_CLOSE(m, want_m, 1e-11, what + " m");
  CHECK_CLOSE(v, want_v, 1e-11, what + " v");
  if (k.ema) CHECK_CLOSE(ema, want_ema, 1e-11, what + " ema");
  if (k.copy) CHECK_CLOSE(copy, want_param, 1e-5, what + " copy");
}

TEST(adamw_shapes) {
  run({1, {{1, true, 1}}});
  run({3, {{1, true, 1}, {1, false, 5}, {3, false, 0.5f}}});  // one segment is empty
  run({4097, {{5, true, 1}, {4090, false, 2}, {4097, true, 0}}, 1e9f, 7});
  run({1000, {{333, true, 1}, {1000, false, 2}}, 0.5f, 3, 1});  // an unaligned arena
  run({777, {{777, true, 1}}, 1, 1, 0, false, true});
  run({777, {{777, true, 1}}, 1, 1, 0, true, false});
}

TEST(adamw_many_segments) {
  std::vector<Segment> segments;
  for (int32_t end = 3; end < 9000; end += 7)
    segments.push_back({end, end % 2 == 0, static_cast<float>(end % 5)});
  segments.push_back({9001, true, 1});
  run({9001, segments, 2, 100});
}

TEST(adamw_zero_gradient) {  // a norm of zero must not become a factor of NaN
  test::HostStream stream;
  Random random(1);
  const auto zeros = [&](int64_t n) { return random.buffer<float>(n, 0); };
  const auto param = random.buffer<float>(5, 0, 1), m = zeros(5), v = zeros(5), grad = zeros(5),
             norm2 = zeros(1);
  const auto lr_scale = random.buffer<float>(1, 0, 1);
  const Buffer<int32_t> segments(2);
  segments[0] = 5;
  segments[1] = 0;
  siglip2::cuda::adamw_step(stream, param, m, v, siglip2::Tensor{}, siglip2::Tensor{}, grad, norm2,
                            segments, lr_scale, siglip2::Tensor{}, 5, 1, 1, 1e-3f, 0.9f, 0.95f,
                            1e-8f, 0.1f, 1, 0);
  CHECK_CLOSE(param, std::vector<double>(5, 1.0), 0, "param");
}

TEST(adamw_rates_from_the_device) {  // the same bits as with the rates as arguments
  test::HostStream stream;
  const auto update = [&](bool on_device) {
    Random random(3);
    const auto param = random.buffer<float>(70), m = random.buffer<float>(70, 0.1f),
               v = random.buffer<float>(70, 0, 0.1f);
    const auto grad = random.buffer<float>(70), norm2 = random.buffer<float>(1, 0, 1),
               lr_scale = random.buffer<float>(1, 0, 1);
    const Buffer<int32_t> segments(2);
    segments[0] = 70;
    segments[1] = 1;
    const Buffer<float> rates(on_device ? 4 : 0);
    if (on_device) {
      rates[0] = 1e-2f;
      rates[1] = 1e-3f;
      rates[2] = static_cast<float>(1 / (1 - std::pow(static_cast<double>(0.9f), 3)));
      rates[3] = static_cast<float>(1 / (1 - std::pow(static_cast<double>(0.95f), 3)));
    }
    siglip2::cuda::adamw_step(
        stream, param, m, v, siglip2::Tensor{}, siglip2::Tensor{}, grad, norm2, segments, lr_scale,
        on_device ? siglip2::Tensor(rates) : siglip2::Tensor{}, 70, 1, on_device ? 0 : 3,
        on_device ? 0 : 1e-2f, 0.9f, 0.95f, 1e-8f, on_device ? 0 : 1e-3f, 1, 0);
    return std::vector<float>(param.data(), param.data() + 70);
  };
  CHECK(update(true) == update(false));
}

TEST(sum_of_squares_large) {
  if (test::small) return;
  test::HostStream stream;
  Random random(2);
  const auto x = random.buffer<float>(3 * siglip2::cuda::kChunk + 5);
  const Buffer<float> result(1);
  double want = 0;
  for (int64_t i = 0; i < x.size(); ++i) want += x.at(i) * x.at(i);
  siglip2::cuda::sum_of_squares(stream, result, x, x.size());
  CHECK_CLOSE(result, {want}, 1e-12, "sum");
  const Buffer<float> empty(0);
  siglip2::cuda::sum_of_squares(stream, result, empty, 0);
  CHECK(result[0] == 0);
}

}  // namespace
