// C (64, N) = A (64, 64) · B (64, N) in one stage: TMA brings both operands, in chunks as wide as the swizzle, and four
// wgmma multiply them. One kernel for every width, swizzle and majorness that the real kernels use.
#pragma once
#include "../../../cuda/common.cuh"
#include "../../../cuda/arch/tensor_map.cuh"
#include "../../../cuda/arch/wgmma_128.cuh"
#include "../../../cuda/arch/wgmma_256.cuh"

namespace siglip2::cuda {

constexpr int kTileDepth = 64;

// kRows of an operand. Transposed, it lies as (64, kRows) and is MN-major, else as (kRows, 64).
template <int kRows_, Swizzle kSwizzle, bool kTransposed> struct OperandBox {
  static constexpr int kChunk = kSwizzle == Swizzle::bytes128  ? 64
                                : kSwizzle == Swizzle::bytes64 ? 32
                                                               : 16;
  static constexpr int kLines = kTransposed ? kTileDepth : kRows_,
                       kLength = kTransposed ? kRows_ : kTileDepth;
  static constexpr int kLine = kChunk * 2, kChunkBytes = kLines * kLine,
                       kBytes = kLength / kChunk * kChunkBytes;
  static_assert(kLength % kChunk == 0 && kChunkBytes % 1024 == 0);

  static TensorMap map(const __nv_bfloat16* data) {
    return tensor_map_of<2>(data, {kLength, kLines}, {kLength}, {kChunk, kLines}, kSwizzle);
  }
  __device__ __forceinline__ static void load(unsigned char* tile, const TensorMap* map,
                                              uint64_t* full) {
    for (int c = 0; c < kLength / kChunk; ++c)
      tma_load_2d(tile + c * kChunkBytes, map, c * kChunk, 0, full);
  }
  __device__ __forceinline__ static uint64_t slice(const unsigned char* tile, int k) {
    return kTransposed
               ? matrix_descriptor<kSwizzle>(tile + k * 16 * kLine, kChunkBytes, 8 * kLine)
               : matrix_descriptor<kSwizzle>(
                     tile + k * 16 / kChunk * kChunkBytes + k * 16 % kChunk * 2, 0, 8 * kLine);
  }
};

template <int kN, Swizzle kSwizzle, bool kTransposeA, bool kTransposeB> struct WgmmaTile {
  using A = OperandBox<64, kSwizzle, kTransposeA>;
  using B = OperandBox<kN, kSwizzle, kTransposeB>;
  static constexpr size_t kSmem = A::kBytes + B::kBytes + sizeof(uint64_t);
};

// kRegisters: A does not come by TMA but from `a`, (64, 64), through registers.
template <int kN, Swizzle kSwizzle, bool kTransposeA, bool kTransposeB, bool kRegisters>
__global__ void __launch_bounds__(128, 1)
    wgmma_tile_kernel(const __grid_constant__ TensorMap a_map,
                      const __grid_constant__ TensorMap b_map, const __nv_bfloat16* a, float* c) {
  using Tile = WgmmaTile<kN, kSwizzle, kTransposeA, kTransposeB>;
  DYN_SMEM(smem);
  unsigned char* const b_tile = smem + Tile::A::kBytes;
  uint64_t* const full = reinterpret_cast<uint64_t*>(b_tile + Tile::B::kBytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int row = warp * 16 + lane / 4, column = lane % 4 * 2;
  if (thread == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(full, (kRegisters ? 0 : Tile::A::kBytes) + Tile::B::kBytes);
    if (!kRegisters) Tile::A::load(smem, &a_map, full);
    Tile::B::load(b_tile, &b_map, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);

  uint32_t fragments[4][4];
  if (kRegisters) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        memcpy(&fragments[k][e], a + (row + e % 2 * 8) * kTileDepth + k * 16 + e / 2 * 8 + column,
               4);
  }
  float d[kN / 2];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTileDepth / 16; ++k) {
    const uint64_t b_slice = Tile::B::slice(b_tile, k);
    if constexpr (kRegisters) {
      if constexpr (kN == 96) wgmma_m64n96k16<kTransposeB>(d, fragments[k], b_slice, k > 0);
      else wgmma_m64n128k16<kTransposeB>(d, fragments[k], b_slice, k > 0);
    } else {
      const uint64_t a_slice = Tile::A::slice(smem, k);
      if constexpr (kN == 32) wgmma_m64n32k16<kTransposeA, kTransposeB>(d, a_slice, b_slice, k > 0);
      else if constexpr (kN == 64)
        wgmma_m64n64k16<kTransposeA, kTransposeB>(d, a_slice, b_slice, k > 0);
      else if constexpr (kN == 128)
        wgmma_m64n128k16<kTransposeA, kTransposeB>(d, a_slice, b_slice, k > 0);
      else wgmma_m64n256k16<kTransposeA, kTransposeB>(d, a_slice, b_slice, k > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kN / 2; ++i)
    c[(row + i / 2 % 2 * 8) * kN + i / 4 * 8 + column + i % 2] = d[i];
}

// Every case, by name: f(name, kernel's constants as types).
template <int kN_, Swizzle kSwizzle_, bool kTransposeA_, bool kTransposeB_, bool kRegisters_>
struct WgmmaCase {
  static constexpr int kN = kN_;
  static constexpr bool kTransposeA = kTransposeA_, kTransposeB = kTransposeB_,
                        kRegisters = kRegisters_;
  using Tile = WgmmaTile<kN_, kSwizzle_, kTransposeA_, kTransposeB_>;
  static constexpr auto kKernel =
      wgmma_tile_kernel<kN_, kSwizzle_, kTransposeA_, kTransposeB_, kRegisters_>;
};
template <class F> void each_wgmma_case(F&& f) {
  constexpr Swizzle wide = Swizzle::bytes128, half = Swizzle::bytes64, quarter = Swizzle::bytes32;
  f("wgmma n32, both K-major", WgmmaCase<32, wide, false, false, false>{});
  f("wgmma n64, A MN-major, B K-major", WgmmaCase<64, wide, true, false, false>{});
  f("wgmma n64, both MN-major", WgmmaCase<64, wide, true, true, false>{});
  f("wgmma n64, 64-byte swizzle, both K-major", WgmmaCase<64, half, false, false, false>{});
  f("wgmma n64, 64-byte swizzle, both MN-major", WgmmaCase<64, half, true, true, false>{});
  f("wgmma n64, 32-byte swizzle, both K-major", WgmmaCase<64, quarter, false, false, false>{});
  f("wgmma n64, 32-byte swizzle, both MN-major", WgmmaCase<64, quarter, true, true, false>{});
  f("wgmma n128, both K-major", WgmmaCase<128, wide, false, false, false>{});
  f("wgmma n128, both MN-major", WgmmaCase<128, wide, true, true, false>{});
  f("wgmma n256, both K-major", WgmmaCase<256, wide, false, false, false>{});
  f("wgmma n256, both MN-major", WgmmaCase<256, wide, true, true, false>{});
  f("wgmma n96, A in registers, 64-byte swizzle, MN-major",
    WgmmaCase<96, half, false, true, true>{});
  f("wgmma n128, A in registers, MN-major", WgmmaCase<128, wide, false, true, true>{});
}

}  // namespace siglip2::cuda
