// Patch embedding on Hopper (sm_90a): the product of patches and the weight by wgmma, which reads the patches' bytes
// from registers, where they become bf16 (patch_bytes_sm90.cuh).
//
// Bound by the tensor cores and, as near, by what tiles read from the L2 cache. Up to 768 values (patches of 16 pixels)
// 128 lines of the weight stay in shared memory, 192 KiB, while a block walks over patches: only bytes are read. Its
// two consumer warpgroups take tiles of 128 × 128 by turns; one's results go to memory while the other multiplies.
//
// With more values both consumers share a tile of 256 patches × 128 outputs, and the weight comes through a ring with
// the bytes, 32 KiB for 64 deep: bytes are half of an operand, so a tile that is long along the patches moves least.
// There one consumer starts kLead steps behind the other, for the same reason.
#pragma once
#include "patch_bytes_sm90.cuh"

namespace siglip2::cuda::patches {

constexpr int kByteArrivals = kProducers / 32,
              kConsumerWarps = 4;  // by which a stage is filled; of one warpgroup

// ---- weight in shared memory --------------------------------------------------------------------

struct Resident {
  static constexpr int kSteps = 12, kStages = 4, kBytes = kGroupPatches * kDepth;
  static constexpr uint32_t kBehind = 2;  // a fill is announced when as many more are under way
  static constexpr size_t kSmem =
      size_t{kSteps} * kWeightBytes + kStages * kBytes + (kSteps + 2 * kStages) * sizeof(uint64_t);
  static_assert(kSmem <= 227 << 10 && kBehind < kStages);

  unsigned char *weight, *bytes;         // (kSteps), (kStages)
  uint64_t *weight_full, *full, *empty;  // likewise
  __device__ __forceinline__ explicit Resident(unsigned char* smem)
      : weight(smem),
        bytes(weight + kSteps * kWeightBytes),
        weight_full(reinterpret_cast<uint64_t*>(bytes + kStages * kBytes)),
        full(weight_full + kSteps),
        empty(full + kStages) {}
  __device__ __forceinline__ static int stage(uint32_t fill) {
    return static_cast<int>(fill % kStages);
  }
  __device__ __forceinline__ static uint32_t parity(uint32_t fill) { return fill / kStages & 1; }
};

// Blocks that share 128 outputs go through tiles of patches side by side, so that bytes come from memory once.
struct Walk {
  int column, first, apart, count;  // tiles
  __device__ __forceinline__ Walk(const PatchProduct& g, int block) {
    const int across = ceil_div(g.D, kOutputs);
    column = block % across;
    first = block / across;
    apart = static_cast<int>(gridDim.x) / across;
    count = ceil_div(ceil_div(g.p.lines, kGroupPatches) - first, apart);
  }
  __device__ __forceinline__ int row0(int i) const { return (first + i * apart) * kGroupPatches; }
};

__device__ __forceinline__ void fill_resident(const PatchProduct& g, const TensorMap* weight,
                                              const Resident& r) {
  const Walk walk(g, static_cast<int>(blockIdx.x));
  if (threadIdx.x == 0)
    for (int step = 0; step < g.steps; ++step) {
      mbarrier_arrive_expect(r.weight_full + step, kWeightBytes);
      load_operand<true, kOutputs>(r.weight + step * kWeightBytes, weight, walk.column * kOutputs,
                                   step * kDepth, r.weight_full + step);
    }
  ByteCopies<kGroupPatches> copies;
  uint32_t fill = 0;
  for (int i = 0; i < walk.count; ++i) {
    copies.set(g.p, walk.row0(i));
    for (int step = 0; step < g.steps; ++step, ++fill) {
      mbarrier_wait(r.empty + r.stage(fill), r.parity(fill) ^ 1);
      copies.copy(g.p, r.bytes + r.stage(fill) * Resident::kBytes, step);
      cp_async_wait<Resident::kBehind>();
      if (fill >= Resident::kBehind) announce_bytes(r.full + r.stage(fill - Resident::kBehind));
    }
  }
  cp_async_wait<0>();
  for (uint32_t last = fill - min(fill, Resident::kBehind); last < fill; ++last)
    announce_bytes(r.full + r.stage(last));
}

constexpr int kTurnBarrier = 1;  // and the next, one for each consumer

// A consumer begins when the other has seen the last fill before its own: the parity of a barrier tells one fill of a
// stage from the next, but not from the one after.
__device__ __forceinline__ void multiply_resident(const PatchProduct& g, const Resident& r) {
  const int block = static_cast<int>(blockIdx.x), count = Walk(g, block).count;
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  for (int i = consumer; i < count; i += 2) {
    float d[2][64];
    Fragments low, high;
    uint4 rows[4];
    const auto load = [&](int step) {  // and gives the stage back
      const auto fill = static_cast<uint32_t>(i * g.steps + step);
      mbarrier_wait(r.full + r.stage(fill), r.parity(fill));
      if (step + 1 == g.steps && i + 1 < count)
        barrier_arrive(kTurnBarrier + 1 - consumer, 2 * 128);
      load_bytes(rows, r.bytes + r.stage(fill) * Resident::kBytes);
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(r.empty + r.stage(fill));
      if (i == consumer) mbarrier_wait(r.weight_full + step, 0);
    };
    if (i > 0) barrier_sync(kTurnBarrier + consumer, 2 * 128);
    load(0);
    for (int step = 0; step < g.steps; ++step) {
      const unsigned char* const weight = r.weight + step * kWeightBytes;
      convert_bytes<0>(low, rows);
      issue_products<0>(d, low, weight, step > 0);
      wgmma_wait<1>();  // for `high`
      convert_bytes<1>(high, rows);
      issue_products<1>(d, high, weight, true);
      if (step + 1 < g.steps) load(step + 1);
      wgmma_wait<1>();  // for `low`
    }
    wgmma_wait<0>();
    const Walk walk(g, opaque(block));  // again, rather than kept in registers all the while
    store_products(g, d, walk.row0(i), walk.column * kOutputs);
  }
}

static __global__ void __launch_bounds__(kPatchThreads, 1)
    patch_embed_resident_kernel(const PatchProduct g, const __grid_constant__ TensorMap weight) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const Resident r(smem);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Resident::kSteps; ++i) mbarrier_init(r.weight_full + i, 1);
    for (int i = 0; i < Resident::kStages; ++i) {
      mbarrier_init(r.full + i, kByteArrivals);
      mbarrier_init(r.empty + i, kConsumerWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kProducers) {
    give_registers<kPatchProducerRegisters>();
    fill_resident(g, &weight, r);
  } else {
    take_registers<kPatchConsumerRegisters>();
    multiply_resident(g, r);
  }
#endif
}

// ---- weight through a ring ----------------------------------------------------------------------

struct Streamed {
  static constexpr int kRows = 2 * kGroupPatches, kStages = 7, kLead = 4;
  static constexpr int kBytes = kRows * kDepth, kStageBytes = kBytes + kWeightBytes;
  static constexpr size_t kSmem = size_t{kStages} * kStageBytes + 2 * kStages * sizeof(uint64_t);
  static_assert(kSmem <= 227 << 10);
  // A fill is announced when the next is under way, and a stage given back a step late.
  static_assert(kLead + 2 < kStages, "the first consumer could not get ahead of the second");
  static_assert(Resident::kSteps + kLead >= kStages,
                "the first consumer could lead twice while the second waits once");

  unsigned char* memory;
  uint64_t *full, *empty;
  __device__ __forceinline__ explicit Streamed(unsigned char* smem)
      : memory(smem),
        full(reinterpret_cast<uint64_t*>(smem + kStages * kStageBytes)),
        empty(full + kStages) {}
  __device__ __forceinline__ unsigned char* bytes(int stage) const {
    return memory + stage * kStageBytes;
  }
  __device__ __forceinline__ unsigned char* weight(int stage) const {
    return bytes(stage) + kBytes;
  }
};

// Calls f(tile) for the tiles of this block; corner_of_tile() is then its corner.
template <class F> __device__ __forceinline__ void each_tile(const PatchProduct& g, F&& f) {
  const int tiles = ceil_div(g.p.lines, Streamed::kRows) * ceil_div(g.D, kOutputs);
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x))
    f(tile);
}
__device__ __forceinline__ TilePlace corner_of_tile(const PatchProduct& g, int tile) {
  const TilePlace place =
      place_of_tile(tile, ceil_div(g.p.lines, Streamed::kRows), ceil_div(g.D, kOutputs));
  return {place.row * Streamed::kRows, place.column * kOutputs};
}

__device__ __forceinline__ void fill_streamed(const PatchProduct& g, const TensorMap* weight,
                                              const Streamed& r) {
  Ring<Streamed::kStages> ring;
  ByteCopies<Streamed::kRows> copies;
  uint64_t* unannounced = nullptr;
  each_tile(g, [&](int tile) {
    const TilePlace corner = corner_of_tile(g, tile);
    copies.set(g.p, corner.row);
    for (int step = 0; step < g.steps; ++step, ring.next()) {
      uint64_t* const full = r.full + ring.stage;
      mbarrier_wait(r.empty + ring.stage, ring.parity ^ 1);
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full, kWeightBytes);
        load_operand<true, kOutputs>(r.weight(ring.stage), weight, corner.column, step * kDepth,
                                     full);
      }
      copies.copy(g.p, r.bytes(ring.stage), step);
      cp_async_wait<1>();
      if (unannounced) announce_bytes(unannounced);
      unannounced = full;
    }
  });
  cp_async_wait<0>();
  if (unannounced) announce_bytes(unannounced);
}

constexpr int kLeadBarrier = 1;

__device__ __forceinline__ void multiply_streamed(const PatchProduct& g, const Streamed& r) {
  const int consumer = static_cast<int>(threadIdx.x) / 128 - 1;
  Ring<Streamed::kStages> ring;
  each_tile(g, [&](int tile) {
    float d[2][64];
    Fragments low, high;
    const auto give_back = [&](int stage) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) mbarrier_arrive(r.empty + stage);
    };
    if (consumer == 1) barrier_sync(kLeadBarrier, 2 * 128);
    int before = 0;  // the stage of the step before
    for (int step = 0; step < g.steps; ++step, ring.next()) {
      mbarrier_wait(r.full + ring.stage, ring.parity);
      uint4 rows[4];
      load_bytes(rows, r.bytes(ring.stage) + consumer * kGroupPatches * kDepth);
      convert_bytes<0>(low, rows);
      issue_products<0>(d, low, r.weight(ring.stage), step > 0);
      wgmma_wait<1>();  // the step before is done: with its stage, and with `high`
      if (step > 0) give_back(before);
      convert_bytes<1>(high, rows);
      issue_products<1>(d, high, r.weight(ring.stage), true);
      wgmma_wait<1>();  // with `low`
      before = ring.stage;
      if (consumer == 0 && step == Streamed::kLead - 1) barrier_arrive(kLeadBarrier, 2 * 128);
    }
    wgmma_wait<0>();
    give_back(before);
    const TilePlace corner = corner_of_tile(g, opaque(tile));  // again, too
    store_products(g, d, corner.row + consumer * kGroupPatches, corner.column);
  });
}

static __global__ void __launch_bounds__(kPatchThreads, 1)
    patch_embed_streamed_kernel(const PatchProduct g, const __grid_constant__ TensorMap weight) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const Streamed r(smem);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Streamed::kStages; ++i) {
      mbarrier_init(r.full + i, kByteArrivals + 1);  // and the weight
      mbarrier_init(r.empty + i, 2 * kConsumerWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < kProducers) {
    give_registers<kPatchProducerRegisters>();
    fill_streamed(g, &weight, r);
  } else {
    take_registers<kPatchConsumerRegisters>();
    multiply_streamed(g, r);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

// Whether 128 lines of the weight fit into shared memory.
inline bool weight_fits(const Patches& p) { return p.length <= Resident::kSteps * kDepth; }
// Whether these kernels take the patches and have enough tiles to be worth it. `aligned`: y and positions, in packs.
inline bool fits_sm90(const Patches& p, int64_t D, bool aligned) {
  if (!aligned || p.length == 0 || !p.in_chunks(16)) return false;
  if (ceil_div(p.lines, p.per_image) * p.image / 16 > UINT32_MAX) return false;
  const int64_t across = ceil_div<int64_t>(D, kOutputs),
                tiles = ceil_div(p.lines, kGroupPatches) * across;
  const int multiprocessors = hopper_multiprocessors();
  return multiprocessors > 0 && tiles >= multiprocessors &&
         (across <= multiprocessors || !weight_fits(p));
}
// Length of the weight's lines as the kernels want them: zeros up to a whole stage.
inline int64_t padded_depth(const Patches& p) {
  return ceil_div(p.length, kDepth) * int64_t{kDepth};
}

// `ordered` (D, padded_depth): the weight with its values as value_at() has them.
inline void embed_sm90(Stream& s, PatchProduct g, const __nv_bfloat16* ordered) {
  const int64_t depth = padded_depth(g.p);
  g.steps = static_cast<int>(depth / kDepth);
  const TensorMap weight =
      tensor_map_of<true, kOutputs>(MatrixOperand<true>(ordered, g.D, depth, depth));
  const int across = ceil_div(g.D, kOutputs), multiprocessors = hopper_multiprocessors();
  if (weight_fits(g.p)) {
    const int side_by_side = std::min(multiprocessors / across, ceil_div(g.p.lines, kGroupPatches));
    launch(patch_embed_resident_kernel, static_cast<unsigned>(across * side_by_side), kPatchThreads,
           Resident::kSmem, s, g, weight);
  } else {
    const int64_t tiles = int64_t{ceil_div(g.p.lines, Streamed::kRows)} * across;
    launch(patch_embed_streamed_kernel,
           static_cast<unsigned>(std::min<int64_t>(tiles, multiprocessors)), kPatchThreads,
           Streamed::kSmem, s, g, weight);
  }
}

}  // namespace siglip2::cuda::patches
