// layer_norm.cu against double precision, for every path: packed and looped, with and without each
// optional tensor.
#include "../../cuda/layer_norm.cu"
#include "check.h"

namespace {

using test::Buffer;
using test::Random;

struct Shape {
  int64_t R, C;
  bool residual = false, unaligned = false;
};
enum class Outputs { both, weight_only, none };

template <class T> void run(const Shape& shape, Outputs outputs) {
  const auto [R, C, with_residual, unaligned] = shape;
  const std::string what =
      std::string(test::type_name<T>) + " (" + std::to_string(R) + ", " + std::to_string(C) + ")";
  const int64_t shift = unaligned ? 1 : 0;
  const float eps = 1e-6f;
  test::HostStream stream;
  Random random(static_cast<unsigned>(R * 7 + C));
  const auto x = random.buffer<T>(R * C, 2, 1, shift);
  const auto residual = with_residual ? random.buffer<T>(R * C) : Buffer<T>();
  const auto weight = random.buffer<float>(C, 0.3f, 1), bias = random.buffer<float>(C);
  const auto dy = random.buffer<T>(R * C, 1, 0, shift);
  const auto dsum = with_residual ? random.buffer<T>(R * C) : Buffer<T>();
  const Buffer<T> y(R * C), dx(R * C), sum = with_residual ? Buffer<T>(R * C) : Buffer<T>();
  const Buffer<float> mean(R), rstd(R);
  const auto dweight = outputs != Outputs::none ? random.buffer<float>(C) : Buffer<float>();
  const auto dbias = outputs == Outputs::both ? random.buffer<float>(C) : Buffer<float>();

  const auto count = static_cast<size_t>(R * C), columns = static_cast<size_t>(C),
             rows = static_cast<size_t>(R);
  std::vector<double> h(count), want_y(count), want_mean(rows), want_rstd(rows), want_dx(count);
  std::vector<double> want_dweight(columns), want_dbias(columns);
  for (int64_t c = 0; c < C; ++c) {
    if (dweight.data()) want_dweight[static_cast<size_t>(c)] = dweight.at(c);
    if (dbias.data()) want_dbias[static_cast<size_t>(c)] = dbias.at(c);
  }
  for (int64_t r = 0; r < R; ++r) {
    double* const row = h.data() + r * C;
    double m = 0, v = 0, mean_g = 0, mean_gn = 0;
    for (int64_t c = 0; c < C; ++c) {
      row[c] = x.at(r * C + c);
      if (with_residual)
        row[c] =
            static_cast<float>(static_cast<T>(static_cast<float>(row[c] + residual.at(r * C + c))));
      m += row[c] / static_cast<double>(C);
    }
    for (int64_t c = 0; c < C; ++c) v += (row[c] - m) * (row[c] - m) / static_cast<double>(C);
    const double s = 1 / std::sqrt(v + static_cast<double>(eps));
    want_mean[static_cast<size_t>(r)] = m;
    want_rstd[static_cast<size_t>(r)] = s;
    for (int64_t c = 0; c < C; ++c) {
      const double n = (row[c] - m) * s, g = dy.at(r * C + c) * weight.at(c);
      want_y[static_cast<size_t>(r * C + c)] = n * weight.at(c) + bias.at(c);
      mean_g += g / static_cast<double>(C);
      mean_gn += g * n / static_cast<double>(C);
      want_dweight[static_cast<size_t>(c)] += dy.at(r * C + c) * n;
      want_dbias[static_cast<size_t>(c)] += dy.at(r * C + c);
    }
    for (int64_t c = 0; c < C; ++c) {
      const double n = (row[c] - m) * s, g = dy.at(r * C + c) * weight.at(c);
      const double direct = with_residual ? dsum.at(r * C + c) : 0;
      want_dx[static_cast<size_t>(r * C + c)] = s * (g - mean_g - n * mean_gn) + direct;
    }
  }

  siglip2::cuda::layer_norm_forward(stream, y, sum, mean, rstd, x, residual, weight, bias, R, C,
                                    eps);
  CHECK_CLOSE(y, want_y, test::tolerance<T>, what + " y");
  CHECK_CLOSE(mean, want_mean, 1e-11, what + " mean");
  CHECK_CLOSE(rstd, want_rstd, 1e-11, what + " rstd");
  if (with_residual) CHECK_CLOSE(sum, h, 0, what + " sum");
  const siglip2::Tensor saved = with_residual ? sum : x;
  siglip2::cuda::layer_norm_backward(stream, dx, dweight, dbias, dy, dsum, saved, weight, mean,
                                     rstd, R, C);
  if (C > 1)
    CHECK_CLOSE(dx, want_dx, 2 * test::tolerance<T>,
                what + " dx");  // one column: dx is 0 up to rounding
  if (dweight.data()) CHECK_CLOSE(dweight, want_dweight, 1e-10, what + " dweight");
  if (dbias.data()) CHECK_CLOSE(dbias, want_dbias, 1e-11, what + " dbias");
}

template <class T> void run_all() {
  for (const Shape& s : {Shape{1, 1}, Shape{1, 63}, Shape{3, 72, true}, Shape{9, 63, true},
                         Shape{17, 72, true, true}})
    run<T>(s, Outputs::both);
  run<T>({5, 768, true}, Outputs::both);
  if (test::small) return;
  for (const Shape& s :
       {Shape{7, 1152}, Shape{4, 1536, true}, Shape{2, 2048, true}, Shape{3, 2056}})
    run<T>(s, Outputs::both);
  run<T>({1100, 8, true}, Outputs::both);  // more rows than the backward pass has warps
  run<T>({2200, 3}, Outputs::both);
  run<T>({6, 768}, Outputs::weight_only);
  run<T>({6, 768}, Outputs::none);
  run<T>({6, 63}, Outputs::none);
}

TEST(layer_norm_f32) { run_all<float>(); }
TEST(layer_norm_bf16) { run_all<__nv_bfloat16>(); }

TEST(layer_norm_rejects_wrong_sizes) {
  test::HostStream stream;
  const Buffer<float> a(8), one(2), four(4);
  bool thrown = false;
  try {
    siglip2::cuda::layer_norm_forward(stream, a, siglip2::Tensor{}, one, one, a, siglip2::Tensor{},
                                      a, four, 2, 4, 1e-6f);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}

TEST(layer_norm_nothing_to_do) {
  test::HostStream stream;
  const Buffer<float> c(4);
  siglip2::cuda::layer_norm_forward(stream, siglip2::Tensor{}, siglip2::Tensor{}, siglip2::Tensor{},
                                    siglip2::Tensor{}, siglip2::Tensor{}, siglip2::Tensor{}, c, c,
                                    0, 4, 1e-6f);
}

}  // namespace
