// gemm.cuh, gemm_f32.cuh and gemm() against double precision: every layout, ragged shapes, addresses
// that forbid 16-byte reads, splits of K, epilogues; and linear.cu, which is made of them.
#include "../../cuda/gemm/cublaslt.cu"
#include "../../cuda/gemm/gemm.cu"
#include "../../cuda/linear.cu"
#include "check.h"

namespace {

using namespace siglip2::cuda;
using siglip2::DType;
using siglip2::Tensor;
using test::Buffer;
using test::Random;
using bf16 = __nv_bfloat16;

double gelu_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double exact_gelu_of(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
template <class F> double slope_of(F f, double x) { return (f(x + 1e-5) - f(x - 1e-5)) / 2e-5; }

struct Case {
  int64_t M, N, K;
  bool a_transposed = false, b_transposed = false;
  int64_t padding = 0;  // of every stride
  int64_t offset = 0;   // of every address, in elements
  bool accumulate = false, bias = false, gelu = false;
};

std::string name_of_case(const Case& k, const char* type) {
  return std::string(type) + " " + std::to_string(k.M) + "x" + std::to_string(k.N) + "x" +
         std::to_string(k.K) + (k.a_transposed ? " At" : "") + (k.b_transposed ? " Bt" : "") +
         (k.padding ? " padded" : "") + (k.offset ? " offset" : "");
}

// The matrix as (rows, columns); what lies behind the rows' ends is a value that would be seen.
template <class T> struct Matrix {
  Buffer<T> memory;
  int64_t stride;
  bool transposed;
  Matrix(Random& random, int64_t rows, int64_t columns, bool transposed_, const Case& k)
      : stride((transposed_ ? rows : columns) + k.padding), transposed(transposed_) {
    const int64_t lines = transposed ? columns : rows;
    memory = random.buffer<T>((lines - 1) * stride + (transposed ? rows : columns), 1, 0, k.offset);
  }
  double at(int64_t r, int64_t c) const {
    return memory.at(transposed ? c * stride + r : r * stride + c);
  }
  GemmMatrix view() const { return {memory.data(), stride, transposed}; }
};

template <class T>
std::vector<double> exact_product(const Matrix<T>& a, const Matrix<T>& b, const Case& k) {
  std::vector<double> c;
  for (int64_t i = 0; i < k.M; ++i)
    for (int64_t j = 0; j < k.N; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k.K; ++l) sum += a.at(i, l) * b.at(l, j);
      c.push_back(sum);
    }
  return c;
}

// A dense copy of a strided result, for the comparison.
template <class C> Buffer<C> dense(const Buffer<C>& from, int64_t M, int64_t N, int64_t stride) {
  Buffer<C> to(M * N);
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) to[i * N + j] = from[i * stride + j];
  return to;
}

template <class T, class C> void run(const Case& k) {
  const std::string what = name_of_case(k, test::type_name<T>);
  test::HostStream stream;
  Random random(static_cast<unsigned>(k.M + 3 * k.N + 7 * k.K));
  const Matrix<T> a(random, k.M, k.K, k.a_transposed, k), b(random, k.K, k.N, k.b_transposed, k);
  const int64_t stride = k.N + k.padding;
  const auto c = random.buffer<C>((k.M - 1) * stride + k.N, 1, 0, k.offset);
  const auto pre = k.gelu ? Buffer<C>((k.M - 1) * stride + k.N, k.offset) : Buffer<C>();
  const auto bias = k.bias ? random.buffer<float>(k.N) : Buffer<float>();
  auto want = exact_product(a, b, k), want_pre = want;
  for (int64_t i = 0; i < k.M * k.N; ++i) {
    double& w = want[static_cast<size_t>(i)];
    if (k.bias) w += bias.at(i % k.N);
    if (k.accumulate) w += c.at(i / k.N * stride + i % k.N);
    want_pre[static_cast<size_t>(i)] = w;
    if (k.gelu) w = gelu_of(w);
  }
  GemmDesc d{k.M,      k.N,      k.K,      siglip2::dtype_of<T>,
             a.view(), b.view(), c.data(), siglip2::dtype_of<C>,
             stride};
  d.accumulate = k.accumulate;
  d.bias = bias.data();
  d.pre = pre.data();
  gemm(stream, d);
  CHECK_CLOSE(dense(c, k.M, k.N, stride), want, test::tolerance<C>, what);
  if (k.gelu)
    CHECK_CLOSE(dense(pre, k.M, k.N, stride), want_pre, test::tolerance<C>, what + " pre");
}

template <class T>
void run_layouts(int64_t M, int64_t N, int64_t K, int64_t padding = 0, int64_t offset = 0) {
  for (const bool at : {false, true})
    for (const bool bt : {false, true}) run<T, float>({M, N, K, at, bt, padding, offset});
}

template <class T> void run_all() {
  run_layouts<T>(1, 1, 1);
  run_layouts<T>(33, 40, 72);
  run_layouts<T>(9, 70, 35, 5);
  if (test::small) return;
  run_layouts<T>(65, 63, 130, 6, 2);  // strides of 16 bytes are rare here, aligned addresses absent
  run_layouts<T>(72, 128, 64, 0, 1);
  run<T, T>({70, 72, 100, false, true, 0, 0, false, true});
  run<T, T>({70, 71, 100, false, true, 1, 0, false, true});
  run<T, T>({66, 40, 48, false, true, 0, 0, false, true, true});
  run<T, T>({66, 41, 48, false, true, 3, 0, false, false, true});
  run<T, float>({40, 24, 33, false, false, 0, 0, true});
  run<T, float>({40, 23, 33, true, false, 0, 0, true, true});
}
TEST(gemm_f32) { run_all<float>(); }
TEST(gemm_bf16) { run_all<bf16>(); }
TEST(gemm_bf16_to_bf16) {
  run<bf16, bf16>({20, 30, 40});
  run<bf16, bf16>({20, 32, 40, true, false, 8});
}

TEST(gemm_splits_of_the_depth) {
  CHECK(splits_of(768, 768, 65536).count > 4);
  CHECK(splits_of(65536, 768, 768).count == 1);
  const Splits s = splits_of(8, 24, 1100);
  CHECK(s.count == 2 && s.depth % 64 == 0 && s.depth * s.count >= 1100);
  run<bf16, float>({8, 24, 1100, true, false, 0, 0, true});
  if (test::small) return;
  run<bf16, float>({5, 7, 2050, false, true});
  run<float, float>({9, 24, 1030, true, false, 0, 0, true});
}

// The tile for large products, which the small shapes of a test would not choose.
template <class Tile, class A, class B> void run_tile(int64_t M, int64_t N, int64_t K) {
  using T = std::conditional_t<std::is_same_v<Tile, LargeFloatTile>, float, bf16>;
  const Case k{M, N, K, !A::kDepthInLine, B::kDepthInLine};
  test::HostStream stream;
  Random random(7);
  const Matrix<T> a(random, M, K, k.a_transposed, k), b(random, K, N, k.b_transposed, k);
  const Buffer<float> c(M * N);
  const auto lines = [](bool transposed, int64_t rows, int64_t columns) {
    return transposed ? columns : rows;
  };
  const A operand_a(a.memory.data(), lines(a.transposed, M, K), lines(!a.transposed, M, K),
                    a.stride);
  const B operand_b(b.memory.data(), lines(b.transposed, K, N), lines(!b.transposed, K, N),
                    b.stride);
  launch_tiles<Tile>(stream, operand_a, operand_b, M, N, K, Splits{1, K},
                     StoreEpilogue<float>(c.data(), nullptr, N, N, false));
  CHECK_CLOSE(c, exact_product(a, b, k), 1e-11, name_of_case(k, "large tile"));
}
TEST(gemm_large_tiles) {
  run_tile<LargeTile, MatrixOperand<true>, MatrixOperand<true>>(130, 136, 72);
  if (test::small) return;
  run_tile<LargeTile, MatrixOperand<false>, MatrixOperand<false>>(136, 260, 40);
  run_tile<LargeTile, MatrixOperand<true>, MatrixOperand<false>>(60, 128, 200);
  run_tile<LargeTile, MatrixOperand<false>, MatrixOperand<true>>(128, 30, 33);
  run_tile<LargeFloatTile, FloatOperand<true>, FloatOperand<true>>(130, 131, 20);
  run_tile<LargeFloatTile, FloatOperand<false>, FloatOperand<false>>(128, 140, 17);
}

// wgmma and TMA: all layouts, ragged edges, several tiles for a block, more steps than stages, and clusters, which an
// even number of tiles downwards gets, as 136 rows.
TEST(gemm_sm90) {
  run_tile<HopperTile, MatrixOperand<true>, MatrixOperand<true>>(72, 264, 328);
  if (test::small) return;
  run_tile<HopperTile, MatrixOperand<false>, MatrixOperand<false>>(136, 256, 70);
  run_tile<HopperTile, MatrixOperand<true>, MatrixOperand<false>>(128, 72, 136);
  run_tile<HopperTile, MatrixOperand<false>, MatrixOperand<true>>(264, 300, 64);
  run_tile<HopperTile, MatrixOperand<true>, MatrixOperand<true>>(136, 264, 328);
}
TEST(gemm_sm90_turns) {
  run_tile<HopperTurns, MatrixOperand<true>, MatrixOperand<true>>(136, 136, 136);
  if (test::small) return;
  run_tile<HopperTurns, MatrixOperand<true>, MatrixOperand<true>>(72, 392, 456);
  run_tile<HopperTurns, MatrixOperand<true>, MatrixOperand<true>>(200, 264, 456);
  run_tile<HopperTurns, MatrixOperand<false>, MatrixOperand<false>>(264, 256, 70);
  run_tile<HopperTurns, MatrixOperand<true>, MatrixOperand<false>>(128, 72, 136);
  run_tile<HopperTurns, MatrixOperand<false>, MatrixOperand<true>>(136, 300, 64);
}
TEST(gemm_sm90_splits) {
  const int64_t M = 24, N = 40, K = 200;
  test::HostStream stream;
  Random random(9);
  const Case k{M, N, K, false, true};
  const Matrix<bf16> a(random, M, K, false, k), b(random, K, N, true, k);
  const Buffer<float> parts(2 * M * N), c(M * N);
  launch_tiles<HopperTile>(stream, MatrixOperand<true>(a.memory.data(), M, K, K),
                           MatrixOperand<true>(b.memory.data(), N, K, K), M, N, K, Splits{2, 128},
                           StoreEpilogue<float>(parts.data(), nullptr, N, N, false, M * N));
  sum_splits(stream, c.data(), parts.data(), M, N, N, 2, false);
  CHECK_CLOSE(c, exact_product(a, b, k), 1e-11, "splits");
}

// Every tile is computed by one block, whatever the numbers of tiles.
TEST(gemm_order_of_tiles) {
  for (int down = 1; down < 20; ++down)
    for (int across = 1; across < 5; ++across) {
      std::vector<int> seen(static_cast<size_t>(down * across));
      for (int tile = 0; tile < down * across; ++tile) {
        const TilePlace p = place_of_tile(tile, down, across);
        CHECK(p.row >= 0 && p.row < down && p.column >= 0 && p.column < across);
        ++seen[static_cast<size_t>(p.row * across + p.column)];
      }
      for (const int times : seen) CHECK(times == 1);
    }
}

TEST(gemm_repeats_its_bits) {
  test::HostStream stream;
  Random random(3);
  const int64_t M = 24, N = 16, K = 1200;
  const auto a = random.buffer<bf16>(K * M), b = random.buffer<bf16>(K * N);
  const Buffer<float> first(M * N), again(M * N);
  for (const auto* c : {&first, &again})
    gemm(stream,
         {M, N, K, DType::bf16, {a.data(), M, true}, {b.data(), N}, c->data(), DType::f32, N});
  CHECK(!std::memcmp(first.data(), again.data(), sizeof(float) * M * N));
}

TEST(gemm_refuses) {
  test::HostStream stream;
  const Buffer<float> c(4);
  const auto refused = [&](GemmDesc d, const char* text) {
    try {
      gemm(stream, d);
      CHECK(!"an invalid product was accepted");
    } catch (const std::invalid_argument& e) {
      CHECK(std::string(e.what()).find(text) != std::string::npos);
    }
  };
  refused({2, 2, 2, DType::u8, {c.data(), 2}, {c.data(), 2}, c.data(), DType::f32, 2},
          "must be f32 or bf16");
  refused({2, 2, 2, DType::f32, {c.data(), 2}, {c.data(), 2}, c.data(), DType::bf16, 2},
          "a result is f32");
  refused(
      {int64_t{1} << 31, 2, 2, DType::f32, {c.data(), 2}, {c.data(), 2}, c.data(), DType::f32, 2},
      "2^30");
}

template <class T> void run_linear(int64_t M, int64_t N, int64_t K, bool gelued, bool biased = true,
                                   bool after_gelu = false, bool exact = false) {
  const auto form = [&](double v) { return exact ? exact_gelu_of(v) : gelu_of(v); };
  const std::string what = std::string("linear ") + test::type_name<T>;
  test::HostStream stream;
  Random random(static_cast<unsigned>(M + N));
  const float scale = 1 / std::sqrt(static_cast<float>(K));
  const auto x = random.buffer<T>(M * K), w = random.buffer<T>(N * K, scale),
             dy = random.buffer<T>(M * N);
  const auto bias = biased ? random.buffer<float>(N) : Buffer<float>();
  const Buffer<T> y(M * N), dx(M * K);
  const auto pre = gelued ? Buffer<T>(M * N) : Buffer<T>(),
             x_pre = after_gelu ? random.buffer<T>(M * K) : Buffer<T>();
  const auto dw = random.buffer<float>(N * K),
             db = biased ? random.buffer<float>(N) : Buffer<float>();
  std::vector<double> want_y, want_dx(static_cast<size_t>(M * K)), want_dw, want_db;
  for (int64_t i = 0; i < N * K; ++i) want_dw.push_back(dw.at(i));
  for (int64_t i = 0; i < db.size(); ++i) want_db.push_back(db.at(i));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      double sum = biased ? bias.at(n) : 0;
      for (int64_t k = 0; k < K; ++k) sum += x.at(m * K + k) * w.at(n * K + k);
      want_y.push_back(gelued ? form(sum) : sum);
      const double g = dy.at(m * N + n) * (gelued ? slope_of(form, sum) : 1);
      if (biased) want_db[static_cast<size_t>(n)] += g;
      for (int64_t k = 0; k < K; ++k) {
        want_dx[static_cast<size_t>(m * K + k)] += g * w.at(n * K + k);
        want_dw[static_cast<size_t>(n * K + k)] += g * x.at(m * K + k);
      }
    }
  for (int64_t i = 0; i < x_pre.size(); ++i)
    want_dx[static_cast<size_t>(i)] *= slope_of(form, x_pre.at(i));
  linear_forward(stream, y, pre, x, w, bias, M, N, K, exact);
  linear_backward(stream, dx, dw, db, dy, pre, x, x_pre, w, M, N, K, exact);
  CHECK_CLOSE(y, want_y, test::tolerance<T>, what + " y");
  CHECK_CLOSE(dx, want_dx, 2 * test::tolerance<T>, what + " dx");
  CHECK_CLOSE(dw, want_dw, test::tolerance<T>, what + " dweight");
  if (biased) CHECK_CLOSE(db, want_db, test::tolerance<T>, what + " dbias");
}
template <class T> void run_linears() {
  run_linear<T>(70, 24, 40, true);
  run_linear<T>(20, 24, 40, true, true, true, true);
  if (test::small) return;
  run_linear<T>(33, 17, 65, true);
  run_linear<T>(130, 72, 48, false);
  run_linear<T>(1, 1, 1, true, false);
  run_linear<T>(600, 8, 16, false);
  run_linear<T>(66, 24, 40, false, true, true);
  run_linear<T>(33, 17, 65, true, false, true);
  run_linear<T>(33, 17, 65, true, true, false, true);
  run_linear<T>(66, 24, 40, false, true, true, true);
}
TEST(linear_f32) { run_linears<float>(); }
TEST(linear_bf16) { run_linears<bf16>(); }

}  // namespace
