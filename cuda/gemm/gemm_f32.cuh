// The product of float matrices, C (M, N) = A (M, K) · B (K, N), on the CUDA cores: the same tiles,
// splits and epilogues as gemm.cuh, in float throughout, so its error is that of float arithmetic.
// (Tensor cores would need three TF32 products for errors of 2⁻²², or six bf16 products; the f32
// mode is there to be exact, not fast.) Bound by fused multiply-adds: 8 × 8 outputs a thread need 16
// floats from shared memory for 64 of them.
#pragma once
#include "gemm.cuh"

namespace siglip2::cuda {

template <bool kDepthInLine_> struct FloatOperand {
  static constexpr bool kDepthInLine = kDepthInLine_;
  const float* data;
  int lines, length;
  int64_t stride;

  FloatOperand(const void* p, int64_t line_count, int64_t line_length, int64_t line_stride)
      : data(static_cast<const float*>(p)),
        lines(static_cast<int>(line_count)),
        length(static_cast<int>(line_length)),
        stride(line_stride) {}

  __device__ __forceinline__ float load(int line, int at) const {
    return line < lines && at < length ? data[line * stride + at] : 0.0f;
  }
};

// kRows × kRows outputs by 256 threads; each has kEach × kEach in groups of four that lie
// kRows / (kEach / 4) apart, so that neighbouring threads read neighbouring 16 bytes.
template <int kRows_, int kBlocks_> struct FloatTile {
  static constexpr int kM = kRows_, kN = kRows_, kDepth = 8, kThreads = 256, kWarps = 8;
  static constexpr int kEach = kRows_ / 16, kGroups = kEach / 4, kApart = kRows_ / kGroups;
  static constexpr int kPitch = kRows_ + 4;  // 16-byte rows, other banks
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kFloats = kDepth * kPitch;  // of one operand in one stage
  static constexpr int kLoads = kRows_ * kDepth / kThreads;
  static constexpr size_t kSmem = 2 * 2 * kFloats * sizeof(float);
};
using LargeFloatTile = FloatTile<128, 1>;  // 64 outputs and their operands: over 128 registers
using SmallFloatTile = FloatTile<64, 3>;

template <class Tile, class Operand>
__device__ __forceinline__ void load_floats(float (&held)[Tile::kLoads], const Operand& operand,
                                            int row0, int k0) {
#pragma unroll
  for (int i = 0; i < Tile::kLoads; ++i) {
    const int t = i * Tile::kThreads + static_cast<int>(threadIdx.x);
    if (Operand::kDepthInLine)
      held[i] = operand.load(row0 + t / Tile::kDepth, k0 + t % Tile::kDepth);
    else held[i] = operand.load(k0 + t / Tile::kM, row0 + t % Tile::kM);
  }
}
// As (depth, row).
template <class Tile, class Operand>
__device__ __forceinline__ void put_floats(float* tile, const float (&held)[Tile::kLoads]) {
#pragma unroll
  for (int i = 0; i < Tile::kLoads; ++i) {
    const int t = i * Tile::kThreads + static_cast<int>(threadIdx.x);
    const int row = Operand::kDepthInLine ? t / Tile::kDepth : t % Tile::kM;
    const int k = Operand::kDepthInLine ? t % Tile::kDepth : t / Tile::kM;
    tile[k * Tile::kPitch + row] = held[i];
  }
}

// Blocks (tiles, 1, splits), as gemm_kernel.
template <class Tile, class A, class B, class E>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gemm_f32_kernel(const A a, const B b, int M, int N, int K, int split_depth, E epilogue) {
  DYN_SMEM(smem);
  float* const stages = reinterpret_cast<float*>(smem);
  constexpr int kEach = Tile::kEach, kGroups = Tile::kGroups;
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const TilePlace place = place_of_tile(tile, ceil_div(M, Tile::kM), ceil_div(N, Tile::kN));
  const int m0 = place.row * Tile::kM, n0 = place.column * Tile::kN;
  if (epilogue.skips(m0)) return;  // the whole block
  const int k_first = static_cast<int>(blockIdx.z) * split_depth;
  const int k_end = min(epilogue.depth(K), k_first + split_depth);
  const int row = thread / 16 * 4, column = thread % 16 * 4;

  float held_a[Tile::kLoads], held_b[Tile::kLoads], c[kEach][kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) c[i][j] = 0;
  const auto a_tile = [&](int step) { return stages + step % 2 * 2 * Tile::kFloats; };
  const auto fetch = [&](int k0) {
    load_floats<Tile>(held_a, a, m0, k0);
    load_floats<Tile>(held_b, b, n0, k0);
  };
  const auto put = [&](int step) {
    put_floats<Tile, A>(a_tile(step), held_a);
    put_floats<Tile, B>(a_tile(step) + Tile::kFloats, held_b);
  };

  fetch(k_first);
  put(0);
  for (int k0 = k_first, step = 0; k0 < k_end; k0 += Tile::kDepth, ++step) {
    __syncthreads();
    const bool more = k0 + Tile::kDepth < k_end;
    if (more) fetch(k0 + Tile::kDepth);
    const float* const tile_a = a_tile(step);
    const float* const tile_b = tile_a + Tile::kFloats;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; ++k) {
      float u[kGroups][4], v[kGroups][4];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        Pack<float>::load(tile_a + k * Tile::kPitch + row + g * Tile::kApart).unpack(u[g]);
        Pack<float>::load(tile_b + k * Tile::kPitch + column + g * Tile::kApart).unpack(v[g]);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) c[i][j] += u[i / 4][i % 4] * v[j / 4][j % 4];
    }
    if (more) put(step + 1);
  }

  epilogue.begin(static_cast<int>(blockIdx.z));
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int r = m0 + row + i / 4 * Tile::kApart + i % 4, at = n0 + column + g * Tile::kApart;
      float out[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) out[e] = c[i][4 * g + e];
      if (r < M) epilogue(r, at, out);
    }
  epilogue.finish(tile * Tile::kWarps + thread / 32, thread % 32);
}

}  // namespace siglip2::cuda
