// Stable radix sort of (id, row) pairs by id, rows ascending within an id: what a scatter-add needs to have one owner
// and one order for every row of its table. Eight bits a pass, three kernels a pass: how many keys of each digit every
// tile has; where each (digit, tile) begins; the keys to their places. Within a tile a warp takes consecutive keys, so
// the order of equal digits is that of the input.
#pragma once
#include "common.cuh"

namespace siglip2::cuda {

namespace sort_ids_detail {

constexpr int kDigits = 256;
constexpr unsigned kSortThreads = 256, kSortWarps = kSortThreads / kWarp;
static_assert(kSortThreads == kDigits);  // one thread for each digit
constexpr int64_t kWarpKeys = 256, kTileKeys = kWarpKeys * kSortWarps;
constexpr unsigned kScanThreads = 1024;

// An id outside the table sorts behind all others, as id V; it is noted once.
struct Ids {
  const int32_t* ids;  // (R)
  int64_t V;
  __device__ __forceinline__ uint32_t at(int64_t r) const {
    const int32_t id = ids[r];
    return id < 0 || id >= V ? static_cast<uint32_t>(V) : static_cast<uint32_t>(id);
  }
};

template <class Keys> __global__ void __launch_bounds__(kSortThreads)
    sort_ids_count_kernel(int32_t* counts,  // (256, tiles)
                          Keys keys, int64_t R, int shift) {
  DYN_SMEM(smem);
  int32_t* const tile_counts = reinterpret_cast<int32_t*>(smem);  // (256)
  tile_counts[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTileKeys;
  for (int64_t r = begin + threadIdx.x; r < begin + kTileKeys && r < R; r += kSortThreads)
    atomicAdd(&tile_counts[keys.at(r) >> shift & 0xff],
              1);  // whole numbers: their order does not matter
  __syncthreads();
  counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = tile_counts[threadIdx.x];
}

// counts ← sums of all counts before each; one block.
__global__ void __launch_bounds__(kScanThreads) sort_ids_scan_kernel(int32_t* counts,  // (n)
                                                                     int64_t n) {
  DYN_SMEM(smem);
  int32_t* const warp_sums = reinterpret_cast<int32_t*>(smem);  // (32)
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t share = (n + kScanThreads - 1) / kScanThreads, begin = threadIdx.x * share;
  const int64_t end = begin + share < n ? begin + share : n;
  int32_t own = 0;
  for (int64_t i = begin; i < end; ++i) own += counts[i];
  int32_t sum = own;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, sum, d);
    if (static_cast<int>(lane) >= d) sum += other;
  }
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  int32_t before = sum - own;
  for (unsigned w = 0; w < warp; ++w) before += warp_sums[w];
  for (int64_t i = begin; i < end; ++i) {
    const int32_t count = counts[i];
    counts[i] = before;
    before += count;
  }
}

// Keys of one pass after the first.
struct Sorted {
  const uint32_t* keys;
  __device__ __forceinline__ uint32_t at(int64_t r) const { return keys[r]; }
};

template <class Keys> __global__ void __launch_bounds__(kSortThreads)
    sort_ids_place_kernel(uint32_t* out_keys,      // (R)
                          int32_t* out_rows,       // (R)
                          const int32_t* offsets,  // (256, tiles)
                          Keys keys,
                          const int32_t* rows,  // (R) or null: r itself
                          int64_t R, int shift) {
  DYN_SMEM(smem);
  int32_t* const places =
      reinterpret_cast<int32_t*>(smem);  // (warps, 256): first counts, then places
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int32_t* const mine = places + warp * kDigits;
  for (unsigned i = threadIdx.x; i < kSortWarps * kDigits; i += kSortThreads) places[i] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kTileKeys + warp * kWarpKeys;
  for (int64_t r = begin + lane; r < begin + kWarpKeys && r < R; r += kWarp)
    atomicAdd(&mine[keys.at(r) >> shift & 0xff], 1);
  __syncthreads();
  int32_t place = offsets[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x];
  for (unsigned w = 0; w < kSortWarps; ++w) {
    const int32_t count = places[w * kDigits + threadIdx.x];
    places[w * kDigits + threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
  for (int64_t first = begin; first < begin + kWarpKeys; first += kWarp) {
    const int64_t r = first + lane;
    const bool there = r < R;
    const uint32_t key = there ? keys.at(r) : 0, digit = key >> shift & 0xff;
    uint32_t same = __ballot_sync(kAllLanes, there);  // lanes with this lane's digit
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t set = __ballot_sync(kAllLanes, digit >> bit & 1);
      same &= digit >> bit & 1 ? set : ~set;
    }
    const int before = __popc(same & ((1u << lane) - 1));
    if (there) {
      const int32_t to = mine[digit] + before;
      out_keys[to] = key;
      out_rows[to] = rows ? rows[r] : static_cast<int32_t>(r);
    }
    __syncwarp();
    if (there && before == 0) mine[digit] += __popc(same);
    __syncwarp();
  }
}

}  // namespace sort_ids_detail

// Sorts R < 2^31 ids of a table of V rows. Afterwards keys holds them ascending, rows where each stood, ids outside the
// table last with key V.
struct SortedIds {
  SortedIds(Stream& s, const int32_t* ids, int64_t R, int64_t V)
      : keys(s, R), rows(s, R), other_keys_(s, R), other_rows_(s, R) {
    using namespace sort_ids_detail;
    const int64_t tiles = ceil_div<int64_t>(R, kTileKeys);
    Scratch<int32_t> counts(s, kDigits * tiles);
    int passes = 1;
    while (passes < 4 && V >> (8 * passes)) ++passes;
    const auto pass = [&](auto from, const int32_t* from_rows, uint32_t* to, int32_t* to_rows,
                          int shift) {
      using Keys = decltype(from);
      const unsigned grid = static_cast<unsigned>(tiles);
      launch(sort_ids_count_kernel<Keys>, grid, kSortThreads, kDigits * sizeof(int32_t), s,
             counts.data(), from, R, shift);
      launch(sort_ids_scan_kernel, 1, kScanThreads, kWarp * sizeof(int32_t), s, counts.data(),
             kDigits * tiles);
      launch(sort_ids_place_kernel<Keys>, grid, kSortThreads,
             kSortWarps * kDigits * sizeof(int32_t), s, to, to_rows, counts.data(), from, from_rows,
             R, shift);
    };
    for (int p = 0; p < passes; ++p) {
      // The last pass must end in keys and rows.
      const bool even = (passes - p) % 2 == 0;
      uint32_t* const to = even ? other_keys_.data() : keys.data();
      uint32_t* const from = even ? keys.data() : other_keys_.data();
      int32_t* const to_rows = even ? other_rows_.data() : rows.data();
      int32_t* const from_rows = even ? rows.data() : other_rows_.data();
      if (p == 0) pass(Ids{ids, V}, nullptr, to, to_rows, 0);
      else pass(Sorted{from}, from_rows, to, to_rows, 8 * p);
    }
  }
  Scratch<uint32_t> keys;
  Scratch<int32_t> rows;

 private:
  Scratch<uint32_t> other_keys_;
  Scratch<int32_t> other_rows_;
};

}  // namespace siglip2::cuda
