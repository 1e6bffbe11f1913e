// Patch embedding on Hopper (sm_90a): the product of patches and the weight by wgmma, which reads the patches' bytes from
// registers, where they become bf16.
//
// Bound by the tensor cores and, as near, by what tiles cost in L2 bandwidth. 256 patches × 128 outputs for a block of
// three warpgroups: the first fills a ring of stages, the weight by TMA and the bytes by cp.async, the other two multiply
// 128 patches each, 128 accumulators a thread. Bytes are half of an operand, so a tile that is long along the patches
// moves least: 32 KiB for 64 deep. One consumer starts kLead steps behind the other, so that one's results go to memory
// while the other multiplies; blocks are persistent, and the ring is full again when they come back.
//
// A byte less 128 is exact in bf16 and cheaper to make than the byte. A lane takes 16 bytes of a row at a time, one load
// from shared memory; which of them are neighbours in a fragment is free to choose as long as the weight agrees, see
// value_at(), so bytes 0 and 2 of a word are a pair and bytes 1 and 3 the next: no byte is moved on its own.
#pragma once
#include "gemm_sm90.cuh"
#include "patches.cuh"
#include "wgmma_128.cuh"

namespace siglip2::cuda::patches {

struct PatchTile {
  static constexpr int kM = 256, kN = 128, kDepth = 64, kStages = 7, kLead = 4;
  static constexpr int kConsumers = 2, kConsumerRows = kM / kConsumers;
  static constexpr int kThreads = 128 * (1 + kConsumers), kFillers = 128;
  static constexpr int kByteBytes = kM * kDepth, kWeightBytes = kN * kDepth * 2, kStageBytes = kByteBytes + kWeightBytes;
  static constexpr size_t kSmem = size_t{kStages} * kStageBytes + 2 * kStages * sizeof(uint64_t);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static constexpr int kArrivals = kFillers / 32 + 1;  // that fill a stage: the copying warps' and the weight's
  static_assert(kSmem <= 227 << 10);
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= (1 + kConsumers) * ((64 << 10) / kThreads / 8 * 8));
  // A fill is announced when the next is under way, and a stage given back a step late.
  static_assert(kLead + 2 < kStages, "the first consumer could not get ahead of the second");
};

// Which value of a patch stands at a place along the depth of the product, both from 0 on: slice s of 16 in a stage takes
// bytes 4 s to 4 s + 3 of the 16 that each of four lanes has. Positions j and j + 1, from an even one on, share a register.
__host__ __device__ constexpr int value_at(int place) {
  const int slice = place % 64 / 16, j = place % 16;
  return place / 64 * 64 + j % 8 / 2 * 16 + slice * 4 + j % 2 * 2 + j / 8;
}

struct PatchProduct {
  Patches p;
  __nv_bfloat16* y;       // (lines, D) = bytes, less 128, times weights · kScale + shift + position
  const float* shift;     // (D)
  const float* position;  // (N, D), used in turn
  int N, D, steps;        // D: a multiple of 8
  __device__ __forceinline__ int tiles_down() const { return ceil_div(p.lines, PatchTile::kM); }
  __device__ __forceinline__ int tiles_across() const { return ceil_div(D, PatchTile::kN); }
  __device__ __forceinline__ TilePlace place(int tile) const { return place_of_tile(tile, tiles_down(), tiles_across()); }
  // Calls f(tile) for the tiles of this block.
  template <class F> __device__ __forceinline__ void each_tile(F&& f) const {
    const int count = tiles_down() * tiles_across();
    for (int tile = static_cast<int>(blockIdx.x); tile < count; tile += static_cast<int>(gridDim.x)) f(tile);
  }
};

// Shared memory of a block.
struct PatchStages {
  unsigned char* memory;
  uint64_t *full, *empty;
  __device__ __forceinline__ explicit PatchStages(unsigned char* smem)
      : memory(smem), full(reinterpret_cast<uint64_t*>(smem + PatchTile::kStages * PatchTile::kStageBytes)),
        empty(full + PatchTile::kStages) {}
  __device__ __forceinline__ unsigned char* bytes(int stage) const { return memory + stage * PatchTile::kStageBytes; }
  __device__ __forceinline__ unsigned char* weight(int stage) const { return bytes(stage) + PatchTile::kByteBytes; }
};

// ---- producer -----------------------------------------------------------------------------------

// 128 threads. Four lanes copy a row's 64 bytes, so that a warp asks for whole sectors of neighbouring patches.
__device__ __forceinline__ void fill_stages(const PatchProduct& g, const TensorMap* weight, const PatchStages& stages) {
  using Tile = PatchTile;
  constexpr int kApart = Tile::kFillers / 4, kRows = Tile::kM / kApart;  // rows of a thread
  constexpr uint32_t kNowhere = ~0u;
  const int thread = static_cast<int>(threadIdx.x), row0 = thread / 4, chunk = thread % 4 * 16;
  Ring<Tile::kStages> ring;
  uint64_t* unannounced = nullptr;
  const auto announce = [&] {
    __syncwarp();
    if (unannounced && thread % 32 == 0) mbarrier_arrive(unannounced);
  };
  g.each_tile([&](int tile) {
    const TilePlace place = g.place(tile);
    uint32_t corner[kRows];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int line = place.row * Tile::kM + i * kApart + row0;
      corner[i] = line < g.p.lines ? static_cast<uint32_t>((g.p.corner(line) - g.p.data) / 16) : kNowhere;
    }
    for (int step = 0; step < g.steps; ++step, ring.next()) {
      const int at = step * Tile::kDepth + chunk;
      const bool there = at < g.p.length;
      const uint8_t* const from = g.p.data + (there ? g.p.offset(at) : 0);
      unsigned char* const to = stages.bytes(ring.stage) + row0 * Tile::kDepth + chunk;
      uint64_t* const full = stages.full + ring.stage;
      mbarrier_wait(stages.empty + ring.stage, ring.parity ^ 1);
      if (thread == 0) {
        mbarrier_arrive_expect(full, Tile::kWeightBytes);
        load_operand<true, Tile::kN>(stages.weight(ring.stage), weight, place.column * Tile::kN, step * Tile::kDepth, full);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const bool valid = there && corner[i] != kNowhere;
        cp_async_16(to + i * kApart * Tile::kDepth, valid ? from + int64_t{corner[i]} * 16 : g.p.data, valid);
      }
      cp_async_commit();
      cp_async_wait<1>();
      announce();
      unannounced = full;
    }
  });
  cp_async_wait<0>();
  announce();
}

// ---- consumers ----------------------------------------------------------------------------------

// Bytes 0 and 2 of a word, each less 128: 128 + the low seven bits, and −128 where the eighth is set, else −256.
__device__ __forceinline__ uint32_t centred_bytes(uint32_t word) {
  return add_bf16x2((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) ^ 0xc380c380u);
}

// A of 32 values of 128 patches: slices, blocks of 64 rows, registers.
using Fragments = uint32_t[2][2][4];

// `rows`: the lane's 16 bytes of each of its rows, two in a block. kHalf says which eight are meant.
template <int kHalf> __device__ __forceinline__ void convert_bytes(Fragments& a, const uint4 (&rows)[4]) {
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const uint32_t words[2] = {kHalf ? rows[row].z : rows[row].x, kHalf ? rows[row].w : rows[row].y};
#pragma unroll
    for (int slice = 0; slice < 2; ++slice) {
      a[slice][row / 2][row % 2] = centred_bytes(words[slice]);
      a[slice][row / 2][row % 2 + 2] = centred_bytes(words[slice] >> 8);
    }
  }
}

// Half of a stage's products.
template <int kHalf>
__device__ __forceinline__ void issue_products(float (&d)[2][64], const Fragments& a, const unsigned char* weight,
                                               bool accumulate) {
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

constexpr int kLeadBarrier = 1;

__device__ __forceinline__ void store_products(const PatchProduct& g, const float (&d)[2][64], TilePlace place) {
  constexpr int kGroups = PatchTile::kN / 32;
  const int thread = static_cast<int>(threadIdx.x) - 128, lane = thread % 32;
#pragma unroll
  for (int part = 0; part < 4; ++part) {  // one of the lane's rows each
    const int block = part / 2, half = part % 2;
    const int row = place.row * PatchTile::kM + thread / 32 % 4 * 16 + thread / 128 * PatchTile::kConsumerRows +
                    block * 64 + half * 8 + lane / 4;
    const int column0 = place.column * PatchTile::kN + lane % 4 * 8;
    const float* const position = g.position + static_cast<int64_t>(row % g.N) * g.D;
    float where[kGroups][8];  // all of a row's are under way before the first is waited for
#pragma unroll
    for (int n = 0; n < kGroups; ++n) load_values(where[n], position + min(column0 + n * 32, g.D - 8));
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int column = column0 + n * 32;
      float pairs[4][2], v[8], shift[8];
      load_values(shift, g.shift + min(column, g.D - 8));
#pragma unroll
      for (int e = 0; e < 8; ++e) pairs[e / 2][e % 2] = d[block][n * 16 + e / 2 * 4 + half * 2 + e % 2];
      gather_columns(v, pairs);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] = v[e] * kScale + shift[e] + where[n][e];
      if (row < g.p.lines && column < g.D) store_values(g.y + static_cast<int64_t>(row) * g.D + column, v);
    }
  }
}

__device__ __forceinline__ void multiply_stages(const PatchProduct& g, const PatchStages& stages) {
  using Tile = PatchTile;
  const int thread = static_cast<int>(threadIdx.x) - 128, consumer = thread / 128, lane = thread % 32;
  // Where the lane's bytes lie in a stage.
  const int mine = (consumer * Tile::kConsumerRows + thread / 32 % 4 * 16 + lane / 4) * Tile::kDepth + lane % 4 * 16;
  // Of shorter tiles the first consumer could finish two while the second waits to begin one.
  const bool staggered = g.steps + Tile::kLead > Tile::kStages;
  Ring<Tile::kStages> ring;
  g.each_tile([&](int tile) {
    float d[2][64];
    Fragments low, high;
    const auto give_back = [&](int stage) {
      __syncwarp();
      if (lane == 0) mbarrier_arrive(stages.empty + stage);
    };
    if (staggered && consumer == 1) barrier_sync(kLeadBarrier, 2 * 128);
    int before = 0;  // the stage of the step before
    for (int step = 0; step < g.steps; ++step, ring.next()) {
      mbarrier_wait(stages.full + ring.stage, ring.parity);
      uint4 rows[4];
#pragma unroll
      for (int row = 0; row < 4; ++row)
        rows[row] = *reinterpret_cast<const uint4*>(stages.bytes(ring.stage) + mine +
                                                    (row / 2 * 64 + row % 2 * 8) * Tile::kDepth);
      convert_bytes<0>(low, rows);
      issue_products<0>(d, low, stages.weight(ring.stage), step > 0);
      wgmma_wait<1>();  // the step before is done: with its stage, and with `high`
      if (step > 0) give_back(before);
      convert_bytes<1>(high, rows);
      issue_products<1>(d, high, stages.weight(ring.stage), true);
      wgmma_wait<1>();  // with `low`
      before = ring.stage;
      if (staggered && consumer == 0 && step == Tile::kLead - 1) barrier_arrive(kLeadBarrier, 2 * 128);
    }
    wgmma_wait<0>();
    give_back(before);
    store_products(g, d, g.place(opaque(tile)));
  });
}

static __global__ void __launch_bounds__(PatchTile::kThreads, 1)
    patch_embed_sm90_kernel(const PatchProduct g, const __grid_constant__ TensorMap weight) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  using Tile = PatchTile;
  DYN_SMEM(smem);
  const PatchStages stages(smem);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(stages.full + i, Tile::kArrivals);
      mbarrier_init(stages.empty + i, 4 * Tile::kConsumers);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < Tile::kFillers) {
    give_registers<Tile::kProducerRegisters>();
    fill_stages(g, &weight, stages);
  } else {
    take_registers<Tile::kConsumerRegisters>();
    multiply_stages(g, stages);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

// Whether the kernel takes the patches and has enough tiles to be worth it. `aligned`: y and positions, in packs.
inline bool fits_sm90(const Patches& p, int64_t D, bool aligned) {
  if (!aligned || p.length == 0 || !p.in_chunks(16)) return false;
  if (ceil_div(p.lines, p.per_image) * p.image / 16 > UINT32_MAX) return false;
  const int64_t tiles = int64_t{ceil_div(p.lines, PatchTile::kM)} * ceil_div<int64_t>(D, PatchTile::kN);
  const int multiprocessors = hopper_multiprocessors();
  return multiprocessors > 0 && 2 * tiles >= multiprocessors;
}
// Length of the weight's lines as this kernel wants them: zeros up to a whole stage.
inline int64_t padded_depth(const Patches& p) { return ceil_div(p.length, PatchTile::kDepth) * int64_t{PatchTile::kDepth}; }

// `ordered` (D, padded_depth): the weight with its values as value_at() has them.
inline void embed_sm90(Stream& s, PatchProduct g, const __nv_bfloat16* ordered) {
  const int64_t depth = padded_depth(g.p);
  g.steps = static_cast<int>(depth / PatchTile::kDepth);
  const MatrixOperand<true> weight(ordered, g.D, depth, depth);
  const int64_t tiles = int64_t{ceil_div(g.p.lines, PatchTile::kM)} * ceil_div(g.D, PatchTile::kN);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, hopper_multiprocessors()));
  launch(patch_embed_sm90_kernel, blocks, PatchTile::kThreads, PatchTile::kSmem, s, g,
         tensor_map_of<true, PatchTile::kN>(weight));
}

}  // namespace siglip2::cuda::patches
