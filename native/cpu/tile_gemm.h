// What attention is made of: vectors, elementary functions on them, copies of one head's rows into cache, and a matrix
// product of tiles that stay there, C (M, N) = A·B or += A·B. In the product a block of kTileRows × 2 vectors of C lives
// in registers while K runs; B is read by vectors and A by broadcast, so that a transposed A costs nothing. 6 × 2 vectors
// fill AVX2's 16 registers with 12 accumulators, enough to cover the latency of two fused multiply-adds per cycle;
// AVX-512's 32 registers hold 12 × 2. Everything is summed in the order of K.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#include "../tensor.h"

namespace siglip2::cpu::ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6;
#else
constexpr int kLanes = 4, kTileRows = 6;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }  // b where one is not a number
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// The lane i ^ n of every lane i.
template <int n> inline Vec swapped(Vec v) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ n)...);
  }
  (std::make_integer_sequence<int, kLanes>{});
}
// In a fixed order: halves are folded onto each other.
template <int n = kLanes / 2> inline float sum_of(Vec v) {
  if constexpr (n == 0) return v[0];
  else return sum_of<n / 2>(v + swapped<n>(v));
}
template <int n = kLanes / 2> inline float max_of(Vec v) {
  if constexpr (n == 0) return v[0];
  else return max_of<n / 2>(larger(v, swapped<n>(v)));
}

// 2^x for x ≤ 126, relative error below 2e-7; 0 (2⁻¹²⁶) from −126 down. The polynomial is the least relative error of
// degree 6 on [−½, ½]; the sum with 1.5·2²³ leaves the nearest integer in the low bits, ready for the exponent.
inline Vec exp2_of(Vec x) {
  x = larger(splat(-126.0f), x);
  const Vec shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
  Vec p = splat(1.5345812e-4f);
  p = p * f + 1.3399931e-3f;
  p = p * f + 9.6184891e-3f;
  p = p * f + 5.5503286e-2f;
  p = p * f + 2.4022646e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p) +
                               (reinterpret_cast<IntVec>(shifted) << 23));
}

// log2 of positive normal numbers: m in [√½, √2) and its exponent; ln m = 2·atanh((m − 1) / (m + 1)) by its series.
inline Vec log2_of(Vec x) {
  const IntVec up = reinterpret_cast<IntVec>(x) - 0x3f3504f3;  // √½
  const Vec exponent = __builtin_convertvector(up >> 23, Vec);
  const Vec m = reinterpret_cast<Vec>((up & 0x7fffff) + 0x3f3504f3);
  const Vec t = (m - 1.0f) / (m + 1.0f), q = t * t;
  Vec p = splat(2.0f / 9);
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * t * 1.44269504f + exponent;
}

// kLanes elements as floats, and back, rounded to nearest even.
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));
typedef uint32_t BitsVec __attribute__((vector_size(kLanes * 4)));
inline Vec load(const bf16* p) {
  HalfVec h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<Vec>(__builtin_convertvector(h, BitsVec) << 16);
}
inline void store(bf16* p, Vec v) {
  const BitsVec u = reinterpret_cast<BitsVec>(v), rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const HalfVec h = __builtin_convertvector(
      (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded, HalfVec);
  std::memcpy(p, &h, sizeof h);
}

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Row length for a matrix of n columns: whole cache lines, an odd number of them, so that a column of tiles spreads
// over all sets of the L1 cache.
constexpr int64_t leading(int64_t n) { return (((n + 15) / 16) | 1) * 16; }

// out (n, V vectors) = in · factor(row).
template <int V, class To, class From, class F>
inline void copy_columns(To* out, int64_t ld_out, const From* in, int64_t ld_in, int64_t n,
                         F&& factor) {
  for (int64_t r = 0; r < n; ++r) {
    const float f = factor(r);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      store(out + r * ld_out + v * kLanes, load(in + r * ld_in + v * kLanes) * f);
  }
}
// out (n, D) = in · factor(row). A few columns of all rows at a time: the inner loop is then long and has no remainder.
template <class To, class From, class F> inline void copy_rows(To* out, int64_t ld_out,
                                                               const From* in, int64_t ld_in,
                                                               int64_t n, int64_t D, F&& factor) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= D; d += 4 * kLanes)
    copy_columns<4>(out + d, ld_out, in + d, ld_in, n, factor);
  for (; d + kLanes <= D; d += kLanes) copy_columns<1>(out + d, ld_out, in + d, ld_in, n, factor);
  for (; d < D; ++d)
    for (int64_t r = 0; r < n; ++r)
      out[r * ld_out + d] = static_cast<float>(in[r * ld_in + d]) * factor(r);
}

// out (n, D) = factor · in, with zeros up to whole vectors.
template <class T> inline void pack_rows(float* out, int64_t ld, const T* in, int64_t row,
                                         int64_t n, int64_t D, float factor) {
  copy_rows(out, ld, in, row, n, D, [factor](int64_t) { return factor; });
  for (int64_t d = D; d % kLanes != 0; ++d)
    for (int64_t r = 0; r < n; ++r) out[r * ld + d] = 0;
}

// out (kLanes, kLanes) = inᵀ: log2(kLanes) rounds that interleave the first half of the rows with the second.
template <class T>
inline void transpose_block(float* out, int64_t ld_out, const T* in, int64_t ld_in) {
  Vec row[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; ++i) row[i] = load(in + i * ld_in);
#pragma GCC unroll 4
  for (int n = 1; n < kLanes; n *= 2) {
    [&]<int... I>(std::integer_sequence<int, I...>) {
      for (int i = 0; i < kLanes / 2; ++i) {
        next[2 * i] =
            __builtin_shufflevector(row[i], row[i + kLanes / 2], (I / 2 + I % 2 * kLanes)...);
        next[2 * i + 1] = __builtin_shufflevector(row[i], row[i + kLanes / 2],
                                                  (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
      }
    }
    (std::make_integer_sequence<int, kLanes>{});
    for (int i = 0; i < kLanes; ++i) row[i] = next[i];
  }
  for (int i = 0; i < kLanes; ++i) store(out + i * ld_out, row[i]);
}

// out (D, n) = inᵀ, with zeros where n or D do not fill a vector; `some` has room for kLanes packed rows of ld floats.
template <class T> inline void pack_transposed(float* out, int64_t ldt, float* some, int64_t ld,
                                               const T* in, int64_t row, int64_t n, int64_t D) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const bool full = j + kLanes <= n;
    if (!full || D % kLanes) {
      const int64_t rows = full ? kLanes : n - j;
      pack_rows(some, ld, in + j * row, row, rows, D, 1.0f);
      for (int64_t i = rows * ld; i < kLanes * ld; ++i) some[i] = 0;
    }
    for (int64_t d = 0; d < D; d += kLanes) {
      if (full && d + kLanes <= D) transpose_block(out + d * ldt + j, ldt, in + j * row + d, row);
      else transpose_block(out + d * ldt + j, ldt, some + d, ld);
    }
  }
}

// R rows by V vectors of C.
template <int R, int V, bool kTransposedA>
inline void tile_kernel(int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb,
                        float* c, int64_t ldc, bool add) {
  Vec acc[R][V];
  if (add) {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = load(c + r * ldc + v * kLanes);
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] = Vec{};
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < K; ++k) {
    Vec bv[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) bv[v] = load(b + k * ldb + v * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec ar = splat(kTransposedA ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) acc[r][v] += ar * bv[v];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, acc[r][v]);
}

// The last M % kTileRows rows.
template <int V, bool kTransposedA, int R = kTileRows - 1>
inline void tile_rest(int64_t M, int64_t K, const float* a, int64_t lda, const float* b,
                      int64_t ldb, float* c, int64_t ldc, bool add) {
  if constexpr (R > 0) {
    if (M == R) tile_kernel<R, V, kTransposedA>(K, a, lda, b, ldb, c, ldc, add);
    else tile_rest<V, kTransposedA, R - 1>(M, K, a, lda, b, ldb, c, ldc, add);
  }
}

template <int V, bool kTransposedA>
inline void tile_column(int64_t M, int64_t K, const float* a, int64_t lda, const float* b,
                        int64_t ldb, float* c, int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + kTileRows <= M; m += kTileRows)
    tile_kernel<kTileRows, V, kTransposedA>(K, a + (kTransposedA ? m : m * lda), lda, b, ldb,
                                            c + m * ldc, ldc, add);
  if (m < M)
    tile_rest<V, kTransposedA>(M - m, K, a + (kTransposedA ? m : m * lda), lda, b, ldb, c + m * ldc,
                               ldc, add);
}

// C (M, N) = A·B, or += with `add`. A is (M, K), or (K, M) when transposed; B is (K, N). Columns are worked on in whole
// vectors: B and C must have room for N rounded up to kLanes.
template <bool kTransposedA> inline void tile_gemm(int64_t M, int64_t N, int64_t K, const float* a,
                                                   int64_t lda, const float* b, int64_t ldb,
                                                   float* c, int64_t ldc, bool add) {
  int64_t n = 0;
  for (; n + kLanes < N; n += 2 * kLanes)
    tile_column<2, kTransposedA>(M, K, a, lda, b + n, ldb, c + n, ldc, add);
  if (n < N) tile_column<1, kTransposedA>(M, K, a, lda, b + n, ldb, c + n, ldc, add);
}

}  // namespace siglip2::cpu::ISA
