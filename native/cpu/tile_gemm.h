// Vectors and the small matrix product that attention is made of: C (M, N) = A·B or += A·B on tiles that stay in cache.
// A block of kTileRows × 2 vectors of C lives in registers while K runs; B is read by vectors, A by broadcast, so that
// a transposed A costs nothing. 6 × 2 vectors fill AVX2's 16 registers with 12 accumulators, enough to cover the latency
// of two fused multiply-adds per cycle; AVX-512's 32 registers hold 12 × 2. Everything is summed in the order of K.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

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
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }   // b where one is not a number
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// The lane i ^ n of every lane i.
template <int n> inline Vec swapped(Vec v) {
  return [&]<int... I>(std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ n)...);
  }(std::make_integer_sequence<int, kLanes>{});
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

// e^x as exp_approx in math.h, for a whole vector.
inline Vec exp_of(Vec x) {
  x = larger(splat(-87.0f), x);
  x = smaller(splat(88.0f), x);
  const Vec n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // 1.5·2²³ rounds to an integer
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * reinterpret_cast<Vec>(bits);
}

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Row length for a matrix of n columns: whole cache lines, an odd number of them, so that a column of tiles spreads
// over all sets of the L1 cache.
constexpr int64_t leading(int64_t n) { return (((n + 15) / 16) | 1) * 16; }

// out (kLanes, kLanes) = inᵀ: log2(kLanes) rounds that interleave the first half of the rows with the second.
inline void transpose_block(float* out, int64_t ld_out, const float* in, int64_t ld_in) {
  Vec row[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; ++i) row[i] = load(in + i * ld_in);
#pragma GCC unroll 4
  for (int n = 1; n < kLanes; n *= 2) {
    [&]<int... I>(std::integer_sequence<int, I...>) {
      for (int i = 0; i < kLanes / 2; ++i) {
        next[2 * i] = __builtin_shufflevector(row[i], row[i + kLanes / 2], (I / 2 + I % 2 * kLanes)...);
        next[2 * i + 1] =
            __builtin_shufflevector(row[i], row[i + kLanes / 2], (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
      }
    }(std::make_integer_sequence<int, kLanes>{});
    for (int i = 0; i < kLanes; ++i) row[i] = next[i];
  }
  for (int i = 0; i < kLanes; ++i) store(out + i * ld_out, row[i]);
}

// R rows by V vectors of C.
template <int R, int V, bool kTransposedA>
inline void tile_kernel(int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                        bool add) {
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
inline void tile_rest(int64_t M, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                      int64_t ldc, bool add) {
  if constexpr (R > 0) {
    if (M == R) tile_kernel<R, V, kTransposedA>(K, a, lda, b, ldb, c, ldc, add);
    else tile_rest<V, kTransposedA, R - 1>(M, K, a, lda, b, ldb, c, ldc, add);
  }
}

template <int V, bool kTransposedA>
inline void tile_column(int64_t M, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                        int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + kTileRows <= M; m += kTileRows)
    tile_kernel<kTileRows, V, kTransposedA>(K, a + (kTransposedA ? m : m * lda), lda, b, ldb, c + m * ldc, ldc, add);
  if (m < M) tile_rest<V, kTransposedA>(M - m, K, a + (kTransposedA ? m : m * lda), lda, b, ldb, c + m * ldc, ldc, add);
}

// C (M, N) = A·B, or += with `add`. A is (M, K), or (K, M) when transposed; B is (K, N). Columns are worked on in whole
// vectors: B and C must have room for N rounded up to kLanes.
template <bool kTransposedA>
inline void tile_gemm(int64_t M, int64_t N, int64_t K, const float* a, int64_t lda, const float* b, int64_t ldb,
                      float* c, int64_t ldc, bool add) {
  int64_t n = 0;
  for (; n + kLanes < N; n += 2 * kLanes) tile_column<2, kTransposedA>(M, K, a, lda, b + n, ldb, c + n, ldc, add);
  if (n < N) tile_column<1, kTransposedA>(M, K, a, lda, b + n, ldb, c + n, ldc, add);
}

}  // namespace siglip2::cpu::ISA
