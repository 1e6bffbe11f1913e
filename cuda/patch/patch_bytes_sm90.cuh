// What the kernels of patch_embed_sm90.cuh share: patches' bytes on their way from memory to the operand of wgmma, and
// products on theirs to y.
//
// A byte less 128 is exact in bf16 and cheaper to make than the byte. A lane takes 16 bytes of a row at a time, one
// load from shared memory; which of them are neighbours in a fragment is free to choose as long as the weight agrees
// (value_at()), so bytes 0 and 2 of a word are a pair and bytes 1 and 3 the next: no byte is moved on its own.
#pragma once
#include "../gemm/gemm_sm90.cuh"
#include "patches.cuh"
#include "../arch/wgmma_128.cuh"

namespace siglip2::cuda::patches {

constexpr int kDepth = 64;  // of a stage
constexpr int kGroupPatches = 128,
              kOutputs = 128;  // rows of a consumer warpgroup, columns of a tile
constexpr int kWeightBytes = kOutputs * kDepth * 2;  // of a stage's depth
constexpr int kProducers = 128;                      // threads, which copy bytes
constexpr int kPatchThreads = kProducers + 2 * 128;
constexpr int kPatchProducerRegisters = 40, kPatchConsumerRegisters = 232;
static_assert(kPatchProducerRegisters + 2 * kPatchConsumerRegisters <=
              3 * ((64 << 10) / kPatchThreads / 8 * 8));

// Which value of a patch stands at a place along the depth of the product, both from 0 on: slice s of 16 in a stage
// takes bytes 4 s to 4 s + 3 of the 16 that each of four lanes has; places j and j + 1, j even, share a register.
__host__ __device__ constexpr int value_at(int place) {
  const int slice = place % kDepth / 16, j = place % 16;
  return place / kDepth * kDepth + j % 8 / 2 * 16 + slice * 4 + j % 2 * 2 + j / 8;
}

struct PatchProduct {
  Patches p;
  __nv_bfloat16* y;    // (lines, D) = bytes, less 128, times weights · kScale + shift + position
  const float* shift;  // (D)
  const float* position;  // (N, D), used in turn
  int N, D, steps;        // D: a multiple of 8; stages along the depth
};

// ---- producers ----------------------------------------------------------------------------------

// One of the threads that copy kRows patches of a tile. Four lanes copy the 64 bytes of a row, so that a warp asks for
// whole sectors of neighbouring patches.
template <int kRows> struct ByteCopies {
  static constexpr int kApart = kProducers / 4, kEach = kRows / kApart;
  static constexpr uint32_t kNowhere = ~0u;
  uint32_t corner[kEach];  // in units of 16 bytes
  const int row0 = static_cast<int>(threadIdx.x) / 4,
            chunk = static_cast<int>(threadIdx.x) % 4 * 16;

  __device__ __forceinline__ void set(const Patches& p, int first) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int line = first + i * kApart + row0;
      corner[i] = line < p.lines ? static_cast<uint32_t>((p.corner(line) - p.data) / 16) : kNowhere;
    }
  }
  // A group of cp.async: zeros behind the last patch and behind a patch's values.
  __device__ __forceinline__ void copy(const Patches& p, unsigned char* stage, int step) const {
    const int at = step * kDepth + chunk;
    const bool there = at < p.length;
    const uint8_t* const from = p.data + (there ? p.offset(at) : 0);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool valid = there && corner[i] != kNowhere;
      cp_async_16(stage + (i * kApart + row0) * kDepth + chunk,
                  valid ? from + int64_t{corner[i]} * 16 : p.data, valid);
    }
    cp_async_commit();
  }
};

// By each producer warp: its copies to a stage have landed.
__device__ __forceinline__ void announce_bytes(uint64_t* full) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(full);
}

// ---- consumers ----------------------------------------------------------------------------------

// The lane's 16 bytes of each of its four rows, two in a block of 64. `bytes`: 128 patches.
__device__ __forceinline__ void load_bytes(uint4 (&rows)[4], const unsigned char* bytes) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const unsigned char* const mine =
      bytes + (thread / 32 % 4 * 16 + lane / 4) * kDepth + lane % 4 * 16;
#pragma unroll
  for (int row = 0; row < 4; ++row)
    rows[row] = *reinterpret_cast<const uint4*>(mine + (row / 2 * 64 + row % 2 * 8) * kDepth);
}

// Bytes 0 and 2 of a word, each less 128: 128 + the low seven bits, and −128 where the eighth is set, else −256.
__device__ __forceinline__ uint32_t centred_bytes(uint32_t word) {
  return add_bf16x2((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) ^ 0xc380c380u);
}

// A of 32 values of 128 patches: slices, blocks of 64 rows, registers.
using Fragments = uint32_t[2][2][4];

// kHalf says which eight of the 16 bytes are meant.
template <int kHalf>
__device__ __forceinline__ void convert_bytes(Fragments& a, const uint4 (&rows)[4]) {
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const uint32_t words[2] = {kHalf ? rows[row].z : rows[row].x,
                               kHalf ? rows[row].w : rows[row].y};
#pragma unroll
    for (int slice = 0; slice < 2; ++slice) {
      a[slice][row / 2][row % 2] = centred_bytes(words[slice]);
      a[slice][row / 2][row % 2 + 2] = centred_bytes(words[slice] >> 8);
    }
  }
}

// Half of a stage's products.
template <int kHalf>
__device__ __forceinline__ void issue_products(float (&d)[2][64], const Fragments& a,
                                               const unsigned char* weight, bool accumulate) {
  wgmma_fence();
#pragma unroll
  for (int slice = 0; slice < 2; ++slice) {
    const uint64_t columns = operand_slice<true>(weight, 0, kHalf * 2 + slice);
#pragma unroll
    for (int block = 0; block < 2; ++block)
      wgmma_m64n128k16<false>(d[block], a[slice][block], columns, accumulate || slice > 0);
  }
  wgmma_commit();
}

// y of a consumer's 128 patches, from `row0`, and the 128 columns from `column0`.
__device__ __forceinline__ void store_products(const PatchProduct& g, const float (&d)[2][64],
                                               int row0, int column0) {
  constexpr int kGroups = kOutputs / 32;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int mine = column0 + lane % 4 * 8;
#pragma unroll
  for (int part = 0; part < 4; ++part) {  // one of the lane's rows each
    const int block = part / 2, half = part % 2;
    const int row = row0 + thread / 32 % 4 * 16 + block * 64 + half * 8 + lane / 4;
    const float* const position = g.position + static_cast<int64_t>(row % g.N) * g.D + mine;
    float where[kGroups][8];  // all of a row's are under way before the first is waited for
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
      if (mine + n * 32 < g.D) load_values(where[n], position + n * 32);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int column = mine + n * 32;
      float pairs[4][2], v[8], shift[8];
#pragma unroll
      for (int e = 0; e < 8; ++e)
        pairs[e / 2][e % 2] = d[block][n * 16 + e / 2 * 4 + half * 2 + e % 2];
      gather_columns(v, pairs);
      if (row >= g.p.lines || column >= g.D) continue;
      load_values(shift, g.shift + column);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] = v[e] * kScale + shift[e] + where[n][e];
      store_values(g.y + static_cast<int64_t>(row) * g.D + column, v);
    }
  }
}

}  // namespace siglip2::cuda::patches
