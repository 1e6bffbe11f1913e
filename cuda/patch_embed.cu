// Patch embedding from bytes and its gradients (native/ops/patch_embed.h). Bound by arithmetic: a product of (B·N, 3·P·P)
// patches and the weight. The patches are never written out: the GEMM core fetches them from the images.
//
// bf16: a byte is exact in bf16, so raw bytes are the operand, and x/127.5 − 1 moves behind the product, where it costs
// nothing and rounds nothing: y = acc/127.5 + (bias − Σ_k W) + position, dW = acc/127.5 − Σ_r dy. f32: the pixels are
// scaled as they are fetched. The values of a patch are taken as they lie in the image, row, column, channel, 3·P
// contiguous bytes at a time; the weight, far smaller, is brought into that order.
//
// dweight is a sum over all patches, split along them to fill the GPU; column_sums makes dposition, over the samples, and
// dbias, over the positions of what the positions get. Every sum has a fixed order.
#include "../native/ops/patch_embed.h"
#include "column_sums.cuh"
#include "gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;
constexpr float kScale = 1.0f / 127.5f;

// ---- operands -----------------------------------------------------------------------------------

// Where the patches lie; a line of an operand is a patch, `at` a value of it.
struct Patches {
  const uint8_t* images;  // (B, H, W, 3)
  int lines, length;      // B·N, 3·P·P
  int H, W, P, across, N;
  bool packed;  // eight values from a multiple of eight on are one aligned run of bytes

  __device__ __forceinline__ const uint8_t* corner(int patch) const {
    const int b = patch / N, n = patch % N;
    return images + ((static_cast<int64_t>(b) * H + n / across * P) * W + n % across * P) * 3;
  }
  __device__ __forceinline__ uint8_t value(const uint8_t* from, int at) const {
    return from[static_cast<int64_t>(at / (3 * P)) * W * 3 + at % (3 * P)];
  }
};

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
      held.bytes = *reinterpret_cast<const uint2*>(&from[static_cast<int64_t>(at / (3 * p.P)) * p.W * 3 + at % (3 * p.P)]);
      return held;
    }
    uint32_t words[2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (at + i < p.length) words[i / 4] |= static_cast<uint32_t>(p.value(from, at + i)) << (i % 4 * 8);
    held.bytes = {words[0], words[1]};
    return held;
  }
  __device__ __forceinline__ static void end(void* chunk, Held held) {
    const auto pair = [](uint32_t word, int i) {
      return pack_bf16(static_cast<float>(word >> (8 * i) & 0xff), static_cast<float>(word >> (8 * i + 8) & 0xff));
    };
    *static_cast<uint4*>(chunk) = {pair(held.bytes.x, 0), pair(held.bytes.x, 2), pair(held.bytes.y, 0),
                                   pair(held.bytes.y, 2)};
  }
};

template <bool kDepthInLine_> struct PixelOperand {  // for the float core
  static constexpr bool kDepthInLine = kDepthInLine_;
  Patches p;
  __device__ __forceinline__ float load(int line, int at) const {
    if (line >= p.lines || at >= p.length) return 0.0f;
    return static_cast<float>(p.value(p.corner(line), at)) * kScale - 1.0f;
  }
};

// Column of the weight for value k: as it is when flat, else in the convolution's order channel, row, column.
struct Columns {
  int P;
  bool flat;
  __device__ __forceinline__ int of(int k) const { return flat ? k : (k % 3 * P + k / (3 * P)) * P + k / 3 % P; }
};

// ---- forward ------------------------------------------------------------------------------------

// ordered ← weight with its columns as values lie; shift ← bias, less Σ_k weight where pixels are raw. A warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads) patch_embed_weight_kernel(T* ordered,          // (D, stride)
                                                                      float* shift,        // (D)
                                                                      const T* weight,     // (D, K)
                                                                      const float* bias,   // (D)
                                                                      Columns columns, int D, int K, int64_t stride,
                                                                      bool raw) {
  const int d = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / kWarp);
  if (d >= D) return;
  float sum = 0;
  for (int k = static_cast<int>(threadIdx.x % kWarp); k < K; k += static_cast<int>(kWarp)) {
    const T w = weight[static_cast<int64_t>(d) * K + columns.of(k)];
    ordered[d * stride + k] = w;
    sum += static_cast<float>(w);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) shift[d] = bias[d] - (raw ? sum : 0.0f);
}

// y = product · scale + shift + position.
template <class T> struct PatchEpilogue : Epilogue {
  T* y;                   // (B·N, D)
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
__global__ void __launch_bounds__(kThreads) patch_embed_dweight_kernel(float* dweight,      // (D, K)
                                                                       const float* parts,  // (splits, D, stride)
                                                                       const float* sums,   // (D) Σ_r dy, or null
                                                                       Columns columns, int splits, int D, int K,
                                                                       int64_t stride, float scale) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= static_cast<int64_t>(D) * K) return;
  const int d = static_cast<int>(i / K), k = static_cast<int>(i % K);
  float total = 0;
  for (int s = 0; s < splits; ++s) total += parts[(static_cast<int64_t>(s) * D + d) * stride + k];
  dweight[static_cast<int64_t>(d) * K + columns.of(k)] += total * scale - (sums ? sums[d] : 0.0f);
}

Patches patches_of(Tensor images, int64_t B, int64_t H, int64_t W, int64_t P) {
  if (P <= 0 || H < P || W < P) throw std::invalid_argument("an image is smaller than one patch");
  if (H > INT16_MAX || W > INT16_MAX) throw std::invalid_argument("an image has more than 32767 rows or columns");
  const int64_t N = H / P * (W / P);
  if (B * N > INT32_MAX) throw std::invalid_argument("there are more than 2^31 - 1 patches");
  Patches p{images.as<const uint8_t>(B * H * W * 3), static_cast<int>(B * N), static_cast<int>(3 * P * P),
            static_cast<int>(H), static_cast<int>(W), static_cast<int>(P), static_cast<int>(W / P),
            static_cast<int>(N), false};
  p.packed = 3 * P % 8 == 0 && 3 * W % 8 == 0 && aligned_16(p.images);
  return p;
}

// A product of float operands of any kind.
template <class A, class B, class E>
void launch_float_gemm(Stream& s, const A& a, const B& b, int64_t M, int64_t N, int64_t K, const E& epilogue,
                       const Splits& splits) {
  check_extent(M, N, K);
  if (wants_large_tile(M, N, splits)) launch_tiles<LargeFloatTile>(s, a, b, M, N, K, splits, epilogue);
  else launch_tiles<SmallFloatTile>(s, a, b, M, N, K, splits, epilogue);
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void patch_embed_forward(Stream& s, Tensor y, Tensor images, Tensor weight, Tensor bias, Tensor position, int64_t B,
                         int64_t H, int64_t W, int64_t P, int64_t D, bool flat) {
  const Patches p = patches_of(images, B, H, W, P);
  if (p.lines == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr bool raw = !std::is_same_v<T, float>;
    const int64_t K = p.length, stride = ceil_div<int64_t>(K, 8) * 8;
    Scratch<T> ordered(s, D * stride);
    Scratch<float> shift(s, ceil_div<int64_t>(D, 8) * 8);
    launch(patch_embed_weight_kernel<T>, static_cast<unsigned>(ceil_div<int64_t>(D, kWarps)), kThreads, 0, s,
           ordered.data(), shift.data(), weight.as<const T>(D * K), bias.as<const float>(D),
           Columns{p.P, flat}, static_cast<int>(D), p.length, stride, raw);
    PatchEpilogue<T> epilogue{};
    epilogue.y = y.as<T>(p.lines * D);
    epilogue.shift = shift.data();
    epilogue.position = position.as<const float>(p.N * D);
    epilogue.N = p.N;
    epilogue.D = static_cast<int>(D);
    epilogue.scale = raw ? kScale : 1.0f;
    epilogue.aligned = D % 8 == 0 && aligned_16(epilogue.y, epilogue.position);
    const Splits whole{1, K};
    if constexpr (raw)
      launch_gemm(s, ByteOperand<true>{p}, MatrixOperand<true>(ordered.data(), D, K, stride), p.lines, D, K, epilogue,
                  whole);
    else
      launch_float_gemm(s, PixelOperand<true>{p}, FloatOperand<true>(ordered.data(), D, K, stride), p.lines, D, K,
                        epilogue, whole);
  });
}

void patch_embed_backward(Stream& s, Tensor dweight, Tensor dbias, Tensor dposition, Tensor dy, Tensor images,
                          int64_t B, int64_t H, int64_t W, int64_t P, int64_t D, bool flat) {
  const Patches p = patches_of(images, B, H, W, P);
  if (p.lines == 0 || D == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr bool raw = !std::is_same_v<T, float>;
    const T* const g = dy.as<const T>(p.lines * D);
    float* const dw = dweight.as_or_null<float>(D * p.length);
    float* const db = dbias.as_or_null<float>(D);
    Scratch<float> places(s, p.N * D), sums(s, D);
    if (db || dposition || (dw && raw)) {
      column_sums<false>(s, places.data(), g, p.lines * D, p.N * D);
      if (float* const to = dposition.as_or_null<float>(p.N * D))
        column_sums<true>(s, to, places.data(), p.N * D, p.N * D);
      column_sums<false>(s, sums.data(), places.data(), p.N * D, D);
      if (db) column_sums<true>(s, db, sums.data(), D, D);
    }
    if (!dw) return;
    const int64_t K = p.length, stride = ceil_div<int64_t>(K, 8) * 8;
    const Splits splits = splits_of(D, K, p.lines);
    Scratch<float> parts(s, splits.count * D * stride);
    const StoreEpilogue<float> epilogue(parts.data(), nullptr, K, stride, false, D * stride);
    if constexpr (raw)
      launch_gemm(s, MatrixOperand<false>(g, p.lines, D, D), ByteOperand<false>{p}, D, K, p.lines, epilogue, splits);
    else
      launch_float_gemm(s, FloatOperand<false>(g, p.lines, D, D), PixelOperand<false>{p}, D, K, p.lines, epilogue,
                        splits);
    launch(patch_embed_dweight_kernel, static_cast<unsigned>(ceil_div<int64_t>(D * K, kThreads)), kThreads, 0, s, dw,
           parts.data(), raw ? sums.data() : nullptr, Columns{p.P, flat}, static_cast<int>(splits.count),
           static_cast<int>(D), p.length, stride, raw ? kScale : 1.0f);
  });
}

}  // namespace siglip2::cuda
