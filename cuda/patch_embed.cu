// Patch embedding from bytes and its gradients (native/ops/patch_embed.h). Bound by arithmetic: a product of
// (B·N, 3·P·P) patches and the weight. The patches are never written out: a block gathers its part of the pixels, as
// x/127.5 − 1, on their way into shared memory. All arithmetic is float; one 64 × 64 tile with 4 × 4 outputs a thread
// serves both passes. k counts the values of a patch as they lie in the image: row, column, channel.
//
// dweight is a sum over all patches: it is cut into slices, so that the grid fills a GPU, which column_sums adds in
// order. So are dposition, over the samples, and dbias, over the positions of what the positions get.
#include "../native/ops/patch_embed.h"
#include <algorithm>
#include "column_sums.cuh"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr int kTile = 64, kDepth = 16;
constexpr unsigned kThreads = 256;  // 16 × 16 threads of 4 × 4 outputs
constexpr int kPitch = kTile + 4;   // keeps rows 16-byte aligned and moves them to other banks
constexpr size_t kSmem = 2 * kDepth * kPitch * sizeof(float);
// Blocks of the dweight pass: two for each SM of an H100; a constant, so that every GPU adds in the same order.
constexpr int64_t kWantedBlocks = 264;

struct Patches {
  const uint8_t* images;  // (B, H, W, 3)
  int64_t rows;           // B·N
  int H, W, P, across, N, K;
  // Value k of patch `row`, in [−1, 1].
  __device__ __forceinline__ float at(int64_t row, int k) const {
    const int64_t b = row / N;
    const int n = static_cast<int>(row % N), line = 3 * P;
    const int64_t y = n / across * P + k / line, x = n % across * line + k % line;
    return static_cast<float>(images[(b * H + y) * W * 3 + x]) * (1.0f / 127.5f) - 1.0f;
  }
};

// Column of the weight for value k: as it is when flat, else in the convolution's order channel, row, column.
struct Columns {
  int P;
  bool flat;
  __device__ __forceinline__ int of(int k) const { return flat ? k : (k % 3 * P + k / (3 * P)) * P + k / 3 % P; }
};

// c (64, 64) = a (64, depth) · b (64, depth)ᵀ over depth [begin, end); thread t has the 4 rows from 4 (t / 16) and the
// 4 columns from 4 (t % 16). a(row, k) and b(column, k) give an element of the tile, zero outside.
template <class A, class B>
__device__ __forceinline__ void multiply_tile(float (&c)[4][4], A a, B b, int64_t begin, int64_t end, float* smem) {
  float* const a_tile = smem;
  float* const b_tile = smem + kDepth * kPitch;
  const int t = static_cast<int>(threadIdx.x), row = t / 16 * 4, column = t % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) c[i][j] = 0;
  for (int64_t k0 = begin; k0 < end; k0 += kDepth) {
#pragma unroll
    for (int part = 0; part < kTile * kDepth / static_cast<int>(kThreads); ++part) {
      const int i = part * static_cast<int>(kThreads) + t;
      a_tile[A::k_of(i) * kPitch + A::r_of(i)] = k0 + A::k_of(i) < end ? a(A::r_of(i), k0 + A::k_of(i)) : 0.0f;
      b_tile[B::k_of(i) * kPitch + B::r_of(i)] = k0 + B::k_of(i) < end ? b(B::r_of(i), k0 + B::k_of(i)) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float u[4], v[4];
      Pack<float>::load(a_tile + k * kPitch + row).unpack(u);
      Pack<float>::load(b_tile + k * kPitch + column).unpack(v);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[i][j] += u[i] * v[j];
    }
    __syncthreads();
  }
}

// Which element of a tile a thread loads: neighbouring threads walk along the depth, or along the rows.
struct AlongDepth {
  static constexpr __host__ __device__ int k_of(int i) { return i % kDepth; }
  static constexpr __host__ __device__ int r_of(int i) { return i / kDepth; }
};
struct AlongRows {
  static constexpr __host__ __device__ int k_of(int i) { return i / kTile; }
  static constexpr __host__ __device__ int r_of(int i) { return i % kTile; }
};

// ---- forward ------------------------------------------------------------------------------------

struct PixelRows : AlongDepth {  // depth: the values of a patch
  Patches p;
  int64_t row0;
  __device__ __forceinline__ float operator()(int r, int64_t k) const {
    return row0 + r < p.rows ? p.at(row0 + r, static_cast<int>(k)) : 0.0f;
  }
};
template <class T> struct WeightRows : AlongDepth {
  const T* weight;  // (D, K)
  Columns columns;
  int64_t d0, D, K;
  __device__ __forceinline__ float operator()(int r, int64_t k) const {
    return d0 + r < D ? static_cast<float>(weight[(d0 + r) * K + columns.of(static_cast<int>(k))]) : 0.0f;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) patch_embed_forward_kernel(T* y,  // (B·N, D)
                                                                       Patches patches,
                                                                       const T* weight,        // (D, K)
                                                                       const float* bias,      // (D)
                                                                       const float* position,  // (N, D)
                                                                       int64_t D, bool flat) {
  DYN_SMEM(smem);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kTile, d0 = static_cast<int64_t>(blockIdx.y) * kTile;
  float c[4][4];
  multiply_tile(c, PixelRows{{}, patches, row0}, WeightRows<T>{{}, weight, {patches.P, flat}, d0, D, patches.K}, 0,
                patches.K, reinterpret_cast<float*>(smem));
  const int64_t row = row0 + threadIdx.x / 16 * 4, d = d0 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (row + i < patches.rows && d + j < D)
        y[(row + i) * D + d + j] = static_cast<T>(c[i][j] + bias[d + j] + position[(row + i) % patches.N * D + d + j]);
}

// ---- backward -----------------------------------------------------------------------------------

template <class T> struct GradientColumns : AlongRows {  // depth: the patches
  const T* dy;  // (B·N, D)
  int64_t d0, D;
  __device__ __forceinline__ float operator()(int r, int64_t k) const {
    return d0 + r < D ? static_cast<float>(dy[k * D + d0 + r]) : 0.0f;
  }
};
struct PixelColumns : AlongRows {
  Patches p;
  int k0;
  __device__ __forceinline__ float operator()(int r, int64_t k) const { return k0 + r < p.K ? p.at(k, k0 + r) : 0.0f; }
};

template <class T>
__global__ void __launch_bounds__(kThreads) patch_embed_dweight_kernel(float* partial,  // (slices, D, K)
                                                                       const T* dy,     // (B·N, D)
                                                                       Patches patches, int64_t D, bool flat,
                                                                       int64_t slice_rows) {
  DYN_SMEM(smem);
  const int64_t d0 = static_cast<int64_t>(blockIdx.x) * kTile, k0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t begin = blockIdx.z * slice_rows, most = begin + slice_rows;
  const int64_t end = most < patches.rows ? most : patches.rows;
  float c[4][4];
  multiply_tile(c, GradientColumns<T>{{}, dy, d0, D}, PixelColumns{{}, patches, static_cast<int>(k0)}, begin, end,
                reinterpret_cast<float*>(smem));
  const Columns columns{patches.P, flat};
  const int64_t d = d0 + threadIdx.x / 16 * 4, k = k0 + threadIdx.x % 16 * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (d + i < D && k + j < patches.K)
        partial[(blockIdx.z * D + d + i) * patches.K + columns.of(static_cast<int>(k + j))] = c[i][j];
}

Patches patches_of(Tensor images, int64_t B, int64_t H, int64_t W, int64_t P) {
  if (P <= 0 || H < P || W < P) throw std::invalid_argument("an image is smaller than one patch");
  if (H > INT16_MAX || W > INT16_MAX) throw std::invalid_argument("an image has more than 32767 rows or columns");
  const int64_t N = H / P * (W / P);
  return {images.as<const uint8_t>(B * H * W * 3), B * N, static_cast<int>(H), static_cast<int>(W), static_cast<int>(P),
          static_cast<int>(W / P), static_cast<int>(N), static_cast<int>(3 * P * P)};
}

unsigned tiles(int64_t n) { return static_cast<unsigned>(ceil_div<int64_t>(n, kTile)); }

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void patch_embed_forward(Stream& s, Tensor y, Tensor images, Tensor weight, Tensor bias, Tensor position, int64_t B,
                         int64_t H, int64_t W, int64_t P, int64_t D, bool flat) {
  const Patches p = patches_of(images, B, H, W, P);
  if (p.rows == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    launch(patch_embed_forward_kernel<T>, dim3(tiles(p.rows), tiles(D)), kThreads, kSmem, s, y.as<T>(p.rows * D), p,
           weight.as<const T>(D * p.K), bias.as<const float>(D), position.as<const float>(p.N * D), D, flat);
  });
}

void patch_embed_backward(Stream& s, Tensor dweight, Tensor dbias, Tensor dposition, Tensor dy, Tensor images,
                          int64_t B, int64_t H, int64_t W, int64_t P, int64_t D, bool flat) {
  const Patches p = patches_of(images, B, H, W, P);
  if (p.rows == 0 || D == 0) return;
  dispatch_element(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const g = dy.as<const T>(p.rows * D);
    if (dbias || dposition) {
      Scratch<float> sums(s, p.N * D);
      column_sums<false>(s, sums.data(), g, p.rows * D, p.N * D);
      if (float* const to = dposition.as_or_null<float>(p.N * D)) 
        column_sums<true>(s, to, sums.data(), p.N * D, p.N * D);
      if (float* const to = dbias.as_or_null<float>(D)) column_sums<true>(s, to, sums.data(), p.N * D, D);
    }
    float* const dw = dweight.as_or_null<float>(D * p.K);
    if (!dw) return;
    const unsigned across = tiles(D), down = tiles(p.K);
    const int64_t wanted = std::max<int64_t>(1, kWantedBlocks / (static_cast<int64_t>(across) * down));
    const int64_t slice_rows = ceil_div(ceil_div(p.rows, wanted), int64_t{kDepth}) * kDepth;
    const int64_t slices = ceil_div(p.rows, slice_rows);
    Scratch<float> partial(s, slices * D * p.K);
    launch(patch_embed_dweight_kernel<T>, dim3(across, down, static_cast<unsigned>(slices)), kThreads, kSmem, s,
           partial.data(), g, p, D, flat, slice_rows);
    column_sums<true>(s, dw, partial.data(), slices * D * p.K, D * p.K);
  });
}

}  // namespace siglip2::cuda
