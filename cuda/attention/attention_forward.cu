// Attention forward on tensor cores. A block owns up to 128 queries of one head and walks over the
// keys in tiles of 64 or 32, the next tile of K and V under way (cp.async, two stages) while the
// current one is multiplied. Each of its four warps owns 16 or 32 queries: S = Q·Kᵀ stays in registers, the
// softmax is online in base 2, and P is rounded to bf16 in place to be the A operand of P·V.
//
// With 32 queries a warp uses every fragment of K and V that it reads from shared memory for two
// products; with 16, reading them takes longer than multiplying. 16 are for short sequences, where
// 128 queries to a block would leave warps idle.
#include "attention_mma.cuh"

namespace siglip2::cuda::attention {

namespace {

constexpr int kForwardWarps = 4, kForwardThreads = kForwardWarps * 32;

struct ForwardTile {
  int row_tiles;  // 16-row tiles of queries for each warp
  int keys;       // of one stage
  bool keep_q;    // the fragments of Q stay in registers over the loop
};
// In 255 registers: O takes kD / 2 for each row tile, S half of `keys`, Q kD / 4.
__host__ __device__ constexpr ForwardTile forward_tile(int kD, bool few_queries) {
  if (few_queries || kD == 128) return {1, 64, true};  // two row tiles of 128 columns spill
  if (kD == 96) return {2, 32, false};                 // so do 64 keys
  return {2, 64, kD == 64};                            // and Q of 72 columns
}
template <int kD, bool kFew> constexpr size_t forward_smem =
    sizeof(bf16) * kRow<kD> *
    (kForwardWarps * 16 * forward_tile(kD, kFew).row_tiles + 4 * forward_tile(kD, kFew).keys);
static_assert(forward_smem<128, false> <= kSharedMemoryAll &&
              forward_smem<96, false> <= kSharedMemoryAll &&
              forward_smem<72, false> <= kSharedMemoryAll &&
              forward_smem<96, true> <= kSharedMemoryAll);

template <int kD, bool kFew> __global__ void __launch_bounds__(kForwardThreads)
    mma_forward_kernel(const Problem<bf16> p, int tiles) {
  constexpr ForwardTile kChoice = forward_tile(kD, kFew);
  constexpr int kM = kChoice.row_tiles, kQueries = kForwardWarps * 16 * kM;
  constexpr int kKeys = kChoice.keys, kN = kKeys / 8;
  constexpr bool kKeepQ = kChoice.keep_q;
  DYN_SMEM(smem);
  bf16* const q = reinterpret_cast<bf16*>(smem);  // (kQueries, kRow)
  bf16* const k = q + kQueries * kRow<kD>;        // two stages of (kKeys, kRow)
  bf16* const v = k + 2 * kKeys * kRow<kD>;       // the same
  const int lane = lane_id(), warp = warp_id();
  const BlockWork work = block_work(tiles, p.H);
  const Head<bf16> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  // The last queries see most keys when attention is causal; their blocks begin first.
  const int first = (p.causal ? tiles - 1 - work.tile : work.tile) * kQueries;
  if (first >= s.Nq) return;                                       // the whole block
  const int mine = first + warp * 16 * kM, row = mine + lane / 4;  // row + 8·i: this lane's queries
  const int end = p.causal ? min(s.keys, first + kQueries) : s.keys;

  const auto copy_keys = [&](int j, int stage) {
    copy_rows<kKeys, kD, kForwardThreads>(k + stage * kKeys * kRow<kD>, p.k + head.k_at, p.k_row, j,
                                          end, p.D);
    copy_rows<kKeys, kD, kForwardThreads>(v + stage * kKeys * kRow<kD>, p.v + head.v_at, p.v_row, j,
                                          end, p.D);
  };
  copy_rows<kQueries, kD, kForwardThreads>(q, p.q + head.q_at, p.q_row, first, s.Nq, p.D);
  if (end > 0) copy_keys(0, 0);
  cp_async_commit();

  const float scale = p.scale * kLog2e;
  Fragments<kM, kWidth<kD>> o;
  o.zero();
  float most[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) most[m][i] = -INFINITY, sum[m][i] = 0;
  uint32_t q_fragments[kKeepQ ? kSteps<kD> : 1][kM][4];

  for (int j = 0, stage = 0; j < end; j += kKeys, stage ^= 1) {
    if (j + kKeys < end) copy_keys(j + kKeys, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    if (kKeepQ && j == 0) {
#pragma unroll
      for (int step = 0; step < (kKeepQ ? kSteps<kD> : 0); ++step)
#pragma unroll
        for (int m = 0; m < kM; ++m)
          load_a<kD>(q_fragments[step][m], q, warp * 16 * kM + m * 16, step);
    }
    Fragments<kM, kN> scores;
    scores.zero();
    multiply_transposed<kD>(scores, k + stage * kKeys * kRow<kD>,
                            [&](uint32_t(&a)[4], int step, int m) {
                              if constexpr (kKeepQ) {
#pragma unroll
                                for (int e = 0; e < 4; ++e) a[e] = q_fragments[step][m][e];
                              } else {
                                load_a<kD>(a, q, warp * 16 * kM + m * 16, step);
                              }
                            });
    if (j + kKeys > end || (p.causal && j + kKeys - 1 > mine)) {
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = j + n * 8 + lane % 4 * 2 + e % 2, query = row + m * 16 + e / 2 * 8;
            if (key >= end || (p.causal && key > query)) scores.x[m][n][e] = -INFINITY;
          }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = most[m][i];
#pragma unroll
        for (int n = 0; n < kN; ++n)
          top = fmaxf(top, fmaxf(scores.x[m][n][2 * i], scores.x[m][n][2 * i + 1]));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        const float base =
            top == -INFINITY ? 0 : top * scale;  // nothing seen yet: weights are 2^−∞
        const float shrink = ex2(most[m][i] * scale - base);
        most[m][i] = top;
        float added = 0;
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int e = 2 * i; e < 2 * i + 2; ++e) {
            scores.x[m][n][e] = ex2(scores.x[m][n][e] * scale - base);
            added += scores.x[m][n][e];
          }
        sum[m][i] = sum[m][i] * shrink + added;  // of this lane's columns
#pragma unroll
        for (int n = 0; n < kWidth<kD>; ++n) {
          o.x[m][n][2 * i] *= shrink;
          o.x[m][n][2 * i + 1] *= shrink;
        }
      }
    multiply<kD>(o, Operands<kM, kN>(scores), v + stage * kKeys * kRow<kD>);
    __syncthreads();  // the stage is free
  }
  cp_async_wait<0>();
  __syncthreads();  // all copies of Q have landed, whoever made them: its rows become staging

#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& total = sum[m][i];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int query = row + m * 16 + i * 8;
      if (lane % 4 == 0 && query < s.Nq)
        p.lse[head.lse_at + query] =
            total > 0 ? most[m][i] * scale * kLn2 + logf(total) : -INFINITY;
    }
  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  store_rows<kD>(p.o + head.o_at + mine * C, C, s.Nq - mine, p.D, o, q + warp * 16 * kM * kRow<kD>,
                 [&](int m, int i) { return sum[m][i] > 0 ? 1 / sum[m][i] : 0.0f; });
}

}  // namespace

void mma_forward(Stream& s, const Problem<bf16>& p) {
  dispatch_columns(p.D, [&](auto columns) {
    const auto run = [&](auto few) {
      constexpr int kQueries = kForwardWarps * 16 * forward_tile(columns(), few()).row_tiles;
      const int tiles = ceil_div(p.Nq, kQueries);
      if (tiles == 0) return;
      launch(mma_forward_kernel<columns(), few()>, grid_of(p, tiles), kForwardThreads,
             forward_smem<columns(), few()>, s, p, tiles);
    };
    // 128 columns have one choice; the same kernel is not compiled twice.
    if (p.Nq <= kForwardWarps * 16 && columns() != 128) run(std::bool_constant<columns() != 128>{});
    else run(std::false_type{});
  });
}

}  // namespace siglip2::cuda::attention
