// The tensor-core product that the kernels share, for sm_80 and later: C (M, N) = A (M, K) · B (K, N)
// with bf16 operands and float accumulators, by mma.sync m16n8k16 fed from a ring of cp.async stages.
// What happens to the result is the epilogue's business: it is handed rows of eight neighbouring
// columns in registers, so bias, activation, a loss or a plain store cost no pass over memory.
//
// Bound by the tensor cores once a tile has some hundred steps' worth of operands in the L2 cache.
// 128 × 128 outputs for 8 warps of 64 × 32: 64 accumulators a thread leave 128 registers, so two
// blocks share an SM and one multiplies while the other stores. 32 deep × 4 stages are 64 KiB.
// Shapes may be ragged in every direction: 16-byte copies shorten at the edge and fill with zeros;
// operands whose address or stride forbids 16-byte reads are gathered element by element.
//
// Operands are read as they lie: `kDepthInLine` says whether a line of memory runs along K (A is
// (M, K), B is (N, K)) or along the rows (A is (K, M), B is (K, N)); ldmatrix transposes the latter.
#pragma once
#include "../common.cuh"

namespace siglip2::cuda {

// ---- operands -----------------------------------------------------------------------------------

// An operand has kDepthInLine and fetches chunks of 8 elements of a line, with zeros where there is
// nothing: begin() starts a copy into shared memory, or reads what end() then converts and puts
// there after the latency has passed.
//
// This one is a bf16 matrix, copied as it is.
template <bool kDepthInLine_> struct MatrixOperand {
  static constexpr bool kDepthInLine = kDepthInLine_;
  struct Held {};
  const __nv_bfloat16* data;
  int lines, length;  // of the whole matrix
  int64_t stride;     // elements from line to line
  bool aligned;       // every chunk starts at a multiple of 16 bytes

  MatrixOperand(const void* p, int64_t line_count, int64_t line_length, int64_t line_stride)
      : data(static_cast<const __nv_bfloat16*>(p)),
        lines(static_cast<int>(line_count)),
        length(static_cast<int>(line_length)),
        stride(line_stride),
        aligned(aligned_16(data) && line_stride % 8 == 0) {}

  __device__ __forceinline__ Held begin(void* chunk, int line, int at) const {
    const int count = line < lines ? max(min(length - at, 8), 0) : 0;
    const __nv_bfloat16* const from = count ? data + line * stride + at : data;
    if (aligned) {
      cp_async_16_of(chunk, from, 2 * count);
    } else {
      __nv_bfloat16 elements[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        elements[i] = i < count ? from[i] : static_cast<__nv_bfloat16>(0.0f);
      memcpy(chunk, elements, 16);
    }
    return {};
  }
  __device__ __forceinline__ static void end(void*, Held) {}
};

// ---- tiles --------------------------------------------------------------------------------------

// kM × kN outputs of a block; each warp has kWarpM × kWarpN of them.
template <int kM_, int kN_, int kWarpM_, int kWarpN_, int kBlocks_> struct MmaTile {
  static constexpr int kM = kM_, kN = kN_, kDepth = 32, kStages = 4;
  static constexpr int kWarpM = kWarpM_, kWarpN = kWarpN_;
  static constexpr int kWarpsAcross = kN / kWarpN, kWarps = kM / kWarpM * kWarpsAcross;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocks = kBlocks_;  // that are to share an SM
  static constexpr size_t kStageBytes = size_t{kM + kN} * kDepth * 2;
  static constexpr size_t kSmem = kStages * kStageBytes;
  static_assert(kSmem <= 99 << 10, "more than sm_86 and sm_89 have");
  static_assert(kWarpM % 16 == 0 && kWarpN % 32 == 0, "the epilogue takes 32 columns at a time");
};
using LargeTile = MmaTile<128, 128, 64, 32, 2>;
using SmallTile = MmaTile<64, 64, 32, 32, 3>;  // where 128 × 128 would leave SMs without a tile

// Which tile a block of a one-dimensional grid computes. Tiles go down in groups of eight rows, so
// that blocks running at the same time share operands in the L2 cache.
struct TilePlace {
  int row, column;
};
__device__ __forceinline__ TilePlace place_of_tile(int tile, int down, int across) {
  constexpr int kGroup = 8;
  const int group = tile / (kGroup * across), first = group * kGroup;
  const int height = min(down - first, kGroup), within = tile - group * kGroup * across;
  return {first + within % height, within / height};
}

// A tile of an operand in shared memory: lines of kLine elements, in chunks of 16 bytes that are
// permuted within 128 bytes so that ldmatrix meets no bank twice.
template <int kLine> __device__ __forceinline__ int chunk_offset(int line, int chunk) {
  constexpr int kChunks = kLine / 8;
  static_assert(kChunks == 4 || kChunks % 8 == 0);
  const int moved = kChunks == 4 ? chunk ^ (line / 2 % 4) : chunk ^ line % 8;
  return (line * kChunks + moved) * 16;
}

// One operand's part of a stage: kRows rows, kDepth deep.
template <class Operand, int kRows, int kDepth, int kThreads> struct OperandTile {
  static constexpr int kLines = Operand::kDepthInLine ? kRows : kDepth;
  static constexpr int kLine = Operand::kDepthInLine ? kDepth : kRows;
  static constexpr int kEach = kLines * kLine / 8 / kThreads;  // chunks for each thread
  static_assert(kEach * kThreads * 8 == kLines * kLine);

  template <class F> __device__ __forceinline__ static void each_chunk(int row0, int k0, F&& f) {
    const int line0 = Operand::kDepthInLine ? row0 : k0, at0 = Operand::kDepthInLine ? k0 : row0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int c = i * kThreads + static_cast<int>(threadIdx.x);
      const int line = c / (kLine / 8), chunk = c % (kLine / 8);
      f(i, chunk_offset<kLine>(line, chunk), line0 + line, at0 + chunk * 8);
    }
  }
};

// Fetches one operand for a stage: begin() before the products of another stage, end() after them.
template <class Operand, class Part> struct Fetch {
  typename Operand::Held held[Part::kEach];

  __device__ __forceinline__ void begin(const Operand& operand, unsigned char* stage, int row0,
                                        int k0) {
    Part::each_chunk(row0, k0, [&](int i, int offset, int line, int at) {
      held[i] = operand.begin(stage + offset, line, at);
    });
  }
  __device__ __forceinline__ void end(unsigned char* stage) {
    Part::each_chunk(0, 0,
                     [&](int i, int offset, int, int) { Operand::end(stage + offset, held[i]); });
  }
};

// Fragments of the 16-deep slice `k` of a tile, for mma: A 16 rows, B 16 columns (two n-tiles).
template <class Operand, int kLine>
__device__ __forceinline__ void load_a(uint32_t (&f)[4], const unsigned char* tile, int row,
                                       int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (Operand::kDepthInLine) {
    const int line = row + lane % 16, chunk = k * 2 + lane / 16;
    ldmatrix_x4(f, tile + chunk_offset<kLine>(line, chunk));
  } else {
    const int line = k * 16 + lane / 16 * 8 + lane % 8, chunk = row / 8 + lane / 8 % 2;
    ldmatrix_x4_transposed(f, tile + chunk_offset<kLine>(line, chunk));
  }
}
template <class Operand, int kLine>
__device__ __forceinline__ void load_b(uint32_t (&f)[4], const unsigned char* tile, int column,
                                       int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (Operand::kDepthInLine) {
    const int line = column + lane / 16 * 8 + lane % 8, chunk = k * 2 + lane / 8 % 2;
    ldmatrix_x4(f, tile + chunk_offset<kLine>(line, chunk));
  } else {
    const int line = k * 16 + lane % 16, chunk = column / 8 + lane / 16;
    ldmatrix_x4_transposed(f, tile + chunk_offset<kLine>(line, chunk));
  }
}

// ---- epilogue -----------------------------------------------------------------------------------

// An epilogue is a value of which each thread has a copy:
//   skips(row0) whether the tile whose first row this is, is wanted by nobody: then nothing is done for it,
//   depth(K)    as much of K as anybody wants, the same for all tiles; if less than K, then without splits,
//   begin(split) before the first output of a tile,
//   operator()(row, column, v) with v[kWidth] the products at (row, column …), a multiple of kWidth;
//     called for rows < M, and what lies behind N, perhaps all of v, is to be ignored; lanes that share 32 columns of a
//     row, 32 / kWidth neighbours, call together,
//   finish(part, lane) after the last one; parts number all warps of all tiles.
// Epilogues derive from this one, which wants all tiles and has nothing to do at either end, or, if they take long beside
// a product, from the other: on Hopper they then run under the product of another tile.
struct Epilogue {
  __device__ __forceinline__ bool skips(int) const { return false; }
  __device__ __forceinline__ int depth(int K) const { return K; }
  __device__ __forceinline__ void begin(int) {}
  __device__ __forceinline__ void finish(int, int) {}
};
struct LongEpilogue : Epilogue {};

// Accumulators of mma and wgmma lie so that lane q of four has columns 2q and 2q + 1 of each group
// of eight. After the exchange it has all eight columns of group q.
__device__ __forceinline__ void gather_columns(float (&out)[8], const float (&in)[4][2]) {
  const int lane = static_cast<int>(threadIdx.x) % 4;
  const bool odd = lane & 1, upper = lane & 2;
  float half[4]
            [2];  // groups of the lane's parity: half[2 h + s], h-th of them, from lane s of a pair
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const float keep = odd ? in[2 * h + 1][p] : in[2 * h][p];
      const float give = odd ? in[2 * h][p] : in[2 * h + 1][p];
      const float got = __shfl_xor_sync(kAllLanes, give, 1);
      half[2 * h][p] = odd ? got : keep;
      half[2 * h + 1][p] = odd ? keep : got;
    }
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const float keep = upper ? half[2 + s][p] : half[s][p];
      const float give = upper ? half[s][p] : half[2 + s][p];
      const float got = __shfl_xor_sync(kAllLanes, give, 2);
      out[2 * s + p] = upper ? got : keep;
      out[4 + 2 * s + p] = upper ? keep : got;
    }
}

// ---- kernel -------------------------------------------------------------------------------------

// Blocks (tiles, 1, splits); a split has `split_depth` of K, a multiple of the stage's depth.
template <class Tile, class A, class B, class E>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    gemm_kernel(const A a, const B b, int M, int N, int K, int split_depth, E epilogue) {
  DYN_SMEM(smem);
  using PartA = OperandTile<A, Tile::kM, Tile::kDepth, Tile::kThreads>;
  using PartB = OperandTile<B, Tile::kN, Tile::kDepth, Tile::kThreads>;
  constexpr int kABytes = Tile::kM * Tile::kDepth * 2;
  constexpr int kDown = Tile::kWarpM / 16, kAcross = Tile::kWarpN / 8, kStages = Tile::kStages;
  const int tiles_across = ceil_div(N, Tile::kN), tile = static_cast<int>(blockIdx.x);
  const TilePlace place = place_of_tile(tile, ceil_div(M, Tile::kM), tiles_across);
  const int m0 = place.row * Tile::kM, n0 = place.column * Tile::kN;
  if (epilogue.skips(m0)) return;  // the whole block
  const int k_first = static_cast<int>(blockIdx.z) * split_depth;
  const int steps = ceil_div(min(epilogue.depth(K) - k_first, split_depth), Tile::kDepth);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_m = warp / Tile::kWarpsAcross * Tile::kWarpM;
  const int warp_n = warp % Tile::kWarpsAcross * Tile::kWarpN;

  Fetch<A, PartA> fetch_a;
  Fetch<B, PartB> fetch_b;
  const auto stage_of = [&](int step) { return smem + step % kStages * Tile::kStageBytes; };
  const auto begin = [&](int step) {
    if (step < steps) {
      const int k0 = k_first + step * Tile::kDepth;
      fetch_a.begin(a, stage_of(step), m0, k0);
      fetch_b.begin(b, stage_of(step) + kABytes, n0, k0);
    }
    cp_async_commit();
  };
  const auto end = [&](int step) {
    if (step >= steps) return;
    fetch_a.end(stage_of(step));
    fetch_b.end(stage_of(step) + kABytes);
  };

  float c[kDown][kAcross][4];
#pragma unroll
  for (int i = 0; i < kDown; ++i)
#pragma unroll
    for (int j = 0; j < kAcross; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[i][j][e] = 0;

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    begin(step);
    end(step);
  }
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the stage is there for all, and nobody reads the one before any more
    begin(step + kStages - 1);
    const unsigned char* const a_tile = stage_of(step);
    const unsigned char* const b_tile = a_tile + kABytes;
#pragma unroll
    for (int k = 0; k < Tile::kDepth / 16; ++k) {
      uint32_t fa[kDown][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) load_a<A, PartA::kLine>(fa[i], a_tile, warp_m + i * 16, k);
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t fb[4];
        load_b<B, PartB::kLine>(fb, b_tile, warp_n + j * 8, k);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          mma_m16n8k16(c[i][j], fa[i], fb[0], fb[1]);
          mma_m16n8k16(c[i][j + 1], fa[i], fb[2], fb[3]);
        }
      }
    }
    end(step + kStages - 1);
  }
  cp_async_wait<0>();

  epilogue.begin(static_cast<int>(blockIdx.z));
#pragma unroll
  for (int i = 0; i < kDown; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < kAcross; j += 4) {
        const int row = m0 + warp_m + i * 16 + half * 8 + lane / 4;
        const int column = n0 + warp_n + j * 8 + lane % 4 * 8;
        float mine[4][2], v[8];
#pragma unroll
        for (int g = 0; g < 4; ++g)
#pragma unroll
          for (int p = 0; p < 2; ++p) mine[g][p] = c[i][j + g][2 * half + p];
        gather_columns(v, mine);
        if (row < M) epilogue(row, column, v);
      }
  epilogue.finish(tile * Tile::kWarps + warp, lane);
}

}  // namespace siglip2::cuda
