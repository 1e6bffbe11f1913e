// What the patch embeddings share (patch_embed.cu: images on a grid; patch_embed_packed.cu: patches one after another).
// Bound by arithmetic: a product of patches and the weight. The patches are never written out: the GEMM core fetches their
// bytes where they lie.
//
// bf16: a byte is exact in bf16, so raw bytes are the operand, and x/127.5 − 1 moves behind the product, where it costs
// nothing and rounds nothing: y = acc/127.5 + (bias − Σ_k W) + position, dW = acc/127.5 − Σ_r dy. f32: the pixels are
// scaled as they are fetched. The values of a patch are taken as they lie in memory, runs of contiguous bytes; the weight,
// far smaller, is brought into that order. On Hopper the forward pass of most shapes is patch_embed_sm90.cuh.
#pragma once
#include "../column_sums.cuh"
#include "../gemm/gemm_launch.cuh"
#include "patch_embed_sm90.cuh"

namespace siglip2::cuda::patches {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;

// ---- operands -----------------------------------------------------------------------------------

template <bool kDepthInLine_> struct ByteOperand {  // for the bf16 core
  static constexpr bool kDepthInLine = kDepthInLine_;
  struct Held {
    uint2 bytes;
  };
  Patches p;

  __device__ __forceinline__ Held begin(void*, int line, int at) const {
    Held held{{0, 0}};
    if (line >= p.lines || at >= p.length) return held;
    const uint8_t* const from = p.corner(line);
    if (p.packed) {
      held.bytes = *reinterpret_cast<const uint2*>(from + p.offset(at));
      return held;
    }
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < p.length)
        words[i / 4] |= static_cast<uint32_t>(from[p.offset(at + i)]) << (i % 4 * 8);
    held.bytes = {words[0], words[1]};
    return held;
  }
  __device__ __forceinline__ static void end(void* chunk, Held held) {
    const auto pair = [](uint32_t word, int i) {
      return pack_bf16(static_cast<float>(word >> (8 * i) & 0xff),
                       static_cast<float>(word >> (8 * i + 8) & 0xff));
    };
    *static_cast<uint4*>(chunk) = {pair(held.bytes.x, 0), pair(held.bytes.x, 2),
                                   pair(held.bytes.y, 0), pair(held.bytes.y, 2)};
  }
};

template <bool kDepthInLine_> struct PixelOperand {  // for the float core
  static constexpr bool kDepthInLine = kDepthInLine_;
  Patches p;
  __device__ __forceinline__ float load(int line, int at) const {
    if (line >= p.lines || at >= p.length) return 0.0f;
    return static_cast<float>(p.corner(line)[p.offset(at)]) * kScale - 1.0f;
  }
};

// Column of the weight for value k: as it is when flat, else in the convolution's order channel, row, column.
struct Columns {
  int P;
  bool flat;
  __device__ __forceinline__ int of(int k) const {
    return flat ? k : (k % 3 * P + k / (3 * P)) * P + k / 3 % P;
  }
};

// ---- forward ------------------------------------------------------------------------------------

// ordered ← weight with its columns as values lie, or as value_at() has them, and zeros behind them;
// shift ← bias − offset · Σ_k weight. A warp a row.
template <class T> __global__ void __launch_bounds__(kThreads)
    patch_embed_weight_kernel(T* ordered,         // (D, stride)
                              float* shift,       // (D)
                              const T* weight,    // (D, K)
                              const float* bias,  // (D)
                              Columns columns, int D, int K, int64_t stride, float offset,
                              bool for_sm90) {
  const int d = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarp);
  if (d >= D) return;
  float sum = 0;
  for (int at = static_cast<int>(threadIdx.x % kWarp); at < stride; at += static_cast<int>(kWarp)) {
    const int k = for_sm90 ? value_at(at) : at;
    const T w = k < K ? weight[static_cast<int64_t>(d) * K + columns.of(k)] : static_cast<T>(0.0f);
    ordered[d * stride + at] = w;
    sum += static_cast<float>(w);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) shift[d] = bias[d] - offset * sum;
}

// y = product · scale + shift + position.
template <class T> struct PatchEpilogue : Epilogue {
  T* y;                   // (lines, D)
  const float* shift;     // (D)
  const float* position;  // (N, D)
  int N, D;
  float scale;
  bool aligned;

  template <int kWidth>
  __device__ __forceinline__ void operator()(int row, int column, const float (&product)[kWidth]) {
    const int count = D - column;
    float v[kWidth], place[kWidth];
    load_columns(v, shift + column, count, aligned);
    load_columns(place, position + static_cast<int64_t>(row % N) * D + column, count, aligned);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = product[i] * scale + v[i] + place[i];
    store_columns(y + static_cast<int64_t>(row) * D + column, v, count, aligned);
  }
};

// ---- backward -----------------------------------------------------------------------------------

// dweight[d, column of k] += scale · Σ_splits parts[d, k] − sums[d].
static __global__ void __launch_bounds__(kThreads)
    patch_embed_dweight_kernel(float* dweight,      // (D, K)
                               const float* parts,  // (splits, D, stride)
                               const float* sums,   // (D) Σ_r dy, or null
                               Columns columns, int splits, int D, int K, int64_t stride,
                               float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<int64_t>(D) * K) return;
  const int d = static_cast<int>(i / K), k = static_cast<int>(i % K);
  float total = 0;
  for (int s = 0; s < splits; ++s) total += parts[(static_cast<int64_t>(s) * D + d) * stride + k];
  dweight[static_cast<int64_t>(d) * K + columns.of(k)] += total * scale - (sums ? sums[d] : 0.0f);
}

// ---- launching ----------------------------------------------------------------------------------

// A product of float operands of any kind.
template <class A, class B, class E>
void launch_float_gemm(Stream& s, const A& a, const B& b, int64_t M, int64_t N, int64_t K,
                       const E& epilogue, const Splits& splits) {
  check_extent(M, N, K);
  if (wants_large_tile(M, N, splits))
    launch_tiles<LargeFloatTile>(s, a, b, M, N, K, splits, epilogue);
  else launch_tiles<SmallFloatTile>(s, a, b, M, N, K, splits, epilogue);
}

// y (lines, D); `position` has N rows, which the patches use in turn.
template <class T> void embed_patches(Stream& s, T* y, const Patches& p, const T* weight,
                                      const float* bias, const float* position, int64_t N,
                                      int64_t D, Columns columns) {
  constexpr bool raw = !std::is_same_v<T, float>;
  check_extent(p.lines, D, p.length);
  const bool aligned = D % 8 == 0 && aligned_16(y, position);
  const bool sm90 = raw && fits_sm90(p, D, aligned);
  const int64_t K = p.length, stride = sm90 ? padded_depth(p) : ceil_div<int64_t>(K, 8) * 8;
  // What of Σ W is missing in the product of bytes, or of bytes less 128.
  const float offset = sm90 ? -0.5f * kScale : raw ? 1.0f : 0.0f;
  Scratch<T> ordered(s, D * stride);
  Scratch<float> shift(s, ceil_div<int64_t>(D, 8) * 8);
  launch(patch_embed_weight_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(D, kWarps)),
         kThreads, 0, s, ordered.data(), shift.data(), weight, bias, columns, static_cast<int>(D),
         p.length, stride, offset, sm90);
  if constexpr (raw)
    if (sm90)
      return embed_sm90(s,
                        {p, y, shift.data(), position, static_cast<int>(N), static_cast<int>(D), 0},
                        ordered.data());
  PatchEpilogue<T> epilogue{};
  epilogue.y = y;
  epilogue.shift = shift.data();
  epilogue.position = position;
  epilogue.N = static_cast<int>(N);
  epilogue.D = static_cast<int>(D);
  epilogue.scale = raw ? kScale : 1.0f;
  epilogue.aligned = aligned;
  const Splits whole{1, K};
  if constexpr (raw)
    launch_gemm(s, ByteOperand<true>{p}, MatrixOperand<true>(ordered.data(), D, K, stride), p.lines,
                D, K, epilogue, whole);
  else
    launch_float_gemm(s, PixelOperand<true>{p}, FloatOperand<true>(ordered.data(), D, K, stride),
                      p.lines, D, K, epilogue, whole);
}

// dweight (D, K) += ; a sum over all patches, split along them to fill the GPU. `sums` (D) is Σ dy.
template <class T> void add_weight_gradient(Stream& s, float* dweight, const T* dy,
                                            const float* sums, const Patches& p, int64_t D,
                                            Columns columns) {
  constexpr bool raw = !std::is_same_v<T, float>;
  const int64_t K = p.length, stride = ceil_div<int64_t>(K, 8) * 8;
  const Splits splits = splits_of(D, K, p.lines);
  Scratch<float> parts(s, splits.count * D * stride);
  const StoreEpilogue<float> epilogue(parts.data(), nullptr, K, stride, false, D * stride);
  if constexpr (raw)
    launch_gemm(s, MatrixOperand<false>(dy, p.lines, D, D), ByteOperand<false>{p}, D, K, p.lines,
                epilogue, splits);
  else
    launch_float_gemm(s, FloatOperand<false>(dy, p.lines, D, D), PixelOperand<false>{p}, D, K,
                      p.lines, epilogue, splits);
  launch(patch_embed_dweight_kernel, static_cast<unsigned>(ceil_div<int64_t>(D * K, kThreads)),
         kThreads, 0, s, dweight, static_cast<const float*>(parts.data()), raw ? sums : nullptr,
         columns, static_cast<int>(splits.count), static_cast<int>(D), p.length, stride,
         raw ? kScale : 1.0f);
}

}  // namespace siglip2::cuda::patches
