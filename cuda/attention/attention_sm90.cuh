// What the wgmma kernels of attention share (attention_sm90.cu, attention_sm90_backward.cu): tiles of a head in shared
// memory, who fills them, and the way of results to memory.
//
// Tiles are chunks of columns: 64, 96 and 128 columns are chunks of 128- or 64-byte rows, swizzled, by TMA from a map of
// (rows, heads, columns), which reads zeros beyond the columns of a head. 72 columns are chunks of 8, without swizzle: the
// one layout that is both a contraction of 80 and a width of 72; its rows of 16 bytes would be slow by TMA, so the
// producers' 128 threads copy them with cp.async.
#pragma once
#include "attention_mma.cuh"
#include "../gemm/gemm_sm90.cuh"
#include "../arch/wgmma_128.cuh"

namespace siglip2::cuda::attention {

constexpr int kWarpgroups = 2, kGroupRows = 64, kOwnRows = kWarpgroups * kGroupRows, kStages = 2;
constexpr int kConsumers = kWarpgroups * 128, kSm90Threads = kConsumers + 128;

// A tile of rows of one head in shared memory.
template <int kD, int kRows> struct HeadTile {
  static constexpr Swizzle kSwizzle = kD % 64 == 0   ? Swizzle::bytes128
                                      : kD % 32 == 0 ? Swizzle::bytes64
                                                     : Swizzle::none;
  static constexpr bool kTma = kSwizzle != Swizzle::none;
  static constexpr int kChunk = kD % 64 == 0 ? 64 : kD % 32 == 0 ? 32 : 8;  // columns
  static constexpr int kChunks = kDepth<kD> / kChunk,
                       kLine = kChunk * 2;  // bytes of a row of a chunk
  // Without a swizzle the chunks of a row would all begin in one bank.
  static constexpr int kChunkBytes = kRows * kLine + (kTma ? 0 : 16),
                       kBytes = kChunks * kChunkBytes;

  // As an operand that is contracted along its columns: 16 of them, of the rows from row0 (a multiple of 8).
  __device__ __forceinline__ static uint64_t columns(const unsigned char* tile, int row0,
                                                     int step) {
    const unsigned char* const at =
        tile + step * 16 / kChunk * kChunkBytes + row0 * kLine + step * 16 % kChunk * 2;
    return kTma ? matrix_descriptor<kSwizzle>(at, 0, 8 * kLine)
                : matrix_descriptor<kSwizzle>(at, kChunkBytes, 128);
  }
  // As an operand that is contracted along its rows: 16 of them, all columns.
  __device__ __forceinline__ static uint64_t rows(const unsigned char* tile, int step) {
    const unsigned char* const at = tile + step * 16 * kLine;
    return kTma ? matrix_descriptor<kSwizzle>(at, kChunkBytes, 8 * kLine)
                : matrix_descriptor<kSwizzle>(at, 128, kChunkBytes);
  }
};

template <int kD> constexpr bool kByTma = HeadTile<kD, kOwnRows>::kTma;
template <int kD> constexpr int kProducerRegisters = kByTma<kD> ? 40 : 56;
template <int kD> constexpr int kConsumerRegisters = kByTma<kD> ? 232 : 224;
constexpr int kAllRegisters =
    (1 + kWarpgroups) * ((64 << 10) / kSm90Threads / 8 * 8);  // of one thread of each warpgroup
static_assert(kProducerRegisters<64> + kWarpgroups * kConsumerRegisters<64> <= kAllRegisters &&
              kProducerRegisters<72> + kWarpgroups * kConsumerRegisters<72> <= kAllRegisters);

// Where fill number n of a ring goes, and the parity of its barriers.
__device__ __forceinline__ int stage_of(uint32_t n) { return static_cast<int>(n % kStages); }
__device__ __forceinline__ uint32_t parity_of(uint32_t n) { return n / kStages & 1; }

// ---- producers ----------------------------------------------------------------------------------

// The rows of one head of one sample, as either producer finds them.
struct HeadRows {
  const TensorMap* map;
  int h;
  int64_t row0;  // in the map
  const bf16* data;
  int64_t stride;
  int count, D;
};

// A fill is begin(), copies, end(); `full` is then complete when the copies have landed.
// One thread, by TMA: what lies behind the sample's rows comes too.
struct TmaProducer {
  static constexpr uint32_t kArrivals = 1;
  __device__ __forceinline__ void begin(uint64_t* full, uint32_t bytes) {
    mbarrier_arrive_expect(full, bytes);
  }
  template <class Part, int kRows> __device__ __forceinline__ void copy(unsigned char* to,
                                                                        const HeadRows& from,
                                                                        int begin, uint64_t* full) {
#pragma unroll
    for (int c = 0; c < Part::kChunks; ++c)
      tma_load_3d(to + c * Part::kChunkBytes, from.map, c * Part::kChunk, from.h,
                  static_cast<int>(from.row0) + begin, full);
  }
  __device__ __forceinline__ void end(uint64_t*) {}
  __device__ __forceinline__ void flush() {}
};

// 128 threads, by cp.async; zeros behind the sample's rows and columns. A fill is announced when the next one is under
// way, or by flush().
struct CopyProducer {
  static constexpr uint32_t kArrivals = 128;
  uint64_t* unannounced = nullptr;

  __device__ __forceinline__ void begin(uint64_t*, uint32_t) {}
  template <class Part, int kRows> __device__ __forceinline__ void copy(unsigned char* to,
                                                                        const HeadRows& from,
                                                                        int begin, uint64_t*) {
    static_assert(kRows * Part::kChunks % 128 == 0);
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kRows * Part::kChunks; i += 128) {
      const int r = i / Part::kChunks, c = i % Part::kChunks;
      const bool there = begin + r < from.count && c * 8 < from.D;
      cp_async_16(to + c * Part::kChunkBytes + r * 16,
                  there ? from.data + (begin + r) * from.stride + c * 8 : from.data, there);
    }
  }
  __device__ __forceinline__ void end(uint64_t* full) {
    cp_async_commit();
    announce<1>();
    unannounced = full;
  }
  __device__ __forceinline__ void flush() {
    announce<0>();
    unannounced = nullptr;
  }

 private:
  template <int kGroupsLeft> __device__ __forceinline__ void announce() {
    cp_async_wait<kGroupsLeft>();
    if (!unannounced) return;
    fence_proxy_async();  // wgmma reads what these threads wrote
    mbarrier_arrive(unannounced);
  }
};
template <int kD> using Producer = std::conditional_t<kByTma<kD>, TmaProducer, CopyProducer>;

// ---- consumers ----------------------------------------------------------------------------------

constexpr int kTurnBarrier = 1,
              kClearBarrier = 4;  // named barriers; a turn has one for each warpgroup

// Gives a stage back; all lanes of each consumer warp.
__device__ __forceinline__ void free_stage(uint64_t* empty) {
  __syncwarp();
  if (lane_id() == 0) mbarrier_arrive(empty);
}

// s (64, kN) = rows of a, from row0, times rows of b, from row1.
template <class A, class B, int kD, int kN>
__device__ __forceinline__ void issue_scores(float (&s)[kN / 2], const unsigned char* a, int row0,
                                             const unsigned char* b, int row1 = 0) {
#pragma unroll
  for (int step = 0; step < kSteps<kD>; ++step) {
    const uint64_t rows = A::columns(a, row0, step), columns = B::columns(b, row1, step);
    if constexpr (kN == 32) wgmma_m64n32k16<false, false>(s, rows, columns, step > 0);
    else if constexpr (kN == 64) wgmma_m64n64k16<false, false>(s, rows, columns, step > 0);
    else wgmma_m64n128k16<false, false>(s, rows, columns, step > 0);
  }
}
// o (64, kD) += weights (64, kN) · kN rows of b, from 16·step0.
template <class B, int kD, int kSteps16>
__device__ __forceinline__ void issue_values(float (&o)[kD / 2],
                                             const uint32_t (&weights)[kSteps16][4],
                                             const unsigned char* b, int step0 = 0) {
#pragma unroll
  for (int step = 0; step < kSteps16; ++step) {
    const uint64_t rows = B::rows(b, step0 + step);
    if constexpr (kD == 64) wgmma_m64n64k16<true>(o, weights[step], rows, true);
    else if constexpr (kD == 72) wgmma_m64n72k16<true>(o, weights[step], rows, true);
    else if constexpr (kD == 96) wgmma_m64n96k16<true>(o, weights[step], rows, true);
    else wgmma_m64n128k16<true>(o, weights[step], rows, true);
  }
}

// Rows from `from` on belong to somebody else: a NaN there would survive a weight of zero. All consumers.
template <class Part, int kRows>
__device__ __forceinline__ void clear_rows(unsigned char* tile, int from) {
  const int thread = static_cast<int>(threadIdx.x) - 128, packs = (kRows - from) * Part::kLine / 16;
  for (int i = thread; i < packs * Part::kChunks; i += kConsumers)
    *reinterpret_cast<uint4*>(tile + i / packs * Part::kChunkBytes + from * Part::kLine +
                              i % packs * 16) = {0, 0, 0, 0};
  fence_proxy_async();
}

// Of the lane's two rows, row and row + 8, the columns of o times factor[0] and factor[1], in packs of 16 bytes that four
// lanes put together. `to` is row 0 of the head; rows from `rows` and columns from D on are left out.
template <int kD>
__device__ __forceinline__ void store_head(bf16* to, int64_t stride, int row, int rows, int D,
                                           const float (&o)[kD / 2], const float (&factor)[2]) {
  const int quarter = lane_id() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool there = row + 8 * i < rows;
    bf16* const line = to + (row + 8 * i) * stride;
    constexpr int kWhole =
        kD / 32 * 4;  // 8-column groups that make up packs for each of four lanes
#pragma unroll
    for (int n = 0; n < kWhole; n += 4) {
      float mine[4][2], v[8];
#pragma unroll
      for (int g = 0; g < 4; ++g)
#pragma unroll
        for (int e = 0; e < 2; ++e) mine[g][e] = o[4 * (n + g) + 2 * i + e] * factor[i];
      gather_columns(v, mine);
      const int d = (n + quarter) * 8;
      if (there && d < D) Pack<bf16>::from(v).store(line + d);
    }
#pragma unroll
    for (int n = kWhole; n < kD / 8; ++n) {
      const uint32_t pair =
          pack_bf16(o[4 * n + 2 * i] * factor[i], o[4 * n + 2 * i + 1] * factor[i]);
      const int d = n * 8 + quarter * 2;
      if (there && d < D) *reinterpret_cast<uint32_t*>(line + d) = pair;
    }
  }
}

// Partial sums of dQ, in float: the lane's two rows times a factor.
template <int kD>
__device__ __forceinline__ void store_partial(float* to, int64_t stride, int row, int rows, int D,
                                              const float (&o)[kD / 2], float factor) {
#pragma unroll
  for (int i = 0; i < kD / 2; i += 2) {
    const int r = row + i / 2 % 2 * 8, d = i / 4 * 8 + lane_id() % 4 * 2;
    if (r < rows && d < D)
      *reinterpret_cast<float2*>(to + r * stride + d) = {o[i] * factor, o[i + 1] * factor};
  }
}

// ---- host side ----------------------------------------------------------------------------------

// Rows of one of the tensors, in boxes as Part's tiles have them.
template <class Part> TensorMap head_map(const Problem<bf16>& p, const bf16* data, int64_t rows,
                                         int64_t row, int box_rows) {
  if constexpr (Part::kTma)
    return tensor_map_of<3>(data, {p.D, p.H, rows}, {p.D, row},
                            {Part::kChunk, 1, static_cast<uint32_t>(box_rows)}, Part::kSwizzle);
  else return {};
}
inline unsigned persistent_blocks(unsigned items) {
  return std::min(items, static_cast<unsigned>(hopper_multiprocessors()));
}

}  // namespace siglip2::cuda::attention
