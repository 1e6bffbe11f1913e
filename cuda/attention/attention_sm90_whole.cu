// Attention backward of whole heads on Hopper (sm_90a), by wgmma: 129 to 256 keys, up to 256 queries, up to 64 columns. What
// bounds these lengths is memory, so Q, K, V, O and dO are read once, dQ, dK and dV written once, and a persistent block has
// the next head's rows on their way while it multiplies this one's.
//
// Two consumer warpgroups share the keys, each 64 of 128 in turn, and walk over tiles of 64 queries:
//   Pᵀ = 2^(scale·log₂e·K·Qᵀ − lse·log₂e),  dSᵀ = Pᵀ ∘ (V·dOᵀ − delta),  dV += Pᵀ·dO,  dK += dSᵀ·Q
// Pᵀ and dSᵀ go from accumulators to operands in registers; dSᵀ also goes to shared memory, where the warpgroup whose
// turn it is reads it the other way round for dQ = dS·K of the tile, while the other one begins the next tile.
//
// dK and dV of 128 keys take 128 registers of 224. With 72 columns they would take 144, which leaves too few for the rest.
#include "attention_sm90.cuh"

namespace siglip2::cuda::attention {

// Named, for nvcc warns of what sm_80, where the kernel is empty, does not use of a nameless one.
namespace whole {

constexpr int kHeadColumns = 64, kHeadRows = 256, kHeadQueries = 64;
using OwnTile = HeadTile<kHeadColumns, kHeadRows>;         // K, V
using QueriesTile = HeadTile<kHeadColumns, kHeadQueries>;  // Q, dO
using SlopesTile =
    HeadTile<kHeadQueries, kHeadRows>;  // dSᵀ: rows are keys, columns the queries of a tile
constexpr int kOwnStages = 2,
              kOwnBytes = 2 * OwnTile::kBytes;  // K and V of this head and the next one
constexpr int kQueryStages = 4,
              kQueriesBytes = 2 * QueriesTile::kBytes;  // Q and dO of a whole head
constexpr int kStatistics = 2 * kHeadQueries;           // floats of a stage: lse, delta
constexpr int kStatisticsWarps = 3;                     // beside the warp that copies
constexpr size_t kWholeSmem = SlopesTile::kBytes + kOwnStages * kOwnBytes +
                              kQueryStages * (kQueriesBytes + kStatistics * sizeof(float)) +
                              (2 * kOwnStages + 2 * kQueryStages + 2) * sizeof(uint64_t);
static_assert(kWholeSmem <= kSharedMemory90);
constexpr int kWholeProducerRegisters = 56, kWholeConsumerRegisters = 224;
static_assert(kWholeProducerRegisters + kWarpgroups * kWholeConsumerRegisters <= kAllRegisters);

struct WholeMaps {
  TensorMap q, d_o, k, v;
};

struct WholeWork {
  Head<bf16> head;
  int h, tiles;  // of queries

  __device__ __forceinline__ WholeWork(const Problem<bf16>& p, int item) {
    const BlockWork at = block_work(item, 1, p.H);
    head = head_of(p, at.b, at.h);
    h = at.h;
    tiles = ceil_div(head.sample.Nq, kHeadQueries);
  }
};

// A stage and the parity of its barriers, for fill number n of a ring.
template <int kCount> struct RingPlace {
  int stage;
  uint32_t parity;
  __device__ __forceinline__ explicit RingPlace(uint32_t n)
      : stage(static_cast<int>(n % kCount)), parity(n / kCount & 1) {}
};

struct WholeStages {
  unsigned char *slopes, *own, *queries;
  float* statistics;
  uint64_t *own_full, *own_empty, *full, *empty, *slopes_full, *slopes_empty;

  __device__ __forceinline__ explicit WholeStages(unsigned char* smem)
      : slopes(smem), own(smem + SlopesTile::kBytes) {
    queries = own + kOwnStages * kOwnBytes;
    statistics = reinterpret_cast<float*>(queries + kQueryStages * kQueriesBytes);
    own_full = reinterpret_cast<uint64_t*>(statistics + kQueryStages * kStatistics);
    own_empty = own_full + kOwnStages;
    full = own_empty + kOwnStages;
    empty = full + kQueryStages;
    slopes_full = empty + kQueryStages;
    slopes_empty = slopes_full + 1;
  }
  // By one thread.
  __device__ __forceinline__ void init() const {
    for (int i = 0; i < kOwnStages; ++i) {
      mbarrier_init(own_full + i, TmaProducer::kArrivals);
      mbarrier_init(own_empty + i, kConsumers / 32);
    }
    for (int i = 0; i < kQueryStages; ++i) {
      mbarrier_init(full + i, TmaProducer::kArrivals + kStatisticsWarps);
      mbarrier_init(empty + i, kConsumers / 32);
    }
    mbarrier_init(slopes_full, kConsumers / 32);
    mbarrier_init(slopes_empty, kConsumers / kWarpgroups / 32);  // the warpgroup that has read
    fence_mbarrier_init();
  }
  __device__ __forceinline__ unsigned char* own_at(int stage) const {
    return own + stage * kOwnBytes;
  }
  __device__ __forceinline__ unsigned char* queries_at(int stage) const {
    return queries + stage * kQueriesBytes;
  }
  __device__ __forceinline__ float* statistics_at(int stage) const {
    return statistics + stage * kStatistics;
  }
};

// ---- producers ----------------------------------------------------------------------------------

// One thread copies. K and V go first: they are a head ahead of the queries, which have stages for one head.
__device__ __forceinline__ void produce_rows(const Problem<bf16>& p, const WholeMaps& maps,
                                             const WholeStages& stages, int items) {
  TmaProducer producer;
  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  uint32_t heads = 0, fills = 0;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const WholeWork w(p, item);
    const Head<bf16>& head = w.head;
    const Sample& s = head.sample;
    if (w.tiles == 0) continue;
    const HeadRows q{&maps.q, w.h, p.q_shared ? 0 : s.q_begin, p.q + head.q_at, p.q_row, s.Nq, p.D};
    const HeadRows d_o{&maps.d_o, w.h, s.q_begin, p.d_o + head.o_at, C, s.Nq, p.D};
    const HeadRows k{&maps.k, w.h, s.k_begin, p.k + head.k_at, p.k_row, s.keys, p.D};
    const HeadRows v{&maps.v, w.h, s.k_begin, p.v + head.v_at, p.v_row, s.keys, p.D};
    const RingPlace<kOwnStages> at(heads++);
    uint64_t* const own_full = stages.own_full + at.stage;
    mbarrier_wait(stages.own_empty + at.stage, at.parity ^ 1);
    producer.begin(own_full, kOwnBytes);
    producer.copy<OwnTile, kHeadRows>(stages.own_at(at.stage), k, 0, own_full);
    producer.copy<OwnTile, kHeadRows>(stages.own_at(at.stage) + OwnTile::kBytes, v, 0, own_full);
    for (int j = 0; j < w.tiles; ++j) {
      const RingPlace<kQueryStages> to(fills++);
      uint64_t* const full = stages.full + to.stage;
      mbarrier_wait(stages.empty + to.stage, to.parity ^ 1);
      producer.begin(full, kQueriesBytes);
      producer.copy<QueriesTile, kHeadQueries>(stages.queries_at(to.stage), q, j * kHeadQueries,
                                               full);
      producer.copy<QueriesTile, kHeadQueries>(stages.queries_at(to.stage) + QueriesTile::kBytes,
                                               d_o, j * kHeadQueries, full);
    }
  }
}

// lse·log₂e and delta of every tile of queries. A query that is not there, or sees no key, gets +∞: its weights are 0.
__device__ __forceinline__ void produce_statistics(const Problem<bf16>& p,
                                                   const WholeStages& stages, int items) {
  const int thread = static_cast<int>(threadIdx.x) - 32;
  uint32_t fills = 0;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    const WholeWork w(p, item);
    for (int j = 0; j < w.tiles; ++j) {
      const RingPlace<kQueryStages> at(fills++);
      float* const to = stages.statistics_at(at.stage);
      mbarrier_wait(stages.empty + at.stage, at.parity ^ 1);
#pragma unroll 1
      for (int query = j * kHeadQueries + thread / 8; query < (j + 1) * kHeadQueries;
           query += kStatisticsWarps * 4) {
        const float delta = query_delta<kHeadColumns>(p, w.head, query, thread % 8);
        if (thread % 8 != 0) continue;
        const float lse = query < w.head.sample.Nq ? p.lse[w.head.lse_at + query] : -INFINITY;
        to[query % kHeadQueries] = lse == -INFINITY ? INFINITY : lse * kLog2e;
        to[kHeadQueries + query % kHeadQueries] = delta;
      }
      __syncwarp();
      if (lane_id() == 0) mbarrier_arrive(stages.full + at.stage);
    }
  }
}

// ---- consumers ----------------------------------------------------------------------------------

// Scores are made of 64 keys and 32 queries at a time: with more, they would not fit beside dK and dV of 128 keys. Element
// i of an accumulator: the lane's key + 8·(i / 2 % 2), query i / 4·8 + lane % 4·2 + i % 2.
constexpr int kPart = 32, kScores = kPart / 2;

using ScoreOperand = uint32_t[kScores / 8][4];

// Scores become weights, and these an operand. `key` is the first of the lane's two keys, query0 the tile's first query.
__device__ __forceinline__ void weigh_scores(ScoreOperand& weights, float (&s)[kScores],
                                             const Problem<bf16>& p, int keys, int key, int query0,
                                             const float* lse) {
  const float scale = p.scale * kLog2e;
  const int lane_query = lane_id() % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; i += 4) {
    const float2 shift = *reinterpret_cast<const float2*>(lse + i / 4 * 8 + lane_query);
#pragma unroll
    for (int e = 0; e < 4; ++e) s[i + e] = ex2(s[i + e] * scale - (e % 2 ? shift.y : shift.x));
  }
  if (p.causal || key / 16 * 16 + 16 > keys) {  // the whole warp
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int own = key + i / 2 % 2 * 8, query = query0 + i / 4 * 8 + lane_query + i % 2;
      if (own >= keys || (p.causal && own > query)) s[i] = 0;
    }
  }
#pragma unroll
  for (int i = 0; i < kScores; i += 2) weights[i / 8][i % 8 / 2] = pack_bf16(s[i], s[i + 1]);
}

// Weights, which are kept in bf16 from here on, and dP become slopes.
__device__ __forceinline__ void slopes_of(ScoreOperand& slopes, const ScoreOperand& weights,
                                          const float (&dp)[kScores], const float* delta) {
  const int lane_query = lane_id() % 4 * 2;
#pragma unroll
  for (int i = 0; i < kScores; i += 4) {
    const float2 mean = *reinterpret_cast<const float2*>(delta + i / 4 * 8 + lane_query);
#pragma unroll
    for (int e = 0; e < 4; e += 2) {
      const uint32_t pair = weights[i / 8][(i + e) % 8 / 2];
      slopes[i / 8][(i + e) % 8 / 2] =
          pack_bf16(__uint_as_float(pair << 16) * (dp[i + e] - mean.x),
                    __uint_as_float(pair & 0xffff0000u) * (dp[i + e + 1] - mean.y));
    }
  }
}

// An operand to the tile of slopes, which has the 128-byte swizzle.
__device__ __forceinline__ void store_slopes(unsigned char* tile, int key, int query,
                                             const ScoreOperand& slopes) {
#pragma unroll
  for (int i = 0; i < kScores / 2; ++i) {
    const int row = key + i % 2 * 8, pack = query / 8 + i / 2;
    *reinterpret_cast<uint32_t*>(tile + row * 128 + ((pack ^ (row & 7)) << 4) + lane_id() % 4 * 4) =
        slopes[i / 4][i % 4];
  }
}

// dq (64 queries, 64) = slopesᵀ · K.
__device__ __forceinline__ void issue_dq(float (&dq)[kHeadColumns / 2], const unsigned char* slopes,
                                         const unsigned char* k) {
#pragma unroll
  for (int step = 0; step < kHeadRows / 16; ++step)
    wgmma_m64n64k16<true, true>(dq, SlopesTile::rows(slopes, step), OwnTile::rows(k, step),
                                step > 0);
}

// What is `opaque` here would otherwise be computed once and kept in registers all the while: descriptors, addresses, and
// where a head begins.
__device__ __forceinline__ void consume(const Problem<bf16>& p, const WholeStages& stages,
                                        int items) {
  constexpr int kD = kHeadColumns;
  const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128;
  const int lane_row = thread % 128 / 32 * 16 + lane_id() / 4;
  const float one[2] = {1, 1}, scaled[2] = {p.scale, p.scale};
  uint32_t heads = 0, fills = 0;  // as the producers count them
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    float dk[2][kD / 2], dv[2][kD / 2];  // of keys (2·m + group)·64 …
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < kD / 2; ++i) dk[m][i] = dv[m][i] = 0;
    const Sample s = WholeWork(p, item).head.sample;
    const int keys = s.keys, queries = s.Nq;
    const RingPlace<kOwnStages> own(heads);
    if (queries > 0) {
      ++heads;
      mbarrier_wait(stages.own_full + own.stage, own.parity);
      if (keys < kHeadRows) {
        clear_rows<OwnTile, kHeadRows>(stages.own_at(own.stage), keys);
        clear_rows<OwnTile, kHeadRows>(stages.own_at(own.stage) + OwnTile::kBytes, keys);
        barrier_sync(kClearBarrier, kConsumers);
      }
    }
    for (int query0 = 0; query0 < queries; query0 += kHeadQueries, ++fills) {
      const RingPlace<kQueryStages> at(fills);
      unsigned char* const q = stages.queries_at(at.stage);
      unsigned char* const d_o = q + QueriesTile::kBytes;
      const float* const lse = stages.statistics_at(at.stage);
      mbarrier_wait(stages.full + at.stage, at.parity);
      if (query0 + kHeadQueries > queries) {
        clear_rows<QueriesTile, kHeadQueries>(q, queries - query0);
        clear_rows<QueriesTile, kHeadQueries>(d_o, queries - query0);
        barrier_sync(kClearBarrier, kConsumers);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll 1
        for (int part = 0; part < kHeadQueries; part += kPart) {
          const unsigned char* const k = stages.own_at(opaque(own.stage));
          const int row0 = (2 * m + group) * kGroupRows;
          float scores[kScores], dp[kScores];
          ScoreOperand weights, slopes;
          wgmma_fence();
          issue_scores<OwnTile, QueriesTile, kD, kPart>(scores, k, row0, q, part);
          wgmma_commit();
          issue_scores<OwnTile, QueriesTile, kD, kPart>(dp, k + OwnTile::kBytes, row0, d_o, part);
          wgmma_commit();
          wgmma_wait<1>();
          weigh_scores(weights, scores, p, keys, opaque(row0 + lane_row), query0 + part,
                       lse + part);
          wgmma_wait<0>();
          slopes_of(slopes, weights, dp, lse + kHeadQueries + part);
          wgmma_fence();
          issue_values<QueriesTile, kD>(dv[m], weights, d_o, part / 16);
          wgmma_commit();
          if (p.wants_dq()) {
            if (m == 0 && part == 0) mbarrier_wait(stages.slopes_empty, (fills & 1) ^ 1);
            store_slopes(stages.slopes, opaque(row0 + lane_row), part, slopes);
          }
          wgmma_fence();
          issue_values<QueriesTile, kD>(dk[m], slopes, q, part / 16);
          wgmma_commit();
          wgmma_wait<0>();
        }
      free_stage(stages.empty + at.stage);
      if (!p.wants_dq()) continue;
      fence_proxy_async();  // wgmma reads what these threads wrote
      free_stage(stages.slopes_full);
      if (static_cast<int>(fills & 1) != group) continue;
      mbarrier_wait(stages.slopes_full, fills & 1);
      float dq[kD / 2];
      wgmma_fence();
      issue_dq(dq, stages.slopes, stages.own_at(opaque(own.stage)));
      wgmma_commit();
      wgmma_wait<0>();
      free_stage(stages.slopes_empty);
      const Head<bf16> head = WholeWork(p, opaque(item)).head;
      const int row = query0 + lane_row;
      if (p.dq_partial)
        store_partial<kD>(p.dq_partial + head.o_at, static_cast<int64_t>(p.H) * p.D, row, queries,
                          p.D, dq, p.scale);
      else store_head<kD>(p.dq + head.q_at, p.q_row, row, queries, p.D, dq, scaled);
    }
    if (queries > 0) free_stage(stages.own_empty + own.stage);
    if (!p.dk) continue;
    const Head<bf16> head = WholeWork(p, opaque(item)).head;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = (2 * m + group) * kGroupRows + lane_row;
      store_head<kD>(p.dk + head.k_at, p.k_row, row, head.sample.Nk, p.D, dk[m], scaled);
      store_head<kD>(p.dv + head.v_at, p.v_row, row, head.sample.Nk, p.D, dv[m], one);
    }
  }
}

__global__ void __launch_bounds__(kSm90Threads, 1)
    whole_sm90_kernel(const Problem<bf16> p, const __grid_constant__ WholeMaps maps, int items) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const WholeStages stages(smem);
  if (threadIdx.x == 0) stages.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kWholeProducerRegisters>();
    if (threadIdx.x == 0) produce_rows(p, maps, stages, items);
    else if (threadIdx.x >= 32) produce_statistics(p, stages, items);
  } else {
    take_registers<kWholeConsumerRegisters>();
    consume(p, stages, items);
  }
#endif
}

}  // namespace whole

// ---- host side ----------------------------------------------------------------------------------

// Up to 128 keys several blocks of the mma.sync kernel share an SM, which hides more than one of these would.
bool wants_sm90_whole_backward(const Problem<bf16>& p) {
  using namespace whole;
  return p.D <= kHeadColumns && p.Nk > 128 && p.Nk <= kHeadRows && p.Nq <= kHeadRows && p.Tq > 0 &&
         p.Tk > 0 && hopper_multiprocessors() > 0;
}

void sm90_whole_backward(Stream& s, const Problem<bf16>& p) {
  using namespace whole;
  const unsigned items = grid_of(p, 1);
  if (items == 0) return;
  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  const WholeMaps maps{
      head_map<QueriesTile>(p, p.q, p.q_shared ? p.Nq : p.Tq, p.q_row, kHeadQueries),
      head_map<QueriesTile>(p, p.d_o, p.Tq, C, kHeadQueries),
      head_map<OwnTile>(p, p.k, p.Tk, p.k_row, kHeadRows),
      head_map<OwnTile>(p, p.v, p.Tk, p.v_row, kHeadRows)};
  launch(whole_sm90_kernel, persistent_blocks(items), kSm90Threads, kWholeSmem, s, p, maps,
         static_cast<int>(items));
}

}  // namespace siglip2::cuda::attention
