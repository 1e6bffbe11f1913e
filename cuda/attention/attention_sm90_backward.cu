// Attention backward on Hopper (sm_90a), by wgmma. One kernel in two directions, of which neither needs atomics:
//   by queries: a block owns 128 queries (Q, dO) and walks over tiles of K and V:  dQ += dS·K
//   by keys:    a block owns 128 keys (K, V) and walks over tiles of Q and dO:     dK += dSᵀ·Q,  dV += Pᵀ·dO
// with P = 2^(scale·log₂e·S − lse·log₂e) and dS = P ∘ (dP − delta). Both compute S = Q·Kᵀ and dP = dO·Vᵀ, or their
// transposes, so there are 7 products where one pass would do with 5: the price of a fixed order of sums and of no float
// dQ in memory. P and dS leave the accumulators as operands of the next products; nothing but tiles of the inputs, lse
// and delta is ever in shared memory.
//
// Blocks are persistent, a producer warpgroup and two consumers of 64 rows each, as in attention_sm90.cu. A consumer waits
// for its products, and the other one's run meanwhile. Tiles of the ring have 128 rows where registers allow.
#include "attention_sm90.cuh"

namespace siglip2::cuda::attention {

// Not in the nameless namespace below: nvcc warns of constants there that sm_80, where the kernel is empty, does not use.
template <int kD_, bool kByKeys_> struct GradientTile {
  static constexpr int kD = kD_;
  static constexpr bool kByKeys = kByKeys_;
  // Accumulators: kRing for S and dP together, kD for dK and dV or half as many for dQ. Producers that copy leave fewer.
  static constexpr int kRing = (kByKeys && kD > 64) || !kByTma<kD> ? 64 : 128;
  using Own = HeadTile<kD, kOwnRows>;
  using Ring = HeadTile<kD, kRing>;
  static constexpr int kStatistics =
      kByKeys ? 2 * kRing : 0;  // floats of a stage: lse, delta of its queries
  static constexpr int kStageBytes = 2 * Ring::kBytes;
  // By keys the statistics are the work of a whole warp, or of all producers.
  static constexpr uint32_t kFills = kByTma<kD> && kByKeys ? 32 : Producer<kD>::kArrivals;
  static constexpr size_t kSmem = 2 * Own::kBytes +
                                  kStages * (kStageBytes + kStatistics * sizeof(float)) +
                                  (2 + 2 * kStages) * sizeof(uint64_t);
  static_assert(kSmem <= kSharedMemory90);
};

namespace {

struct GradientMaps {
  TensorMap own[2], ring[2];  // Q and dO, K and V; the other way round by keys
};

// What a block does next: its own rows from `first` of `count`, against the ring's rows from `begin` to `end`.
struct BackwardWork {
  Head<bf16> head;
  int h, first, count, begin, end, tiles;
};
// False: there are no such rows.
template <class Tile> __device__ __forceinline__ bool work_of(BackwardWork& w,
                                                              const Problem<bf16>& p, int item,
                                                              int own_tiles) {
  const BlockWork at = block_work(item, own_tiles, p.H);
  w.head = head_of(p, at.b, at.h);
  w.h = at.h;
  const Sample& s = w.head.sample;
  if (Tile::kByKeys) {  // the first keys are seen by most queries
    w.first = at.tile * kOwnRows;
    w.count = s.Nk;
    w.begin = p.causal ? w.first / Tile::kRing * Tile::kRing : 0;
    w.end = w.first < s.keys ? s.Nq : 0;
  } else {  // the last queries see most keys
    w.first = (p.causal ? own_tiles - 1 - at.tile : at.tile) * kOwnRows;
    w.count = s.Nq;
    w.begin = 0;
    w.end = p.causal ? min(s.keys, w.first + kOwnRows) : s.keys;
  }
  w.tiles = ceil_div(max(w.end - w.begin, 0), Tile::kRing);
  return w.first < w.count;
}

template <class Tile> struct BackwardStages {
  unsigned char* own;   // two tiles
  unsigned char* ring;  // stages of two tiles
  float* statistics;    // stages
  uint64_t *own_full, *own_empty, *full, *empty;

  __device__ __forceinline__ explicit BackwardStages(unsigned char* smem)
      : own(smem), ring(smem + 2 * Tile::Own::kBytes) {
    statistics = reinterpret_cast<float*>(ring + kStages * Tile::kStageBytes);
    own_full = reinterpret_cast<uint64_t*>(statistics + kStages * Tile::kStatistics);
    own_empty = own_full + 1;
    full = own_full + 2;
    empty = full + kStages;
  }
  // By one thread.
  __device__ __forceinline__ void init() const {
    mbarrier_init(own_full, Producer<Tile::kD>::kArrivals);
    mbarrier_init(own_empty, kConsumers / 32);
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(full + i, Tile::kFills);
      mbarrier_init(empty + i, kConsumers / 32);
    }
    fence_mbarrier_init();
  }
};

// ---- producer -----------------------------------------------------------------------------------

// Both tensors of a fill.
template <class Part, int kRows, class P>
__device__ __forceinline__ void copy_pair(P& producer, unsigned char* to, const HeadRows (&rows)[2],
                                          int begin, uint64_t* full) {
  producer.begin(full, 2 * Part::kBytes);
  producer.template copy<Part, kRows>(to, rows[0], begin, full);
  producer.template copy<Part, kRows>(to + Part::kBytes, rows[1], begin, full);
  producer.end(full);
}

// lse·log₂e, and delta, of a tile of queries. A query that is not there, or sees no key, gets +∞: its weights are 0.
template <int kRing>
__device__ __forceinline__ void load_statistics(float* to, const Problem<bf16>& p,
                                                const Head<bf16>& head, int begin, int threads) {
  for (int i = static_cast<int>(threadIdx.x); i < kRing; i += threads) {
    const int query = begin + i;
    const float lse = query < head.sample.Nq ? p.lse[head.lse_at + query] : -INFINITY;
    to[i] = lse == -INFINITY ? INFINITY : lse * kLog2e;
    to[kRing + i] = query < head.sample.Nq ? p.delta[head.lse_at + query] : 0.0f;
  }
}

template <class Tile> __device__ __forceinline__ void produce(const Problem<bf16>& p,
                                                              const GradientMaps& maps,
                                                              const BackwardStages<Tile>& stages,
                                                              int own_tiles, int items) {
  constexpr bool kTma = kByTma<Tile::kD>;
  const bool copies =
      !kTma || threadIdx.x == 0;  // the other lanes of a TMA producer bring statistics
  Producer<Tile::kD> producer;
  uint32_t heads = 0, fills = 0;
  BackwardWork w;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    if (!work_of<Tile>(w, p, item, own_tiles) || w.tiles == 0) continue;
    const Sample& s = w.head.sample;
    constexpr int q = Tile::kByKeys ? 1 : 0;  // which of the pairs are Q and dO
    const int64_t C = static_cast<int64_t>(p.H) * p.D;
    const TensorMap *const q_maps = q ? maps.ring : maps.own, *const k_maps =
                                                                  q ? maps.own : maps.ring;
    const HeadRows pairs[2][2] = {
        {{q_maps, w.h, p.q_shared ? 0 : s.q_begin, p.q + w.head.q_at, p.q_row, s.Nq, p.D},
         {q_maps + 1, w.h, s.q_begin, p.d_o + w.head.o_at, C, s.Nq, p.D}},
        {{k_maps, w.h, s.k_begin, p.k + w.head.k_at, p.k_row, s.keys, p.D},
         {k_maps + 1, w.h, s.k_begin, p.v + w.head.v_at, p.v_row, s.keys, p.D}}};
    mbarrier_wait(stages.own_empty, heads++ % 2 ^ 1);
    if (copies)
      copy_pair<typename Tile::Own, kOwnRows>(producer, stages.own, pairs[q], w.first,
                                              stages.own_full);
    for (int j = 0; j < w.tiles; ++j, ++fills) {
      const int stage = stage_of(fills), begin = w.begin + j * Tile::kRing;
      mbarrier_wait(stages.empty + stage, parity_of(fills) ^ 1);
      if (Tile::kByKeys)
        load_statistics<Tile::kRing>(stages.statistics + stage * Tile::kStatistics, p, w.head,
                                     begin, kTma ? 32 : 128);
      unsigned char* const to = stages.ring + stage * Tile::kStageBytes;
      if (copies)
        copy_pair<typename Tile::Ring, Tile::kRing>(producer, to, pairs[1 - q], begin,
                                                    stages.full + stage);
      else mbarrier_arrive(stages.full + stage);
    }
    producer
        .flush();  // the consumers give the block's own rows back after they have had the last tile
  }
}

// ---- consumers ----------------------------------------------------------------------------------

// s (scores) and dp become the operands P and dS. Of element i: the lane's row is `row` + 8·(i / 2 % 2), its column
// column0 + i / 4·8 + i % 2 of the ring's tile. By keys rows are keys and columns queries.
template <class Tile> __device__ __forceinline__ void weigh(
    uint32_t (&weights)[Tile::kRing / 16][4], uint32_t (&slopes)[Tile::kRing / 16][4],
    const float (&s)[Tile::kRing / 2], const float (&dp)[Tile::kRing / 2], const Problem<bf16>& p,
    const BackwardWork& w, int row, int column0, const float (&lse)[2], const float (&delta)[2],
    const float* statistics) {
  const float scale = p.scale * kLog2e;
  const int keys = w.head.sample.keys, lane_column = lane_id() % 4 * 2;
  const bool all =
      Tile::kByKeys
          ? row + 8 < keys && column0 + Tile::kRing <= w.end && !(p.causal && column0 < row + 8)
          : column0 + Tile::kRing <= w.end && !(p.causal && column0 + Tile::kRing - 1 > row);
#pragma unroll
  for (int i = 0; i < Tile::kRing / 2; i += 2) {
    float weight[2], slope[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = i / 4 * 8 + lane_column + e, own = row + i / 2 % 2 * 8,
                other = column0 + column;
      const int key = Tile::kByKeys ? own : other, query = Tile::kByKeys ? other : own;
      const bool seen = all || (key < keys && other < w.end && !(p.causal && key > query));
      const float shift = Tile::kByKeys ? statistics[column] : lse[i / 2 % 2];
      const float mean = Tile::kByKeys ? statistics[Tile::kRing + column] : delta[i / 2 % 2];
      weight[e] = seen ? ex2(s[i + e] * scale - shift) : 0;
      slope[e] = seen ? weight[e] * (dp[i + e] - mean) : 0;
    }
    weights[i / 8][i % 8 / 2] = pack_bf16(weight[0], weight[1]);
    slopes[i / 8][i % 8 / 2] = pack_bf16(slope[0], slope[1]);
  }
}

template <class Tile> __device__ __forceinline__ void consume(const Problem<bf16>& p,
                                                              const BackwardStages<Tile>& stages,
                                                              int own_tiles, int items) {
  using Own = typename Tile::Own;
  using Ring = typename Tile::Ring;
  constexpr int kD = Tile::kD, kRing = Tile::kRing;
  const int thread = static_cast<int>(threadIdx.x) - 128, row0 = thread / 128 * kGroupRows;
  const int lane_row = row0 + thread % 128 / 32 * 16 + lane_id() / 4;
  uint32_t heads = 0, fills = 0;  // as the producer counts them
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    BackwardWork w;
    if (!work_of<Tile>(w, p, item, own_tiles)) continue;
    const int row = w.first + lane_row;
    float first[kD / 2], second[Tile::kByKeys ? kD / 2 : 2];  // dQ; or dK, dV
#pragma unroll
    for (float& x : first) x = 0;
#pragma unroll
    for (float& x : second) x = 0;
    float lse[2] = {}, delta[2] = {};
    if (!Tile::kByKeys)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (row + 8 * i < w.count) {
          const float l = p.lse[w.head.lse_at + row + 8 * i];
          lse[i] = l == -INFINITY ? INFINITY : l * kLog2e;
          delta[i] = p.delta[w.head.lse_at + row + 8 * i];
        }
    if (w.tiles > 0) mbarrier_wait(stages.own_full, heads++ % 2);
    for (int j = 0; j < w.tiles; ++j, ++fills) {
      const int stage = stage_of(fills), column0 = w.begin + j * kRing;
      unsigned char* const tile = stages.ring + stage * Tile::kStageBytes;
      mbarrier_wait(stages.full + stage, parity_of(fills));
      if (kByTma<kD> && column0 + kRing > w.end) {
        clear_rows<Ring, kRing>(tile, w.end - column0);
        if (Tile::kByKeys) clear_rows<Ring, kRing>(tile + Ring::kBytes, w.end - column0);
        barrier_sync(kClearBarrier, kConsumers);
      }
      float s[kRing / 2], dp[kRing / 2];
      wgmma_fence();
      issue_scores<Own, Ring, kD, kRing>(s, stages.own, row0, tile);
      issue_scores<Own, Ring, kD, kRing>(dp, stages.own + Own::kBytes, row0, tile + Ring::kBytes);
      wgmma_commit();
      wgmma_wait<0>();
      uint32_t weights[kRing / 16][4], slopes[kRing / 16][4];
      weigh<Tile>(weights, slopes, s, dp, p, w, row, column0, lse, delta,
                  stages.statistics + stage * Tile::kStatistics);
      wgmma_fence();
      if constexpr (Tile::kByKeys) issue_values<Ring, kD>(second, weights, tile + Ring::kBytes);
      issue_values<Ring, kD>(first, slopes, tile);
      wgmma_commit();
      wgmma_wait<0>();
      free_stage(stages.empty + stage);
    }
    if (w.tiles > 0) free_stage(stages.own_empty);

    work_of<Tile>(w, p, opaque(item),
                  own_tiles);  // again, rather than kept in registers all the while
    const float scaled[2] = {p.scale, p.scale};
    if constexpr (Tile::kByKeys) {
      const float one[2] = {1, 1};
      store_head<kD>(p.dk + w.head.k_at, p.k_row, row, w.count, p.D, first, scaled);
      store_head<kD>(p.dv + w.head.v_at, p.v_row, row, w.count, p.D, second, one);
    } else if (p.dq_partial) {
      store_partial<kD>(p.dq_partial + w.head.o_at, static_cast<int64_t>(p.H) * p.D, row, w.count,
                        p.D, first, p.scale);
    } else {
      store_head<kD>(p.dq + w.head.q_at, p.q_row, row, w.count, p.D, first, scaled);
    }
  }
}

template <class Tile> __global__ void __launch_bounds__(kSm90Threads, 1)
    backward_sm90_kernel(const Problem<bf16> p, const __grid_constant__ GradientMaps maps,
                         int own_tiles, int items) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const BackwardStages<Tile> stages(smem);
  if (threadIdx.x == 0) stages.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters<Tile::kD>>();
    if (threadIdx.x < (kByTma<Tile::kD> ? Tile::kFills : 128))
      produce<Tile>(p, maps, stages, own_tiles, items);
  } else {
    take_registers<kConsumerRegisters<Tile::kD>>();
    consume<Tile>(p, stages, own_tiles, items);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

template <class Tile> void run_sm90_backward(Stream& s, const Problem<bf16>& p) {
  const int own_tiles = ceil_div(Tile::kByKeys ? p.Nk : p.Nq, kOwnRows);
  const unsigned items = grid_of(p, own_tiles);
  if (items == 0) return;
  GradientMaps maps{};
  const auto set = [&](TensorMap(&pair)[2], bool queries, auto part, int box) {
    using Part = decltype(part);
    const int64_t C = static_cast<int64_t>(p.H) * p.D;
    if (queries) {
      pair[0] = head_map<Part>(p, p.q, p.q_shared ? p.Nq : p.Tq, p.q_row, box);
      pair[1] = head_map<Part>(p, p.d_o, p.Tq, C, box);
    } else {
      pair[0] = head_map<Part>(p, p.k, p.Tk, p.k_row, box);
      pair[1] = head_map<Part>(p, p.v, p.Tk, p.v_row, box);
    }
  };
  set(maps.own, !Tile::kByKeys, typename Tile::Own{}, kOwnRows);
  set(maps.ring, Tile::kByKeys, typename Tile::Ring{}, Tile::kRing);
  launch(backward_sm90_kernel<Tile>, persistent_blocks(items), kSm90Threads, Tile::kSmem, s, p,
         maps, own_tiles, static_cast<int>(items));
}

}  // namespace

// Fewer rows leave most of a block's 128 without work.
bool wants_sm90_backward(const Problem<bf16>& p) {
  return std::min(p.Nq, p.Nk) > 128 && p.Tq > 0 && p.Tk > 0 && hopper_multiprocessors() > 0;
}

void sm90_backward(Stream& s, const Problem<bf16>& p) {
  dispatch_columns(p.D, [&](auto columns) {
    if (p.dk) run_sm90_backward<GradientTile<columns(), true>>(s, p);
    if (p.wants_dq()) run_sm90_backward<GradientTile<columns(), false>>(s, p);
  });
}

}  // namespace siglip2::cuda::attention
