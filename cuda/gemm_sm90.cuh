// The tensor-core product on Hopper (sm_90a): the operands, splits and epilogues of gemm.cuh, by wgmma
// from a ring of stages that TMA fills. Bound by the tensor cores; the tile is what keeps L2 traffic
// and shared-memory reads below them.
//
// 128 × 256 outputs for a block of three warpgroups: one thread of the first issues the copies, the
// other two multiply 64 × 256 each, which takes 128 accumulators a thread, hence the registers moved
// from producer to consumers. 64 deep × 4 stages are 192 KiB, so one block has an SM to itself; blocks
// are persistent, and the copies of the next tile run under the epilogue of this one.
//
// Operands in shared memory have the 128-byte swizzle. One whose lines run along K is K-major: rows of
// 64 elements. One whose lines run along the rows is MN-major: blocks of 64 rows × 64 deep.
#pragma once
#include <algorithm>
#include "gemm.cuh"
#include "tensor_map.cuh"
#include "wgmma_256.cuh"

namespace siglip2::cuda {

struct HopperTile {
  static constexpr int kM = 128, kN = 256, kDepth = 64, kStages = 4;
  static constexpr int kConsumers = 2, kWarps = 4 * kConsumers;  // that have outputs
  static constexpr int kThreads = 128 * (1 + kConsumers);
  static constexpr int kBlockBytes = 64 * 64 * 2;
  static constexpr int kABytes = kM * kDepth * 2, kBBytes = kN * kDepth * 2;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr size_t kSmem = size_t{kStages} * kStageBytes + 2 * kStages * sizeof(uint64_t);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kSmem <= 227 << 10);
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= (1 + kConsumers) * ((64 << 10) / kThreads / 8 * 8));
};

// Lines of a matrix that one box has.
template <bool kDepthInLine, int kRows> constexpr uint32_t kBoxLines = kDepthInLine ? kRows : 64;

// One operand's part of a stage, kRows rows from row0 and 64 deep from k0.
template <bool kDepthInLine, int kRows>
__device__ __forceinline__ void load_operand(unsigned char* to, const TensorMap* map, int row0,
                                             int k0, uint64_t* full) {
  if constexpr (kDepthInLine) {
    tma_load_2d(to, map, k0, row0, full);
  } else {
#pragma unroll
    for (int block = 0; block < kRows / 64; ++block)
      tma_load_2d(to + block * HopperTile::kBlockBytes, map, row0 + block * 64, k0, full);
  }
}
// Descriptor of the 16-deep slice k of rows from row0, a multiple of 64.
template <bool kDepthInLine>
__device__ __forceinline__ uint64_t operand_slice(const unsigned char* tile, int row0, int k) {
  constexpr int kBlock = HopperTile::kBlockBytes;
  const unsigned char* const rows = tile + row0 / 64 * kBlock;
  return kDepthInLine ? matrix_descriptor<Swizzle::bytes128>(rows + k * 32, 0, 1024)
                      : matrix_descriptor<Swizzle::bytes128>(rows + k * 16 * 128, kBlock, 1024);
}

// Tiles × splits, one after another: the part of the work of one block.
struct HopperWork {
  int tiles_down, tiles_across, split_depth, splits, K;
  __device__ __forceinline__ int count() const { return tiles_down * tiles_across * splits; }
  __device__ __forceinline__ int tile(int work) const { return work % (tiles_down * tiles_across); }
  __device__ __forceinline__ int split(int work) const { return work / (tiles_down * tiles_across); }
  __device__ __forceinline__ int steps(int work) const {
    return ceil_div(min(K - split(work) * split_depth, split_depth), HopperTile::kDepth);
  }
};

// Where a fill of the ring goes, and the parity of its barriers.
template <int kStages> struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <bool kAInLine, bool kBInLine, class E>
__global__ void __launch_bounds__(HopperTile::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ TensorMap a_map,
                     const __grid_constant__ TensorMap b_map, int M, int N, HopperWork jobs,
                     const E epilogue) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  using Tile = HopperTile;
  DYN_SMEM(smem);
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem + Tile::kStages * Tile::kStageBytes);
  uint64_t* const empty = full + Tile::kStages;
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, Tile::kWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  Ring<Tile::kStages> ring;

  if (group == 0) {
    give_registers<Tile::kProducerRegisters>();
    if (thread != 0) return;
    for (int work = first; work < jobs.count(); work += blocks) {
      const TilePlace place = place_of_tile(jobs.tile(work), jobs.tiles_down, jobs.tiles_across);
      if (epilogue.skips(place.row * Tile::kM)) continue;
      const int k_first = jobs.split(work) * jobs.split_depth, steps = jobs.steps(work);
      for (int step = 0; step < steps; ++step, ring.next()) {
        unsigned char* const stage = smem + ring.stage * Tile::kStageBytes;
        const int k0 = k_first + step * Tile::kDepth;
        mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
        mbarrier_arrive_expect(full + ring.stage, Tile::kStageBytes);
        load_operand<kAInLine, Tile::kM>(stage, &a_map, place.row * Tile::kM, k0, full + ring.stage);
        load_operand<kBInLine, Tile::kN>(stage + Tile::kABytes, &b_map, place.column * Tile::kN, k0,
                                         full + ring.stage);
      }
    }
    return;
  }

  take_registers<Tile::kConsumerRegisters>();
  const int consumer = group - 1, warp = thread / 32 - 4;
  for (int work = first; work < jobs.count(); work += blocks) {
    const int tile = jobs.tile(work), steps = jobs.steps(work);
    const TilePlace place = place_of_tile(tile, jobs.tiles_down, jobs.tiles_across);
    if (epilogue.skips(place.row * Tile::kM)) continue;
    float d[128];
    int before = 0;  // the stage of the step before, given back when its products are done
    for (int step = 0; step < steps; ++step, ring.next()) {
      const unsigned char* const stage = smem + ring.stage * Tile::kStageBytes;
      mbarrier_wait(full + ring.stage, ring.parity);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < Tile::kDepth / 16; ++k)
        wgmma_m64n256k16<!kAInLine, !kBInLine>(
            d, operand_slice<kAInLine>(stage, consumer * 64, k),
            operand_slice<kBInLine>(stage + Tile::kABytes, 0, k), step > 0 || k > 0);
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty + before);
      }
      before = ring.stage;
    }
    wgmma_wait<0>();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty + before);

    E mine = epilogue;
    mine.begin(jobs.split(work));
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < Tile::kN / 8; j += 4) {
        const int row = place.row * Tile::kM + warp * 16 + half * 8 + lane / 4;
        const int column = place.column * Tile::kN + j * 8 + lane % 4 * 8;
        float pairs[4][2], v[8];
#pragma unroll
        for (int g = 0; g < 4; ++g)
#pragma unroll
          for (int p = 0; p < 2; ++p) pairs[g][p] = d[(j + g) * 4 + half * 2 + p];
        gather_columns(v, pairs);
        if (row < M && column < N) mine(row, column, v);
      }
    mine.finish(tile * Tile::kWarps + warp, lane);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

// Multiprocessors of the current device if it has wgmma, else 0.
#ifdef SIGLIP2_CUDA_HOST
inline int hopper_multiprocessors() { return cuda_host::config().wgmma ? 2 : 0; }  // so that a block has several tiles
#else
inline int hopper_multiprocessors() {
  int device = 0, major = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  return major == 9 ? count : 0;
}
#endif

template <bool kRows, int kTileRows> TensorMap tensor_map_of(const MatrixOperand<kRows>& m) {
  return tensor_map_of<2>(m.data, {m.length, m.lines}, {m.stride}, {64, kBoxLines<kRows, kTileRows>},
                          Swizzle::bytes128);
}

template <bool kA, bool kB, class E>
void launch_sm90(Stream& s, const MatrixOperand<kA>& a, const MatrixOperand<kB>& b, int M, int N,
                 int K, int split_depth, int splits, const E& epilogue) {
  using Tile = HopperTile;
  const HopperWork jobs{ceil_div(M, Tile::kM), ceil_div(N, Tile::kN), split_depth, splits, K};
  const int tiles = jobs.tiles_down * jobs.tiles_across * splits;
  const int blocks = std::min(tiles, hopper_multiprocessors());
  launch(gemm_sm90_kernel<kA, kB, E>, static_cast<unsigned>(std::max(blocks, 1)), Tile::kThreads, Tile::kSmem, s,
         tensor_map_of<kA, Tile::kM>(a), tensor_map_of<kB, Tile::kN>(b), M, N, jobs, epilogue);
}

}  // namespace siglip2::cuda
