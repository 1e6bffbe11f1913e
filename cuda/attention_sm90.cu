// Attention forward on Hopper (sm_90a): wgmma fed by a ring of key tiles. Two consumer warpgroups of a block own 64 queries
// each of one head; a producer warpgroup runs ahead of them with the tiles of K and V, and with Q, K and V of the next
// head: blocks are persistent, one to an SM, so loads are waited for at the start alone.
//
// A consumer keeps S (64 × 128), its weights rounded to bf16, and O in registers. (A third one, which would have 160
// registers, does not fit these.) Products and exponentials take about the
// same time at 64 columns, so they overlap twice over: S of the next keys is multiplied while this warpgroup adds the
// last keys' values, its softmax runs under that product, and the warpgroups take turns at issuing products, so that one
// multiplies while another exponentiates.
//
// Tiles in shared memory are chunks of columns: 64, 96 and 128 columns are chunks of 128- or 64-byte rows, swizzled, by
// TMA from a map of (rows, heads, columns), which reads zeros beyond the columns of a head. 72 columns are chunks of 8,
// without swizzle: the one layout that is both a contraction of 80 and a width of 72; its rows of 16 bytes would be slow
// by TMA, so the producers' 128 threads copy them with cp.async.
#include "attention_mma.cuh"
#include "gemm_sm90.cuh"
#include "wgmma_128.cuh"

namespace siglip2::cuda::attention {

namespace {

constexpr int kWarpgroups = 2, kGroupQueries = 64, kQueryTile = kWarpgroups * kGroupQueries, kKeyTile = 128, kStages = 2;
constexpr int kConsumers = kWarpgroups * 128, kSm90Threads = kConsumers + 128;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
static_assert(128 * (kProducerRegisters + kWarpgroups * kConsumerRegisters) <= 64 << 10);

// A tile of rows of one head in shared memory.
template <int kD, int kRows> struct HeadTile {
  static constexpr Swizzle kSwizzle = kD % 64 == 0 ? Swizzle::bytes128 : kD % 32 == 0 ? Swizzle::bytes64 : Swizzle::none;
  static constexpr bool kTma = kSwizzle != Swizzle::none;
  static constexpr int kChunk = kD % 64 == 0 ? 64 : kD % 32 == 0 ? 32 : 8;  // columns
  static constexpr int kChunks = kDepth<kD> / kChunk, kLine = kChunk * 2;   // bytes of a row of a chunk
  // Without a swizzle the chunks of a row would all begin in one bank.
  static constexpr int kChunkBytes = kRows * kLine + (kTma ? 0 : 16), kBytes = kChunks * kChunkBytes;

  // As an operand that is contracted along its columns: 16 of them, of the rows from row0 (a multiple of 8).
  __device__ __forceinline__ static uint64_t columns(const unsigned char* tile, int row0, int step) {
    const unsigned char* const at = tile + step * 16 / kChunk * kChunkBytes + row0 * kLine + step * 16 % kChunk * 2;
    return kTma ? matrix_descriptor<kSwizzle>(at, 0, 8 * kLine) : matrix_descriptor<kSwizzle>(at, kChunkBytes, 128);
  }
  // As an operand that is contracted along its rows: 16 of them, all columns.
  __device__ __forceinline__ static uint64_t rows(const unsigned char* tile, int step) {
    const unsigned char* const at = tile + step * 16 * kLine;
    return kTma ? matrix_descriptor<kSwizzle>(at, kChunkBytes, 8 * kLine)
                : matrix_descriptor<kSwizzle>(at, 128, kChunkBytes);
  }
};

template <int kD> using QueryTile = HeadTile<kD, kQueryTile>;
template <int kD> using KeyTile = HeadTile<kD, kKeyTile>;
template <int kD> constexpr bool kByTma = KeyTile<kD>::kTma;
template <int kD> constexpr size_t sm90_smem =
    QueryTile<kD>::kBytes + 2 * kStages * KeyTile<kD>::kBytes + (2 + 4 * kStages) * sizeof(uint64_t);
static_assert(sm90_smem<128> <= kSharedMemory90);

struct HeadMaps {
  TensorMap q, k, v;
};

// What a block does next: the queries from `first` of a head, and the tiles of keys that they see.
struct TileWork {
  Head<bf16> head;
  int h, first, end, tiles;
};
// False: there are no such queries.
__device__ __forceinline__ bool work_of(TileWork& w, const Problem<bf16>& p, int item, int q_tiles) {
  const BlockWork at = block_work(item, q_tiles, p.H);
  w.head = head_of(p, at.b, at.h);
  w.h = at.h;
  // The last queries see most keys when attention is causal; their blocks begin first.
  w.first = (p.causal ? q_tiles - 1 - at.tile : at.tile) * kQueryTile;
  w.end = p.causal ? min(w.head.sample.keys, w.first + kQueryTile) : w.head.sample.keys;
  w.tiles = ceil_div(w.end, kKeyTile);
  return w.first < w.head.sample.Nq;
}

// Shared memory of a block, and the barriers of its three rings: `full` of a stage, then `empty`.
template <int kD> struct Stages {
  unsigned char *q, *k, *v;
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;

  __device__ __forceinline__ explicit Stages(unsigned char* smem) : q(smem), k(q + QueryTile<kD>::kBytes) {
    v = k + kStages * KeyTile<kD>::kBytes;
    q_full = reinterpret_cast<uint64_t*>(v + kStages * KeyTile<kD>::kBytes);
    q_empty = q_full + 1;
    k_full = q_full + 2;
    k_empty = k_full + kStages;
    v_full = k_empty + kStages;
    v_empty = v_full + kStages;
  }
  // By one thread.
  __device__ __forceinline__ void init() const {
    constexpr uint32_t kFills = kByTma<kD> ? 1 : 128, kFrees = kConsumers / 32;
    mbarrier_init(q_full, kFills);
    mbarrier_init(q_empty, kFrees);
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(k_full + i, kFills);
      mbarrier_init(k_empty + i, kFrees);
      mbarrier_init(v_full + i, kFills);
      mbarrier_init(v_empty + i, kFrees);
    }
    fence_mbarrier_init();
  }
};

// Where fill number n of a ring goes, and the parity of its barriers.
__device__ __forceinline__ int stage_of(uint32_t n) { return static_cast<int>(n % kStages); }
__device__ __forceinline__ uint32_t parity_of(uint32_t n) { return n / kStages & 1; }

// ---- producer -----------------------------------------------------------------------------------

// One thread, by TMA: rows from `row`, whoever's they are.
struct TmaProducer {
  template <class Part>
  __device__ __forceinline__ void fill(unsigned char* to, const TensorMap* map, int h, int64_t row, uint64_t* full) {
    mbarrier_arrive_expect(full, Part::kBytes);
#pragma unroll
    for (int c = 0; c < Part::kChunks; ++c)
      tma_load_3d(to + c * Part::kChunkBytes, map, c * Part::kChunk, h, static_cast<int>(row), full);
  }
};

// 128 threads, by cp.async; zeros from row `end` and column D on. A fill is announced when the next one is under way.
struct CopyProducer {
  uint64_t* unannounced = nullptr;

  template <int kGroupsLeft> __device__ __forceinline__ void announce() {
    cp_async_wait<kGroupsLeft>();
    if (!unannounced) return;
    fence_proxy_async();  // wgmma reads what these threads wrote
    mbarrier_arrive(unannounced);
  }
  template <class Part, int kRows>
  __device__ __forceinline__ void fill(unsigned char* to, const bf16* from, int64_t stride, int begin, int end, int D,
                                       uint64_t* full) {
    static_assert(kRows * Part::kChunks % 128 == 0);
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kRows * Part::kChunks; i += 128) {
      const int r = i / Part::kChunks, c = i % Part::kChunks;
      const bool there = begin + r < end && c * 8 < D;
      cp_async_16(to + c * Part::kChunkBytes + r * 16, there ? from + (begin + r) * stride + c * 8 : from, there);
    }
    cp_async_commit();
    announce<1>();
    unannounced = full;
  }
};

// In the order in which the consumers use them: Q, K0, then K of each tile before V of the one before.
template <int kD>
__device__ __forceinline__ void produce(const Problem<bf16>& p, const HeadMaps& maps, const Stages<kD>& stages,
                                        int q_tiles, int items) {
  using Queries = QueryTile<kD>;
  using Keys = KeyTile<kD>;
  std::conditional_t<kByTma<kD>, TmaProducer, CopyProducer> producer;
  uint32_t heads = 0, fills = 0;  // of Q; of K, and as many of V, before this head
  TileWork w;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    if (!work_of(w, p, item, q_tiles) || w.tiles == 0) continue;
    const Sample& s = w.head.sample;
    mbarrier_wait(stages.q_empty, heads++ % 2 ^ 1);
    if constexpr (kByTma<kD>)
      producer.template fill<Queries>(stages.q, &maps.q, w.h, (p.q_shared ? 0 : s.q_begin) + w.first, stages.q_full);
    else
      producer.template fill<Queries, kQueryTile>(stages.q, p.q + w.head.q_at, p.q_row, w.first, s.Nq, p.D,
                                                      stages.q_full);
    const auto fill_keys = [&](unsigned char* ring, uint64_t* full, uint64_t* empty, const TensorMap* map,
                               const bf16* from, int64_t stride, int j) {
      const uint32_t n = fills + static_cast<uint32_t>(j);
      const int stage = stage_of(n);
      mbarrier_wait(empty + stage, parity_of(n) ^ 1);
      unsigned char* const to = ring + stage * Keys::kBytes;
      if constexpr (kByTma<kD>) producer.template fill<Keys>(to, map, w.h, s.k_begin + j * kKeyTile, full + stage);
      else producer.template fill<Keys, kKeyTile>(to, from, stride, j * kKeyTile, w.end, p.D, full + stage);
    };
    for (int j = 0; j <= w.tiles; ++j) {
      if (j < w.tiles)
        fill_keys(stages.k, stages.k_full, stages.k_empty, &maps.k, p.k + w.head.k_at, p.k_row, j);
      if (j > 0)
        fill_keys(stages.v, stages.v_full, stages.v_empty, &maps.v, p.v + w.head.v_at, p.v_row, j - 1);
    }
    fills += static_cast<uint32_t>(w.tiles);
  }
  if constexpr (!kByTma<kD>) producer.template announce<0>();
}

// ---- consumers ----------------------------------------------------------------------------------

// s (64, 128) = Q·Kᵀ for the queries from row0.
template <int kD>
__device__ __forceinline__ void issue_scores(float (&s)[kKeyTile / 2], const unsigned char* q, int row0,
                                             const unsigned char* k) {
#pragma unroll
  for (int step = 0; step < kSteps<kD>; ++step)
    wgmma_m64n128k16<false, false>(s, QueryTile<kD>::columns(q, row0, step), KeyTile<kD>::columns(k, 0, step), step > 0);
  wgmma_commit();
}

template <int kD> __device__ __forceinline__ void add_16_keys(float (&o)[kD / 2], const uint32_t (&weights)[4], uint64_t v) {
  if constexpr (kD == 64) wgmma_m64n64k16<true>(o, weights, v, true);
  else if constexpr (kD == 72) wgmma_m64n72k16<true>(o, weights, v, true);
  else if constexpr (kD == 96) wgmma_m64n96k16<true>(o, weights, v, true);
  else wgmma_m64n128k16<true>(o, weights, v, true);
}
// o += weights · V.
template <int kD>
__device__ __forceinline__ void issue_values(float (&o)[kD / 2], const uint32_t (&weights)[kKeyTile / 16][4],
                                             const unsigned char* v) {
#pragma unroll
  for (int step = 0; step < kKeyTile / 16; ++step) add_16_keys<kD>(o, weights[step], KeyTile<kD>::rows(v, step));
  wgmma_commit();
}

// Of the two rows of a lane: the largest score, and the sum over this lane's columns of 2^(scale·(score − largest)).
struct RowState {
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
};

// Scores become their exponentials; `shrink` is what everything from earlier tiles has to be multiplied by.
__device__ __forceinline__ void exponentiate(float (&s)[kKeyTile / 2], RowState& state, float (&shrink)[2], float scale) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float top = state.most[i];
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n) top = fmaxf(top, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    const float base = top == -INFINITY ? 0 : top * scale;  // nothing seen yet: weights are 2^−∞
    shrink[i] = ex2(state.most[i] * scale - base);
    state.most[i] = top;
    float added = 0;
#pragma unroll
    for (int n = 0; n < kKeyTile / 8; ++n)
#pragma unroll
      for (int e = 4 * n + 2 * i; e < 4 * n + 2 * i + 2; ++e) {
        s[e] = ex2(s[e] * scale - base);
        added += s[e];
      }
    state.sum[i] = state.sum[i] * shrink[i] + added;
  }
}
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kKeyTile / 16][4], const float (&s)[kKeyTile / 2]) {
#pragma unroll
  for (int step = 0; step < kKeyTile / 16; ++step)
#pragma unroll
    for (int e = 0; e < 4; ++e) weights[step][e] = pack_bf16(s[step * 8 + e * 2], s[step * 8 + e * 2 + 1]);
}

// −∞ for keys from `end` on and, when causal, behind the query. `row` is the first of the lane's two queries.
__device__ __forceinline__ void mask(float (&s)[kKeyTile / 2], int key0, int end, bool causal, int row) {
  if (key0 + kKeyTile <= end && !(causal && key0 + kKeyTile - 1 > row)) return;
#pragma unroll
  for (int i = 0; i < kKeyTile / 2; ++i) {
    const int key = key0 + i / 4 * 8 + lane_id() % 4 * 2 + i % 2, query = row + i / 2 % 2 * 8;
    if (key >= end || (causal && key > query)) s[i] = -INFINITY;
  }
}

// Rows of V behind the last key belong to somebody else: a NaN there would survive a weight of zero. All consumers.
template <int kD> __device__ __forceinline__ void clear_rows(unsigned char* v, int from, int thread) {
  using Keys = KeyTile<kD>;
  const int packs = (kKeyTile - from) * Keys::kLine / 16;
  for (int i = thread; i < packs * Keys::kChunks; i += kConsumers)
    *reinterpret_cast<uint4*>(v + i / packs * Keys::kChunkBytes + from * Keys::kLine + i % packs * 16) = {0, 0, 0, 0};
  fence_proxy_async();
}

// O / Σ weights of the lane's two rows in 16-byte packs, which four lanes put together; and lse.
template <int kD>
__device__ __forceinline__ void store_output(const Problem<bf16>& p, const TileWork& w, const float (&o)[kD / 2],
                                             RowState& state, int row) {
  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  const int quarter = lane_id() % 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = row + 8 * i;
    const bool there = query < w.head.sample.Nq;
    float total = state.sum[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (quarter == 0 && there)
      p.lse[w.head.lse_at + query] = total > 0 ? state.most[i] * p.scale + logf(total) : -INFINITY;
    const float factor = total > 0 ? 1 / total : 0.0f;
    bf16* const to = p.o + w.head.o_at + query * C;
    constexpr int kWhole = kD / 32 * 4;  // 8-column groups that make up packs for each of four lanes
#pragma unroll
    for (int n = 0; n < kWhole; n += 4) {
      float mine[4][2], v[8];
#pragma unroll
      for (int g = 0; g < 4; ++g)
#pragma unroll
        for (int e = 0; e < 2; ++e) mine[g][e] = o[4 * (n + g) + 2 * i + e] * factor;
      gather_columns(v, mine);
      const int d = (n + quarter) * 8;
      if (there && d < p.D) Pack<bf16>::from(v).store(to + d);
    }
#pragma unroll
    for (int n = kWhole; n < kD / 8; ++n) {
      const uint32_t pair = pack_bf16(o[4 * n + 2 * i] * factor, o[4 * n + 2 * i + 1] * factor);
      const int d = n * 8 + quarter * 2;
      if (there && d < p.D) *reinterpret_cast<uint32_t*>(to + d) = pair;
    }
  }
}

constexpr int kTurnBarrier = 1, kClearBarrier = 4;  // named barriers; a turn has one for each warpgroup

template <int kD>
__device__ __forceinline__ void consume(const Problem<bf16>& p, const Stages<kD>& stages, int q_tiles, int items) {
  using Keys = KeyTile<kD>;
  const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128, lane = lane_id();
  const int row0 = group * kGroupQueries;
  const float scale = p.scale * kLog2e;
  const auto free_stage = [&](uint64_t* empty) {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(empty);
  };
  const auto pass_turn = [&] { barrier_arrive(kTurnBarrier + (group + 1) % kWarpgroups, 256); };
  if (group == kWarpgroups - 1) pass_turn();

  uint32_t heads = 0, fills = 0;  // as the producer counts them
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    TileWork w;
    if (!work_of(w, p, item, q_tiles)) continue;
    const int row = w.first + row0 + thread % 128 / 32 * 16 + lane / 4;
    float o[kD / 2];
#pragma unroll
    for (float& x : o) x = 0;
    RowState state;
    if (w.tiles > 0) {
      float s[kKeyTile / 2], shrink[2];
      uint32_t weights[kKeyTile / 16][4];
      mbarrier_wait(stages.q_full, heads++ % 2);
      mbarrier_wait(stages.k_full + stage_of(fills), parity_of(fills));
      wgmma_fence();
      issue_scores<kD>(s, stages.q, row0, stages.k + stage_of(fills) * Keys::kBytes);
      wgmma_wait<0>();
      free_stage(stages.k_empty + stage_of(fills));
      mask(s, 0, w.end, p.causal, row);
      exponentiate(s, state, shrink, scale);
      pack_weights(weights, s);
      for (int j = 1; j < w.tiles; ++j) {
        const uint32_t values = fills++, keys = fills;  // V of the tile before, K of this one
        mbarrier_wait(stages.k_full + stage_of(keys), parity_of(keys));
        mbarrier_wait(stages.v_full + stage_of(values), parity_of(values));
        barrier_sync(kTurnBarrier + group, 256);
        wgmma_fence();
        issue_scores<kD>(s, stages.q, row0, stages.k + stage_of(keys) * Keys::kBytes);
        issue_values<kD>(o, weights, stages.v + stage_of(values) * Keys::kBytes);
        pass_turn();
        wgmma_wait<1>();
        free_stage(stages.k_empty + stage_of(keys));
        mask(s, j * kKeyTile, w.end, p.causal, row);
        exponentiate(s, state, shrink, scale);
        wgmma_wait<0>();
        free_stage(stages.v_empty + stage_of(values));
#pragma unroll
        for (int i = 0; i < kD / 2; ++i) o[i] *= shrink[i / 2 % 2];
        pack_weights(weights, s);
      }
      free_stage(stages.q_empty);
      mbarrier_wait(stages.v_full + stage_of(fills), parity_of(fills));
      unsigned char* const v = stages.v + stage_of(fills) * Keys::kBytes;
      if (kByTma<kD> && w.end % kKeyTile != 0) {
        clear_rows<kD>(v, w.end % kKeyTile, thread);
        barrier_sync(kClearBarrier, kConsumers);
      }
      wgmma_fence();
      issue_values<kD>(o, weights, v);
      wgmma_wait<0>();
      free_stage(stages.v_empty + stage_of(fills));
      ++fills;
    }
    work_of(w, p, opaque(item), q_tiles);  // again, rather than kept in registers all the while
    store_output<kD>(p, w, o, state, row);
  }
  if (group == 0) barrier_sync(kTurnBarrier, 256);  // takes the turn that nobody wants any more
}

template <int kD>
__global__ void __launch_bounds__(kSm90Threads, 1)
    forward_sm90_kernel(const Problem<bf16> p, const __grid_constant__ HeadMaps maps, int q_tiles, int items) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const Stages<kD> stages(smem);
  if (threadIdx.x == 0) stages.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (!kByTma<kD> || threadIdx.x == 0) produce<kD>(p, maps, stages, q_tiles, items);
  } else {
    take_registers<kConsumerRegisters>();
    consume<kD>(p, stages, q_tiles, items);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

template <int kD> HeadMaps maps_of(const Problem<bf16>& p) {
  using Keys = KeyTile<kD>;
  HeadMaps maps{};
  if constexpr (kByTma<kD>) {
    const auto map = [&](const bf16* data, int64_t rows, int64_t row, int box_rows) {
      return tensor_map_of<3>(data, {p.D, p.H, rows}, {p.D, row},
                              {Keys::kChunk, 1, static_cast<uint32_t>(box_rows)}, Keys::kSwizzle);
    };
    maps.q = map(p.q, p.q_shared ? p.Nq : p.Tq, p.q_row, kQueryTile);
    maps.k = map(p.k, p.Tk, p.k_row, kKeyTile);
    maps.v = map(p.v, p.Tk, p.v_row, kKeyTile);
  }
  return maps;
}

template <int kD> void run_sm90(Stream& s, const Problem<bf16>& p) {
  const int q_tiles = ceil_div(p.Nq, kQueryTile);
  const unsigned items = grid_of(p, q_tiles);
  const unsigned blocks = std::min(items, static_cast<unsigned>(hopper_multiprocessors()));
  if (blocks == 0) return;
  launch(forward_sm90_kernel<kD>, blocks, kSm90Threads, sm90_smem<kD>, s, p, maps_of<kD>(p), q_tiles,
         static_cast<int>(items));
}

}  // namespace

// Up to 128 queries two blocks of the mma.sync kernel share an SM, which hides more than one of these would.
bool wants_sm90_forward(const Problem<bf16>& p) { return p.Nq > 128 && p.Tk > 0 && hopper_multiprocessors() > 0; }

void sm90_forward(Stream& s, const Problem<bf16>& p) {
  dispatch_columns(p.D, [&](auto columns) { run_sm90<columns()>(s, p); });
}

}  // namespace siglip2::cuda::attention
