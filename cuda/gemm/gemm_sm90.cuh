// The tensor-core product on Hopper (sm_90a): the operands, splits and epilogues of gemm.cuh, by wgmma
// from a ring of stages that TMA fills. Bound by the tensor cores; the tile is what keeps L2 traffic
// and shared-memory reads below them.
//
// A block has three warpgroups: one thread of the first issues the copies, the other two multiply, with
// 128 accumulators a thread, hence the registers moved from producer to consumers. Stages are 64 deep and fill
// 192 KiB, so one block has an SM to itself; blocks are persistent, and the copies of the next tile run
// under the epilogue of this one. Two blocks that are neighbours down the matrix form a cluster: each fetches
// half of the columns' operand for both.
//
// There are two ways to share the work. HopperTile: 128 × 256 outputs, 64 rows for each consumer, which reads L2 least.
// HopperTurns: 128 × 128 for one consumer while the other is at its epilogue, where that takes long (LongEpilogue).
// Fills of the ring then belong to the consumers by turns. A consumer begins when the other has seen all of its own:
// barriers tell only even from odd rounds of the ring.
//
// Operands in shared memory have the 128-byte swizzle. One whose lines run along K is K-major: rows of
// 64 elements. One whose lines run along the rows is MN-major: blocks of 64 rows × 64 deep.
#pragma once
#include <algorithm>
#include <cstdlib>
#include "gemm.cuh"
#include "../arch/tensor_map.cuh"
#include "../arch/wgmma_128.cuh"
#include "../arch/wgmma_256.cuh"

namespace siglip2::cuda {

// kOwnM × kN outputs for a consumer.
template <int kOwnM_, int kN_, bool kTurns_> struct WgmmaTile {
  static constexpr bool kTurns = kTurns_;
  static constexpr int kConsumers = 2, kThreads = 128 * (1 + kConsumers);
  static constexpr int kOwnM = kOwnM_, kM = kTurns ? kOwnM : kConsumers * kOwnM, kN = kN_,
                       kDepth = 64;
  static constexpr int kWarps = kTurns ? 4 : 4 * kConsumers;  // that have outputs of a tile
  static constexpr int kABytes = kM * kDepth * 2, kBBytes = kN * kDepth * 2;
  static constexpr int kStageBytes = kABytes + kBBytes, kStages = (192 << 10) / kStageBytes;
  static constexpr size_t kSmem =
      size_t{kStages} * kStageBytes + (2 * kStages + kConsumers) * sizeof(uint64_t);
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(kSmem <= 227 << 10);
  static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <=
                (1 + kConsumers) * ((64 << 10) / kThreads / 8 * 8));
};
using HopperTile = WgmmaTile<64, 256, false>;
using HopperTurns = WgmmaTile<128, 128, true>;
template <class Tile> inline constexpr bool kIsWgmmaTile = false;
template <int kOwnM, int kN, bool kTurns>
inline constexpr bool kIsWgmmaTile<WgmmaTile<kOwnM, kN, kTurns>> = true;

constexpr int kMostCluster = 2;
constexpr int kOperandBlock = 64 * 64 * 2;  // bytes of 64 rows in a stage

// Lines of a matrix that one box has.
template <bool kDepthInLine, int kRows> constexpr uint32_t kBoxLines = kDepthInLine ? kRows : 64;

// kRows rows of an operand from row0, 64 deep from k0, for the blocks of the cluster that are bits of `blocks`; 0: for
// this one.
template <bool kDepthInLine, int kRows>
__device__ __forceinline__ void load_operand(unsigned char* to, const TensorMap* map, int row0,
                                             int k0, uint64_t* full, uint32_t blocks = 0) {
  const auto load = [&](unsigned char* box, int x, int y) {
    if (blocks) tma_load_2d_for(box, map, x, y, full, blocks);
    else tma_load_2d(box, map, x, y, full);
  };
  if constexpr (kDepthInLine) {
    load(to, k0, row0);
  } else {
#pragma unroll
    for (int block = 0; block < kRows / 64; ++block)
      load(to + block * kOperandBlock, row0 + block * 64, k0);
  }
}
// Descriptor of the 16-deep slice k of rows from row0, a multiple of 64.
template <bool kDepthInLine>
__device__ __forceinline__ uint64_t operand_slice(const unsigned char* tile, int row0, int k) {
  const unsigned char* const rows = tile + row0 / 64 * kOperandBlock;
  return kDepthInLine
             ? matrix_descriptor<Swizzle::bytes128>(rows + k * 32, 0, 1024)
             : matrix_descriptor<Swizzle::bytes128>(rows + k * 16 * 128, kOperandBlock, 1024);
}
// d (64, N) (+)= a (64, 16) b (16, N).
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void multiply(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_m64n256k16<kTransposeA, kTransposeB>(d, a, b, accumulate);
}
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  wgmma_m64n128k16<kTransposeA, kTransposeB>(d, a, b, accumulate);
}

// Tiles × splits, one after another: what the clusters share out among themselves. The tiles of a cluster's blocks lie
// one below the other and count as one here.
struct HopperWork {
  int tiles_down, tiles_across, cluster, split_depth, splits, K;
  __host__ __device__ int count() const { return tiles_down * tiles_across * splits; }
  __device__ __forceinline__ int tile(int work) const { return work % (tiles_down * tiles_across); }
  __device__ __forceinline__ int split(int work) const {
    return work / (tiles_down * tiles_across);
  }
  // `depth`: as much of K as anybody wants.
  __device__ __forceinline__ int steps(int work, int depth) const {
    return ceil_div(min(depth - split(work) * split_depth, split_depth), HopperTile::kDepth);
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
  __device__ __forceinline__ void skip(int fills) {
    const int end = stage + fills;
    stage = end % kStages;
    parity ^= static_cast<uint32_t>(end / kStages) & 1;
  }
};

template <class Tile, bool kAInLine, bool kBInLine, class E>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ TensorMap a_map,
                     const __grid_constant__ TensorMap b_map, int M, HopperWork jobs,
                     const E epilogue) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem + Tile::kStages * Tile::kStageBytes);
  uint64_t* const empty = full + Tile::kStages;
  uint64_t* const turns = empty + Tile::kStages;  // of each consumer
  const int thread = static_cast<int>(threadIdx.x), group = thread / 128, lane = thread % 32;
  const int cluster = jobs.cluster, rank = static_cast<int>(cluster_rank());
  const auto meet = [&] {
    if (cluster > 1) cluster_sync();
    else __syncthreads();
  };
  if (thread == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(full + i, 1);
      mbarrier_init(empty + i, static_cast<uint32_t>(cluster * Tile::kWarps));
    }
    for (int i = 0; i < Tile::kConsumers; ++i) mbarrier_init(turns + i, 4);
    fence_mbarrier_init();
  }
  meet();
  const int first = static_cast<int>(blockIdx.x) / cluster,
            clusters = static_cast<int>(gridDim.x) / cluster;
  Ring<Tile::kStages> ring;
  // Of the tile of this block. False: nobody wants those of the cluster.
  struct Corner {
    int row, column;
  };
  const auto find = [&](int work, Corner& corner) {
    const TilePlace place = place_of_tile(jobs.tile(work), jobs.tiles_down, jobs.tiles_across);
    corner = {(place.row * cluster + rank) * Tile::kM, place.column * Tile::kN};
    return !epilogue.skips(place.row * cluster * Tile::kM);
  };
  Corner corner;

  if (group == 0) {
    give_registers<Tile::kProducerRegisters>();
    for (int work = first; thread == 0 && work < jobs.count(); work += clusters) {
      if (!find(work, corner)) continue;
      const int k_first = jobs.split(work) * jobs.split_depth,
                steps = jobs.steps(work, epilogue.depth(jobs.K));
      for (int step = 0; step < steps; ++step, ring.next()) {
        unsigned char* const stage = smem + ring.stage * Tile::kStageBytes;
        const int k0 = k_first + step * Tile::kDepth;
        mbarrier_wait(empty + ring.stage, ring.parity ^ 1);  // in all blocks of the cluster
        mbarrier_arrive_expect(full + ring.stage, Tile::kStageBytes);
        load_operand<kAInLine, Tile::kM>(stage, &a_map, corner.row, k0, full + ring.stage);
        for (int half = rank; half < 2; half += cluster)
          load_operand<kBInLine, Tile::kN / 2>(stage + Tile::kABytes + half * (Tile::kBBytes / 2),
                                               &b_map, corner.column + half * (Tile::kN / 2), k0,
                                               full + ring.stage, cluster > 1 ? 3 : 0);
      }
    }
  } else {
    take_registers<Tile::kConsumerRegisters>();
    const int consumer = group - 1, warp = thread / 32 % 4;
    const int own_rows = Tile::kTurns ? 0 : consumer * Tile::kOwnM;  // in the tile
    const auto hand_back = [&](int stage) {
      __syncwarp();
      if (lane < cluster) mbarrier_arrive_in(empty + stage, static_cast<uint32_t>(lane));
    };
    int turn = 0;
    for (int work = first; work < jobs.count(); work += clusters) {
      const int steps = jobs.steps(work, epilogue.depth(jobs.K));
      if (!find(work, corner)) continue;
      if (Tile::kTurns) {
        const int round = turn / 2, whose = turn++ % 2;
        if (whose != consumer) {
          ring.skip(steps);
          continue;
        }
        mbarrier_wait(turns + consumer, static_cast<uint32_t>(round + consumer + 1) %
                                            2);  // the first has the first turn
      }
      float d[Tile::kOwnM / 64][Tile::kN / 2];
      int before = 0;  // the stage of the step before, given back when its products are done
      for (int step = 0; step < steps; ++step, ring.next()) {
        const unsigned char* const stage = smem + ring.stage * Tile::kStageBytes;
        mbarrier_wait(full + ring.stage, ring.parity);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < Tile::kDepth / 16; ++k)
#pragma unroll
          for (int i = 0; i < Tile::kOwnM / 64; ++i)
            multiply<!kAInLine, !kBInLine>(
                d[i], operand_slice<kAInLine>(stage, own_rows + i * 64, k),
                operand_slice<kBInLine>(stage + Tile::kABytes, 0, k), step > 0 || k > 0);
        wgmma_commit();
        if (step > 0) {
          wgmma_wait<1>();
          hand_back(before);
        }
        before = ring.stage;
      }
      if (Tile::kTurns && lane == 0) mbarrier_arrive(turns + (consumer ^ 1));
      wgmma_wait<0>();
      hand_back(before);

      E mine = epilogue;
      mine.begin(jobs.split(work));
#pragma unroll
      for (int i = 0; i < Tile::kOwnM / 64; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < Tile::kN / 8; j += 4) {
            const int row = corner.row + own_rows + i * 64 + warp * 16 + half * 8 + lane / 4;
            const int column = corner.column + j * 8 + lane % 4 * 8;
            float pairs[4][2], v[8];
#pragma unroll
            for (int g = 0; g < 4; ++g)
#pragma unroll
              for (int p = 0; p < 2; ++p) pairs[g][p] = d[i][(j + g) * 4 + half * 2 + p];
            gather_columns(v, pairs);
            if (row < M) mine(row, column, v);
          }
      const int tile = jobs.tile(work) * cluster + rank;
      mine.finish(tile * Tile::kWarps + (Tile::kTurns ? 0 : consumer * 4) + warp, lane);
    }
  }
  meet();  // a block may exit when the other has stopped writing to it
#endif
}

// ---- host side ----------------------------------------------------------------------------------

// Multiprocessors of the current device if it has wgmma, else 0.
#ifdef SIGLIP2_CUDA_HOST
inline int hopper_multiprocessors() {
  return cuda_host::config().wgmma ? 2 : 0;
}  // so that a block has several tiles
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
  return tensor_map_of<2>(m.data, {m.length, m.lines}, {m.stride},
                          {64, kBoxLines<kRows, kTileRows>}, Swizzle::bytes128);
}

// Blocks of a cluster: as many as share the tiles without much left over. SIGLIP2_CLUSTER=1 keeps blocks apart, to
// measure what sharing is worth.
inline int cluster_of(int tiles_down) {
  static const bool apart = [] {
    const char* const wish = std::getenv("SIGLIP2_CLUSTER");
    return wish && std::strcmp(wish, "1") == 0;
  }();
  return !apart && (tiles_down % kMostCluster == 0 || tiles_down >= 4 * kMostCluster) ? kMostCluster
                                                                                      : 1;
}

// Returns the number of parts that the epilogue's finish() sees of each split.
template <class Tile, bool kA, bool kB, class E>
int64_t launch_sm90(Stream& s, const MatrixOperand<kA>& a, const MatrixOperand<kB>& b, int M, int N,
                    int K, int split_depth, int splits, const E& epilogue) {
  const int cluster = cluster_of(ceil_div(M, Tile::kM));
  const HopperWork jobs{
      ceil_div(M, Tile::kM * cluster), ceil_div(N, Tile::kN), cluster, split_depth, splits, K};
  const int clusters = std::max(std::min(jobs.count(), hopper_multiprocessors() / cluster), 1);
  launch_clusters(gemm_sm90_kernel<Tile, kA, kB, E>, static_cast<unsigned>(cluster),
                  static_cast<unsigned>(clusters * cluster), Tile::kThreads, Tile::kSmem, s,
                  tensor_map_of<kA, Tile::kM>(a), tensor_map_of<kB, Tile::kN / 2>(b), M, jobs,
                  epilogue);
  return int64_t{jobs.tiles_down} * cluster * jobs.tiles_across * Tile::kWarps;
}

}  // namespace siglip2::cuda
