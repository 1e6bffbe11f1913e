// Attention forward on Hopper (sm_90a): wgmma fed by a ring of key tiles. Two consumer warpgroups of a block own 64 queries
// each of one head; a producer warpgroup runs ahead of them with the tiles of K and V, and with Q, K and V of the next
// head: blocks are persistent, one to an SM, so loads are waited for at the start alone.
//
// A consumer keeps S (64 × 128), its weights rounded to bf16, and O in registers. (A third one, which would have 160
// registers, does not fit these.) Products and exponentials take about the same time at 64 columns, so they overlap twice
// over: S of the next keys is multiplied while this warpgroup adds the last keys' values, its softmax runs under that
// product, and the warpgroups take turns at issuing products, so that one multiplies while another exponentiates.
#include "attention_sm90.cuh"

namespace siglip2::cuda::attention {

constexpr int kKeyTile = 128;

// (Not in the nameless namespace below, where nvcc warns of functions that sm_80, whose kernel is empty, does not use.)
// What a block does next: the queries from `first` of a head, and the tiles of keys that they see.
struct TileWork {
  Head<bf16> head;
  int h, first, end, tiles;

  // False: there are no such queries.
  __device__ __forceinline__ bool set(const Problem<bf16>& p, int item, int q_tiles) {
    const BlockWork at = block_work(item, q_tiles, p.H);
    head = head_of(p, at.b, at.h);
    h = at.h;
    // The last queries see most keys when attention is causal; their blocks begin first.
    first = (p.causal ? q_tiles - 1 - at.tile : at.tile) * kOwnRows;
    end = p.causal ? min(head.sample.keys, first + kOwnRows) : head.sample.keys;
    tiles = ceil_div(end, kKeyTile);
    return first < head.sample.Nq;
  }
};

namespace {

template <int kD> using QueryTile = HeadTile<kD, kOwnRows>;
template <int kD> using KeyTile = HeadTile<kD, kKeyTile>;
template <int kD> constexpr size_t sm90_smem = QueryTile<kD>::kBytes +
                                               2 * kStages * KeyTile<kD>::kBytes +
                                               (2 + 4 * kStages) * sizeof(uint64_t);
static_assert(sm90_smem<128> <= kSharedMemory90);

struct HeadMaps {
  TensorMap q, k, v;
};

// Shared memory of a block, and the barriers of its three rings: `full` of a stage, then `empty`.
template <int kD> struct Stages {
  unsigned char *q, *k, *v;
  uint64_t *q_full, *q_empty, *k_full, *k_empty, *v_full, *v_empty;

  __device__ __forceinline__ explicit Stages(unsigned char* smem)
      : q(smem), k(q + QueryTile<kD>::kBytes) {
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
    constexpr uint32_t kFills = Producer<kD>::kArrivals, kFrees = kConsumers / 32;
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

// ---- producer -----------------------------------------------------------------------------------

// In the order in which the consumers use them: Q, K0, then K of each tile before V of the one before.
template <int kD>
__device__ __forceinline__ void produce(const Problem<bf16>& p, const HeadMaps& maps,
                                        const Stages<kD>& stages, int q_tiles, int items) {
  Producer<kD> producer;
  uint32_t heads = 0, fills = 0;  // of Q; of K, and as many of V, before this head
  TileWork w;
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    if (!w.set(p, item, q_tiles) || w.tiles == 0) continue;
    const Sample& s = w.head.sample;
    const HeadRows q{&maps.q, w.h, p.q_shared ? 0 : s.q_begin, p.q + w.head.q_at, p.q_row,
                     s.Nq,    p.D};
    const HeadRows k{&maps.k, w.h, s.k_begin, p.k + w.head.k_at, p.k_row, w.end, p.D};
    const HeadRows v{&maps.v, w.h, s.k_begin, p.v + w.head.v_at, p.v_row, w.end, p.D};
    mbarrier_wait(stages.q_empty, heads++ % 2 ^ 1);
    producer.begin(stages.q_full, QueryTile<kD>::kBytes);
    producer.template copy<QueryTile<kD>, kOwnRows>(stages.q, q, w.first, stages.q_full);
    producer.end(stages.q_full);
    const auto fill = [&](unsigned char* ring, uint64_t* full, uint64_t* empty,
                          const HeadRows& rows, int j) {
      const uint32_t n = fills + static_cast<uint32_t>(j);
      const int stage = stage_of(n);
      mbarrier_wait(empty + stage, parity_of(n) ^ 1);
      producer.begin(full + stage, KeyTile<kD>::kBytes);
      producer.template copy<KeyTile<kD>, kKeyTile>(ring + stage * KeyTile<kD>::kBytes, rows,
                                                    j * kKeyTile, full + stage);
      producer.end(full + stage);
    };
    for (int j = 0; j <= w.tiles; ++j) {
      if (j < w.tiles) fill(stages.k, stages.k_full, stages.k_empty, k, j);
      if (j > 0) fill(stages.v, stages.v_full, stages.v_empty, v, j - 1);
    }
    fills += static_cast<uint32_t>(w.tiles);
  }
  producer.flush();
}

// ---- consumers ----------------------------------------------------------------------------------

// Of the two rows of a lane: the largest score, and the sum over this lane's columns of 2^(scale·(score − largest)).
struct RowState {
  float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

  // Scores become their exponentials; `shrink` is what everything from earlier tiles has to be multiplied by.
  template <int kSize>
  __device__ __forceinline__ void exponentiate(float (&s)[kSize], float (&shrink)[2], float scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = most[i];
#pragma unroll
      for (int n = 0; n < kSize / 4; ++n)
        top = fmaxf(top, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float base = top == -INFINITY ? 0 : top * scale;  // nothing seen yet: weights are 2^−∞
      shrink[i] = ex2(most[i] * scale - base);
      most[i] = top;
      float added = 0;
#pragma unroll
      for (int n = 0; n < kSize / 4; ++n)
#pragma unroll
        for (int e = 4 * n + 2 * i; e < 4 * n + 2 * i + 2; ++e) {
          s[e] = ex2(s[e] * scale - base);
          added += s[e];
        }
      sum[i] = sum[i] * shrink[i] + added;
    }
  }
};

// A tile's scores as the operand of the next product.
template <int kSize> __device__ __forceinline__ void pack_weights(uint32_t (&weights)[kSize / 8][4],
                                                                  const float (&s)[kSize]) {
#pragma unroll
  for (int step = 0; step < kSize / 8; ++step)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      weights[step][e] = pack_bf16(s[step * 8 + e * 2], s[step * 8 + e * 2 + 1]);
}

// −∞ for keys from `end` on and, when causal, behind the query. `row` is the first of the lane's two queries.
template <int kSize>
__device__ __forceinline__ void mask(float (&s)[kSize], int key0, int end, bool causal, int row) {
  if (key0 + kKeyTile <= end && !(causal && key0 + kKeyTile - 1 > row)) return;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int key = key0 + i / 4 * 8 + lane_id() % 4 * 2 + i % 2, query = row + i / 2 % 2 * 8;
    if (key >= end || (causal && key > query)) s[i] = -INFINITY;
  }
}

// O / Σ weights, and lse.
template <int kD> __device__ __forceinline__ void store_output(const Problem<bf16>& p,
                                                               const TileWork& w,
                                                               const float (&o)[kD / 2],
                                                               const RowState& state, int row) {
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int query = row + 8 * i;
    float total = state.sum[i];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (lane_id() % 4 == 0 && query < w.head.sample.Nq)
      p.lse[w.head.lse_at + query] = total > 0 ? state.most[i] * p.scale + logf(total) : -INFINITY;
    factor[i] = total > 0 ? 1 / total : 0.0f;
  }
  store_head<kD>(p.o + w.head.o_at, static_cast<int64_t>(p.H) * p.D, row, w.head.sample.Nq, p.D, o,
                 factor);
}

template <int kD> __device__ __forceinline__ void consume(const Problem<bf16>& p,
                                                          const Stages<kD>& stages, int q_tiles,
                                                          int items) {
  using Keys = KeyTile<kD>;
  const int thread = static_cast<int>(threadIdx.x) - 128, group = thread / 128;
  const int row0 = group * kGroupRows;
  const float scale = p.scale * kLog2e;
  const auto pass_turn = [&] { barrier_arrive(kTurnBarrier + (group + 1) % kWarpgroups, 256); };
  if (group == kWarpgroups - 1) pass_turn();

  uint32_t heads = 0, fills = 0;  // as the producer counts them
  for (int item = static_cast<int>(blockIdx.x); item < items; item += static_cast<int>(gridDim.x)) {
    TileWork w;
    if (!w.set(p, item, q_tiles)) continue;
    const int row = w.first + row0 + thread % 128 / 32 * 16 + lane_id() / 4;
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
      issue_scores<QueryTile<kD>, Keys, kD, kKeyTile>(s, stages.q, row0,
                                                      stages.k + stage_of(fills) * Keys::kBytes);
      wgmma_commit();
      wgmma_wait<0>();
      free_stage(stages.k_empty + stage_of(fills));
      mask(s, 0, w.end, p.causal, row);
      state.exponentiate(s, shrink, scale);
      pack_weights(weights, s);
      for (int j = 1; j < w.tiles; ++j) {
        const uint32_t values = fills++, keys = fills;  // V of the tile before, K of this one
        mbarrier_wait(stages.k_full + stage_of(keys), parity_of(keys));
        mbarrier_wait(stages.v_full + stage_of(values), parity_of(values));
        barrier_sync(kTurnBarrier + group, 256);
        wgmma_fence();
        issue_scores<QueryTile<kD>, Keys, kD, kKeyTile>(s, stages.q, row0,
                                                        stages.k + stage_of(keys) * Keys::kBytes);
        wgmma_commit();
        issue_values<Keys, kD>(o, weights, stages.v + stage_of(values) * Keys::kBytes);
        wgmma_commit();
        pass_turn();
        wgmma_wait<1>();
        free_stage(stages.k_empty + stage_of(keys));
        mask(s, j * kKeyTile, w.end, p.causal, row);
        state.exponentiate(s, shrink, scale);
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
        clear_rows<Keys, kKeyTile>(v, w.end % kKeyTile);
        barrier_sync(kClearBarrier, kConsumers);
      }
      wgmma_fence();
      issue_values<Keys, kD>(o, weights, v);
      wgmma_commit();
      wgmma_wait<0>();
      free_stage(stages.v_empty + stage_of(fills));
      ++fills;
    }
    w.set(p, opaque(item), q_tiles);  // again, rather than kept in registers all the while
    store_output<kD>(p, w, o, state, row);
  }
  if (group == 0) barrier_sync(kTurnBarrier, 256);  // takes the turn that nobody wants any more
}

template <int kD> __global__ void __launch_bounds__(kSm90Threads, 1)
    forward_sm90_kernel(const Problem<bf16> p, const __grid_constant__ HeadMaps maps, int q_tiles,
                        int items) {
#if defined(SIGLIP2_SM90A) || defined(SIGLIP2_CUDA_HOST)
  DYN_SMEM(smem);
  const Stages<kD> stages(smem);
  if (threadIdx.x == 0) stages.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters<kD>>();
    if (!kByTma<kD> || threadIdx.x == 0) produce<kD>(p, maps, stages, q_tiles, items);
  } else {
    take_registers<kConsumerRegisters<kD>>();
    consume<kD>(p, stages, q_tiles, items);
  }
#endif
}

// ---- host side ----------------------------------------------------------------------------------

template <int kD> void run_sm90(Stream& s, const Problem<bf16>& p) {
  const int q_tiles = ceil_div(p.Nq, kOwnRows);
  const unsigned items = grid_of(p, q_tiles);
  if (items == 0) return;
  using Keys = KeyTile<kD>;
  const HeadMaps maps{head_map<QueryTile<kD>>(p, p.q, p.q_shared ? p.Nq : p.Tq, p.q_row, kOwnRows),
                      head_map<Keys>(p, p.k, p.Tk, p.k_row, kKeyTile),
                      head_map<Keys>(p, p.v, p.Tk, p.v_row, kKeyTile)};
  launch(forward_sm90_kernel<kD>, persistent_blocks(items), kSm90Threads, sm90_smem<kD>, s, p, maps,
         q_tiles, static_cast<int>(items));
}

}  // namespace

// Up to 128 queries two blocks of the mma.sync kernel share an SM, which hides more than one of these would.
bool wants_sm90_forward(const Problem<bf16>& p) {
  return p.Nq > 128 && p.Tk > 0 && hopper_multiprocessors() > 0;
}

void sm90_forward(Stream& s, const Problem<bf16>& p) {
  dispatch_columns(p.D, [&](auto columns) { run_sm90<columns()>(s, p); });
}

}  // namespace siglip2::cuda::attention
