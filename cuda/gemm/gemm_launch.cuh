// Launching the products of gemm.cuh, gemm_sm90.cuh and gemm_f32.cuh: which of them, which tile, how
// many splits of K, and the epilogues that several kernels use. Include it where operands or an
// epilogue are of your own; everything else calls gemm() of gemm.h.
#pragma once
#include <algorithm>
#include "../activation.cuh"
#include "gemm.cuh"
#include "gemm_f32.cuh"
#include "gemm_sm90.cuh"

namespace siglip2::cuda {

// ---- epilogues ----------------------------------------------------------------------------------

template <int kWidth, class T>
__device__ __forceinline__ void load_columns(float (&v)[kWidth], const T* from, int count,
                                             bool aligned) {
  if constexpr (kWidth % Pack<T>::size == 0) {
    if (aligned && count >= kWidth) {
#pragma unroll
      for (int i = 0; i < kWidth; i += Pack<T>::size) {
        float part[Pack<T>::size];
        Pack<T>::load(from + i).unpack(part);
#pragma unroll
        for (int e = 0; e < Pack<T>::size; ++e) v[i + e] = part[e];
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) v[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
}
template <int kWidth, class T>
__device__ __forceinline__ void store_columns(T* to, const float (&v)[kWidth], int count,
                                              bool aligned) {
  if constexpr (kWidth % Pack<T>::size == 0) {
    if (aligned && count >= kWidth) {
#pragma unroll
      for (int i = 0; i < kWidth; i += Pack<T>::size) {
        float part[Pack<T>::size];
#pragma unroll
        for (int e = 0; e < Pack<T>::size; ++e) part[e] = v[i + e];
        Pack<T>::from(part).store(to + i);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (i < count) to[i] = static_cast<T>(v[i]);
}

// c = product (+ bias) (+ c). With splits, each writes a matrix of its own.
template <class C> struct StoreEpilogue : Epilogue {
  C* c;               // (M, N)
  const float* bias;  // (N) or null
  int N;
  int64_t stride, split_stride;
  bool accumulate, aligned;

  StoreEpilogue(void* c_, const float* bias_, int64_t N_, int64_t stride_, bool accumulate_,
                int64_t split_stride_ = 0)
      : c(static_cast<C*>(c_)),
        bias(bias_),
        N(static_cast<int>(N_)),
        stride(stride_),
        split_stride(split_stride_),
        accumulate(accumulate_),
        aligned(aligned_16(c, bias) && stride_ % 8 == 0 && split_stride_ % 8 == 0) {}

  __device__ __forceinline__ void begin(int split) { c += split * split_stride; }
  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    C* const to = c + row * stride + column;
    const int count = N - column;
    float v[kWidth], more[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = product[i];
    if (bias) {
      load_columns(more, bias + column, count, aligned);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] += more[i];
    }
    if (accumulate) {
      load_columns(more, to, count, aligned);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] += more[i];
    }
    store_columns(to, v, count, aligned);
  }
};

// pre = product + bias, c = GELU(pre).
template <class C> struct GeluEpilogue : Epilogue {
  C* c;               // (M, N)
  C* pre;             // (M, N)
  const float* bias;  // (N) or null
  int N;
  int64_t stride;
  bool aligned;

  GeluEpilogue(void* c_, void* pre_, const float* bias_, int64_t N_, int64_t stride_)
      : c(static_cast<C*>(c_)),
        pre(static_cast<C*>(pre_)),
        bias(bias_),
        N(static_cast<int>(N_)),
        stride(stride_),
        aligned(aligned_16(c, pre, bias) && stride_ % 8 == 0) {}

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    const int64_t at = row * stride + column;
    const int count = N - column;
    float v[kWidth], more[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = product[i];
    if (bias) {
      load_columns(more, bias + column, count, aligned);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) v[i] += more[i];
    }
    store_columns(pre + at, v, count, aligned);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = gelu(v[i]);
    store_columns(c + at, v, count, aligned);
  }
};

// c = product ∘ GELU'(pre).
template <class C> struct GeluGradientEpilogue : Epilogue {
  C* c;          // (M, N)
  const C* pre;  // (M, N)
  int N;
  int64_t stride;
  bool aligned;

  GeluGradientEpilogue(void* c_, const void* pre_, int64_t N_, int64_t stride_)
      : c(static_cast<C*>(c_)),
        pre(static_cast<const C*>(pre_)),
        N(static_cast<int>(N_)),
        stride(stride_),
        aligned(aligned_16(c, pre) && stride_ % 8 == 0) {}

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    const int64_t at = row * stride + column;
    float v[kWidth];
    load_columns(v, pre + at, N - column, aligned);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = product[i] * gelu_gradient(v[i]);
    store_columns(c + at, v, N - column, aligned);
  }
};

// ---- shapes -------------------------------------------------------------------------------------

// What the grid should fill. A constant, so that splits, and with them the last bits of results,
// do not depend on the GPU.
constexpr int64_t kTargetTiles = 132;

// Parts of K that blocks of their own sum up, where that fills the GPU better: as many as take the least time, going by
// whole waves of tiles at 6 TFLOP/s for an SM and by the partial sums, written and read at 3 TB/s.
struct Splits {
  int64_t count, depth;
};
inline Splits splits_of(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kLeastDepth = 512, kMost = 32, kMostFloats = 16 << 20;
  constexpr int64_t kWave = 2 * kTargetTiles;  // large tiles, of which two share an SM
  constexpr double kSecondsOfDepth = 2.0 * 2 * LargeTile::kM * LargeTile::kN / 6e12,
                   kSecondsOfSum = 8 / 3e12;
  const int64_t tiles = ceil_div<int64_t>(M, LargeTile::kM) * ceil_div<int64_t>(N, LargeTile::kN);
  const int64_t most =
      std::min({K / kLeastDepth, kMost, kMostFloats / std::max<int64_t>(M * N, 1)});
  Splits best{1, K};
  double least = INFINITY;
  for (int64_t count = 1; count <= std::max<int64_t>(most, 1); ++count) {
    const int64_t depth = count == 1 ? K : ceil_div<int64_t>(ceil_div(K, count), 64) * 64,
                  parts = count == 1 ? 1 : ceil_div(K, depth);
    const double seconds =
        static_cast<double>(ceil_div(tiles * parts, kWave) * depth) * kSecondsOfDepth +
        (parts > 1 ? static_cast<double>(M * N * parts) * kSecondsOfSum : 0);
    if (seconds >= least) continue;
    least = seconds;
    best = {parts, depth};
  }
  return best;
}

// Rows that, with `columns` outputs each, make tiles for whole waves of the GPU; `least` or somewhat less is the fewest.
inline int64_t rows_that_fill(int64_t columns, int64_t least) {
  const int64_t across = ceil_div<int64_t>(columns, HopperTile::kN);
  const int64_t waves = ceil_div(least / HopperTile::kM * across, kTargetTiles);
  return std::max<int64_t>(waves * kTargetTiles / across, 1) * HopperTile::kM;
}

template <class Tile> int64_t tiles_of(int64_t M, int64_t N) {
  return ceil_div<int64_t>(M, Tile::kM) * ceil_div<int64_t>(N, Tile::kN);
}
inline bool wants_large_tile(int64_t M, int64_t N, const Splits& splits) {
  return tiles_of<LargeTile>(M, N) * splits.count >= kTargetTiles;
}
inline void check_extent(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t kMost = 1 << 30;
  if (M > kMost || N > kMost || K > kMost)
    throw std::invalid_argument("a matrix product is (" + std::to_string(M) + ", " +
                                std::to_string(N) + ", " + std::to_string(K) +
                                "), but a side of it can have 2^30 elements at most");
}

// Returns the number of parts that the epilogue's finish() sees of each split.
template <class Tile, class A, class B, class E>
int64_t launch_tiles(Stream& s, const A& a, const B& b, int64_t M, int64_t N, int64_t K,
                     const Splits& splits, const E& epilogue) {
  const int64_t tiles = tiles_of<Tile>(M, N);
  const dim3 grid(static_cast<unsigned>(tiles), 1, static_cast<unsigned>(splits.count));
  const int m = static_cast<int>(M), n = static_cast<int>(N), k = static_cast<int>(K);
  const int depth = static_cast<int>(splits.depth);
  if constexpr (kIsWgmmaTile<Tile>)
    return launch_sm90<Tile>(s, a, b, m, n, k, depth, static_cast<int>(splits.count), epilogue);
  else if constexpr (std::is_same_v<Tile, LargeTile> || std::is_same_v<Tile, SmallTile>)
    launch(gemm_kernel<Tile, A, B, E>, grid, Tile::kThreads, Tile::kSmem, s, a, b, m, n, k, depth,
           epilogue);
  else
    launch(gemm_f32_kernel<Tile, A, B, E>, grid, Tile::kThreads, Tile::kSmem, s, a, b, m, n, k,
           depth, epilogue);
  return tiles * Tile::kWarps;
}
// No product of (M, N) outputs has more parts than this: clusters may leave a tile without rows.
inline int64_t most_gemm_parts(int64_t M, int64_t N) {
  static_assert(LargeTile::kM == HopperTile::kM && LargeTile::kM == HopperTurns::kM &&
                LargeTile::kN <= HopperTurns::kN);
  static_assert(LargeTile::kWarps >= std::max(HopperTile::kWarps, HopperTurns::kWarps));
  return std::max(tiles_of<LargeTile>(M + LargeTile::kM, N), 4 * kTargetTiles) * LargeTile::kWarps;
}

// bf16 operands of any kind.
template <class A, class B, class E> int64_t launch_gemm(Stream& s, const A& a, const B& b,
                                                         int64_t M, int64_t N, int64_t K,
                                                         const E& epilogue, const Splits& splits) {
  check_extent(M, N, K);
  if (wants_large_tile(M, N, splits))
    return launch_tiles<LargeTile>(s, a, b, M, N, K, splits, epilogue);
  return launch_tiles<SmallTile>(s, a, b, M, N, K, splits, epilogue);
}
// Plain bf16 matrices, which TMA can read where their lines are aligned.
template <bool kA, bool kB, class E>
int64_t launch_gemm(Stream& s, const MatrixOperand<kA>& a, const MatrixOperand<kB>& b, int64_t M,
                    int64_t N, int64_t K, const E& epilogue, const Splits& splits) {
  check_extent(M, N, K);
  using Tile = std::conditional_t<std::is_base_of_v<LongEpilogue, E>, HopperTurns, HopperTile>;
  const bool fills = 2 * tiles_of<Tile>(M, N) * splits.count >= kTargetTiles;
  if (fills && K > 0 && a.aligned && b.aligned && hopper_multiprocessors() > 0)
    return launch_tiles<Tile>(s, a, b, M, N, K, splits, epilogue);
  return launch_gemm<MatrixOperand<kA>, MatrixOperand<kB>, E>(s, a, b, M, N, K, epilogue, splits);
}
template <bool kA, bool kB, class E>
int64_t launch_gemm(Stream& s, const FloatOperand<kA>& a, const FloatOperand<kB>& b, int64_t M,
                    int64_t N, int64_t K, const E& epilogue, const Splits& splits) {
  check_extent(M, N, K);
  if (wants_large_tile(M, N, splits))
    return launch_tiles<LargeFloatTile>(s, a, b, M, N, K, splits, epilogue);
  return launch_tiles<SmallFloatTile>(s, a, b, M, N, K, splits, epilogue);
}

// c (M, N) = or += the sum of the splits' products, in their order. Defined in gemm.cu.
void sum_splits(Stream& s, float* c, const float* parts, int64_t M, int64_t N, int64_t stride,
                int64_t splits, bool accumulate);

// Float results, split along K when that fills the GPU: gradients of weights have K = tokens.
template <class A, class B> void launch_gemm_to_float(Stream& s, const A& a, const B& b, int64_t M,
                                                      int64_t N, int64_t K, float* c,
                                                      int64_t stride, bool accumulate) {
  const Splits splits = splits_of(M, N, K);
  if (splits.count == 1) {
    launch_gemm(s, a, b, M, N, K, StoreEpilogue<float>(c, nullptr, N, stride, accumulate), splits);
    return;
  }
  const int64_t row = ceil_div<int64_t>(N, 8) * 8;
  Scratch<float> parts(s, splits.count * M * row);
  launch_gemm(s, a, b, M, N, K, StoreEpilogue<float>(parts.data(), nullptr, N, row, false, M * row),
              splits);
  sum_splits(s, c, parts.data(), M, N, stride, splits.count, accumulate);
}

}  // namespace siglip2::cuda
