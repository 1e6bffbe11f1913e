#include "matmul.h"
#include <dnnl.hpp>
#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <tuple>
#include "../ops/row_gemm.h"
#include "amx_gemm.h"
#include "threads.h"

namespace siglip2 {

namespace {

dnnl::memory::data_type type_of(DType d) {
  return d == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::engine& engine() {
  static auto* e = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *e;
}

// Compiled products, one per shape and thread: the CPU devices of several Workers multiply at the same time.
struct Product {
  dnnl::memory::desc a, b, c;
  dnnl::matmul run;
};
using Key =
    std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, float, float>;

Product make_product(int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a, const Matrix& b,
                     float beta, DType c_dtype, int64_t c_stride) {
  using desc = dnnl::memory::desc;
  const auto strides = [](const Matrix& m) {
    return m.transposed ? dnnl::memory::dims{1, m.stride} : dnnl::memory::dims{m.stride, 1};
  };
  Product p;
  p.a = desc({M, K}, type_of(a.dtype), strides(a));
  p.b = desc({K, N}, type_of(b.dtype), strides(b));
  p.c = desc({M, N}, type_of(c_dtype), dnnl::memory::dims{c_stride, 1});
  dnnl::primitive_attr attr;
  dnnl::post_ops post;
  if (alpha != 1.0f) {
#if DNNL_VERSION_MAJOR >= 3
    post.append_eltwise(dnnl::algorithm::eltwise_linear, alpha, 0.0f);
#else
    post.append_eltwise(1.0f, dnnl::algorithm::eltwise_linear, alpha, 0.0f);
#endif
  }
  if (beta != 0.0f) post.append_sum(beta);
  attr.set_post_ops(post);
#if DNNL_VERSION_MAJOR >= 3
  p.run = dnnl::matmul(dnnl::matmul::primitive_desc(engine(), p.a, p.b, p.c, attr));
#else
  p.run =
      dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(p.a, p.b, p.c), attr, engine()));
#endif
  return p;
}

void run_native_bf16(int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a, const Matrix& b,
                     float beta, void* c, DType c_dtype, int64_t c_stride) {
  thread_local std::map<Key, Product> products;
  const Key key{M,
                N,
                K,
                a.stride,
                b.stride,
                c_stride,
                a.transposed,
                b.transposed,
                static_cast<int>(c_dtype),
                alpha,
                beta};
  auto it = products.find(key);
  if (it == products.end()) {
    if (products.size() > 4096) products.clear();  // ragged batches: shapes without end
    it = products.emplace(key, make_product(M, N, K, alpha, a, b, beta, c_dtype, c_stride)).first;
  }
  thread_local dnnl::stream stream(engine());
  Product& p = it->second;
  dnnl::memory ma(p.a, engine(), const_cast<void*>(a.data)),
      mb(p.b, engine(), const_cast<void*>(b.data)), mc(p.c, engine(), c);
  p.run.execute(stream, {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, mc}});
  stream.wait();
}

// f(m, rows, n, cols) for parts that cover C (M, N), on the team: as many as there are threads (each of some microseconds at
// least), each one product of oneDNN's on one thread. Their borders depend on nothing but shape and thread_count(), so
// that the bits do not change with the number of threads at work. `whole_rows`: all columns are in one part.
template <class F> void each_part(int64_t M, int64_t N, int64_t K, bool whole_rows, F&& f) {
  constexpr int64_t kRows = 16, kCols = 64, kLeastWork = 1 << 18, kPacking = 24;
  const int64_t most = std::clamp<int64_t>(M * N * K / kLeastWork, 1, thread_count());
  const auto up = [](int64_t n, int64_t parts, int64_t to) {
    return ((n + parts - 1) / parts + to - 1) / to * to;
  };
  int64_t rows = M, cols = N, least = INT64_MAX;
  for (int64_t p = 1; p <= most; ++p) {
    const int64_t r = p == 1 ? M : up(M, p, kRows), q = whole_rows ? 1 : most / p,
                  c = q == 1 ? N : up(N, q, kCols);
    const int64_t cost = r * c + kPacking * (r + c);
    if (cost < least) least = cost, rows = r, cols = c;
  }
  const int64_t across = (N + cols - 1) / cols;
  std::exception_ptr error;
  std::mutex mutex;
  parallel_items((M + rows - 1) / rows * across, [&](int64_t i) {
    const int64_t m = i / across * rows, n = i % across * cols;
    try {
      f(m, std::min(rows, M - m), n, std::min(cols, N - n));
    } catch (...) {
      std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// The operand from row m and column n on.
Matrix from(const Matrix& x, int64_t m, int64_t n) {
  const int64_t at = x.transposed ? n * x.stride + m : m * x.stride + n;
  return {static_cast<const uint8_t*>(x.data) + at * size_of(x.dtype), x.dtype, x.stride,
          x.transposed};
}

// oneDNN has nothing but its reference code for some products whose A or C is part of a wider matrix: parts are whole rows
// of C, and those of a transposed A are copied.
void run_bf16(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a,
              const Matrix& b, float beta, void* c, DType c_dtype, int64_t c_stride) {
  Scratch<bf16> copies(s, a.transposed && thread_count() > 1 ? M * K : 0);
  if (s.is_dry()) return;
  each_part(M, N, K, true, [&](int64_t m, int64_t rows, int64_t n, int64_t cols) {
    Matrix part = from(a, m, 0);
    if (a.transposed && rows < M) {
      bf16* copy = copies.data() + m * K;
      for (int64_t k = 0; k < K; ++k)
        std::memcpy(copy + k * rows, static_cast<const bf16*>(part.data) + k * a.stride,
                    static_cast<size_t>(rows) * sizeof(bf16));
      part = {copy, a.dtype, rows, true};
    }
    run_native_bf16(rows, cols, K, alpha, part, from(b, 0, n), beta,
                    static_cast<uint8_t*>(c) + (m * c_stride + n) * size_of(c_dtype), c_dtype,
                    c_stride);
  });
}

void run_f32(int64_t M, int64_t N, int64_t K, float alpha, const float* a, int64_t lda, bool ta,
             const float* b, int64_t ldb, bool tb, float beta, float* c, int64_t ldc) {
  each_part(M, N, K, false, [&](int64_t m, int64_t rows, int64_t n, int64_t cols) {
    const auto status =
        dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', rows, cols, K, alpha, a + (ta ? m : m * lda),
                   lda, b + (tb ? n * ldb : n), ldb, beta, c + m * ldc + n, ldc);
    if (status != dnnl_success)
      throw std::runtime_error("oneDNN refused a matrix product, status " + std::to_string(status));
  });
}

// Of this thread, which is the stream's: see set_batch_invariant. oneDNN's sgemm does not serve then: it sums K in
// another order for few rows, from some hundred rows on and in rows that fill no tile of its kernels, and may split K
// over threads.
thread_local bool batch_invariant = false;

void widen(const Matrix& m, int64_t rows, int64_t cols, float* out) {
  const auto* in = static_cast<const bf16*>(m.data);
  parallel_ranges(rows, 1 + 16384 / std::max<int64_t>(1, cols), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t c = 0; c < cols; ++c) out[r * cols + c] = in[r * m.stride + c];
  });
}

}  // namespace

void set_batch_invariant(bool on) { batch_invariant = on; }
bool is_batch_invariant() { return batch_invariant; }

bool has_native_bf16() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

bool multiplies_bf16(const Stream& s) { return s.dry() == Stream::Dry::cuda || has_native_bf16(); }

std::string onednn_version() {
  const auto* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

void matmul(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a,
            const Matrix& b, float beta, void* c, DType c_dtype, int64_t c_stride) {
  if (M == 0 || N == 0 || s.dry() == Stream::Dry::cuda) return;
  const bool dry = s.is_dry();
  if (a.dtype != b.dtype)
    throw std::invalid_argument("the operands of a matrix product differ in type");
  if (a.dtype == DType::f32) {
    if (c_dtype != DType::f32) throw std::invalid_argument("a product of f32 matrices is f32");
    if (dry) return;
    const auto *pa = static_cast<const float*>(a.data), *pb = static_cast<const float*>(b.data);
    auto* pc = static_cast<float*>(c);
    if (batch_invariant && !a.transposed && beta == 0.0f)
      row_gemm(s, M, N, K, alpha, pa, a.stride, pb, b.stride, b.transposed, pc, c_stride);
    else
      run_f32(M, N, K, alpha, pa, a.stride, a.transposed, pb, b.stride, b.transposed, beta, pc,
              c_stride);
    return;
  }
  if (has_native_bf16()) {
    if (batch_invariant && !a.transposed && beta == 0.0f && has_amx())
      return amx_gemm(s, M, N, K, alpha, a, b, c, c_dtype, c_stride);
    run_bf16(s, M, N, K, alpha, a, b, beta, c, c_dtype, c_stride);
    return;
  }
  const int64_t a_rows = a.transposed ? K : M, a_cols = a.transposed ? M : K;
  const int64_t b_rows = b.transposed ? N : K, b_cols = b.transposed ? K : N;
  Scratch<float> wide_a(s, a_rows * a_cols), wide_b(s, b_rows * b_cols);
  if (!dry) {
    widen(a, a_rows, a_cols, wide_a.data());
    widen(b, b_rows, b_cols, wide_b.data());
  }
  // row_gemm takes what is not transposed and starts from nothing; the copies are plain, so only A can be either.
  const bool by_rows = batch_invariant && !a.transposed && beta == 0.0f;
  if (by_rows && !dry && c_dtype == DType::f32) {
    row_gemm(s, M, N, K, alpha, wide_a.data(), a_cols, wide_b.data(), b_cols, b.transposed,
             static_cast<float*>(c), c_stride);
    return;
  }
  if (c_dtype == DType::f32) {
    if (dry) return;
    run_f32(M, N, K, alpha, wide_a.data(), a_cols, a.transposed, wide_b.data(), b_cols,
            b.transposed, beta, static_cast<float*>(c), c_stride);
    return;
  }
  Scratch<float> wide_c(s, M * N);
  if (dry) return;
  auto* out = static_cast<bf16*>(c);
  if (beta != 0.0f) widen({c, DType::bf16, c_stride}, M, N, wide_c.data());
  if (by_rows)
    row_gemm(s, M, N, K, alpha, wide_a.data(), a_cols, wide_b.data(), b_cols, b.transposed,
             wide_c.data(), N);
  else
    run_f32(M, N, K, alpha, wide_a.data(), a_cols, a.transposed, wide_b.data(), b_cols,
            b.transposed, beta, wide_c.data(), N);
  parallel_ranges(M, 1 + 16384 / N, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t i = 0; i < N; ++i) out[r * c_stride + i] = wide_c.data()[r * N + i];
  });
}

}  // namespace siglip2
