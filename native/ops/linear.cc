// CPU fully connected layer (linear.h). Bound by the matrix product; the epilogues are one pass over memory, or in
// inference part of the product.
#include "linear.h"
#include "../cpu/math.h"
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"
#include "row_gemm.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kBlocks = 32;  // partial sums of dbias; independent of the number of threads

// pre = pre + bias and y = gelu(pre), where pre may be y itself; without pre y = y + bias.
template <class T, bool kExact>
void add_bias(T* y, T* pre, const float* bias, int64_t M, int64_t N) {
  parallel_ranges(M, 1 + 16384 / N, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      T *out = y + r * N, *p = (pre ? pre : y) + r * N;
      if (bias)
        for (int64_t i = 0; i < N; ++i) p[i] = static_cast<float>(p[i]) + bias[i];
      if (pre == y)  // a loop of its own: two names for one row would not be vectorised
        for (int64_t i = 0; i < N; ++i) out[i] = gelu<kExact>(static_cast<float>(out[i]));
      else if (pre)
        for (int64_t i = 0; i < N; ++i) out[i] = gelu<kExact>(static_cast<float>(p[i]));
    }
  });
}

// dpre = dy·gelu'(pre) and the column sums of dpre; without GELU dpre is dy itself and only the sums are made.
template <class T, bool kExact> void pre_gradient(T* dpre, float* dbias, float* partial,
                                                  const T* dy, const T* pre, int64_t M, int64_t N) {
  parallel_ranges(kBlocks, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      float* sums = partial + b * N;
      if (dbias) std::fill(sums, sums + N, 0.0f);
      for (int64_t r = M * b / kBlocks; r < M * (b + 1) / kBlocks; ++r) {
        const T* g = dy + r * N;
        if (pre) {
          const T* p = pre + r * N;
          T* out = dpre + r * N;
          for (int64_t i = 0; i < N; ++i)
            out[i] = static_cast<float>(g[i]) * gelu_gradient<kExact>(static_cast<float>(p[i]));
          g = out;
        }
        if (dbias)
          for (int64_t i = 0; i < N; ++i) sums[i] += static_cast<float>(g[i]);
      }
    }
  });
  if (!dbias) return;
  for (int64_t b = 0; b < kBlocks; ++b)
    for (int64_t i = 0; i < N; ++i) dbias[i] += partial[b * N + i];
}

// dx *= gelu'(x_pre).
template <class T, bool kExact> void through_gelu(T* dx, const T* x_pre, int64_t M, int64_t K) {
  parallel_ranges(M, 1 + 16384 / K, [&](int64_t r0, int64_t r1) {
    for (int64_t i = r0 * K; i < r1 * K; ++i)
      dx[i] = static_cast<float>(dx[i]) * gelu_gradient<kExact>(static_cast<float>(x_pre[i]));
  });
}

}  // namespace

void linear_forward(Stream& s, Tensor y, Tensor pre, Tensor x, Tensor weight, Tensor bias,
                    int64_t M, int64_t N, int64_t K, bool exact_gelu) {
  dispatch_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(M * N);
    T* p = pre.as_or_null<T>(M * N);
    const float* b = bias.as_or_null<const float>(N);
    if constexpr (std::is_same_v<T, float>)
      if (is_batch_invariant() && !s.is_dry() && (!p || p == out))
        return siglip2::row_gemm(s, M, N, K, 1.0f, x.as<const float>(M * K), K,
                                 weight.as<const float>(N * K), K, true, out, N,
                                 {b, !p           ? Gelu::none
                                     : exact_gelu ? Gelu::exact
                                                  : Gelu::tanh});
    matmul(s, M, N, K, 1.0f, {x.as<const T>(M * K), x.dtype, K},
           {weight.as<const T>(N * K), x.dtype, K, true}, 0.0f, p ? p : out, x.dtype, N);
    if ((bias || p) && !s.is_dry())
      dispatch_gelu(exact_gelu, [&](auto exact) { add_bias<T, exact.value>(out, p, b, M, N); });
  });
}

void linear_backward(Stream& s, Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor pre,
                     Tensor x, Tensor x_pre, Tensor weight, int64_t M, int64_t N, int64_t K,
                     bool exact_gelu) {
  dispatch_float(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* g = dy.as<const T>(M * N);
    Scratch<T> dpre(s, pre ? M * N : 0);
    Scratch<float> partial(s, dbias ? kBlocks * N : 0);
    if ((pre || dbias) && !s.is_dry())
      dispatch_gelu(exact_gelu, [&](auto exact) {
        pre_gradient<T, exact.value>(dpre.data(), dbias.as_or_null<float>(N), partial.data(), g,
                                     pre.as_or_null<const T>(M * N), M, N);
      });
    if (pre) g = dpre.data();
    if (dx)
      matmul(s, M, K, N, 1.0f, {g, dy.dtype, N}, {weight.as<const T>(N * K), dy.dtype, K}, 0.0f,
             dx.as<T>(M * K), dy.dtype, K);
    if (dx && x_pre && !s.is_dry())
      dispatch_gelu(exact_gelu, [&](auto exact) {
        through_gelu<T, exact.value>(dx.as<T>(M * K), x_pre.as<const T>(M * K), M, K);
      });
    if (dweight)
      matmul(s, N, K, M, 1.0f, {g, dy.dtype, N, true}, {x.as<const T>(M * K), dy.dtype, K}, 1.0f,
             dweight.as<float>(N * K), DType::f32, K);
  });
}

}  // namespace siglip2::cpu::ISA

OP_SIZED(linear_forward);
OP_SIZED(linear_backward);
