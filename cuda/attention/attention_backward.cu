// Attention backward on tensor cores; the formulas are in attention_plain.cu. Two passes, neither
// with atomics, so that the result does not vary:
//
// By keys. A block owns a block of keys, each warp 16 or 32 of them, and walks over tiles of 32
// queries. Sᵀ = K·Qᵀ and dPᵀ = V·dOᵀ are computed transposed: Pᵀ and dSᵀ are then already A operands
// in registers for dV += Pᵀ·dO and dK += dSᵀ·Q, which stay in registers as well.
// By queries. A block owns queries and walks over tiles of keys: dQ += dS·K. S and dP are computed a
// second time, 7 products instead of 5.
//
// When one block of the first pass holds all keys of a head (up to 256, and up to 72 columns), the
// second pass is not needed: dSᵀ goes through shared memory and each tile of dQ is complete at once.
// Such a block also computes δ itself, so the whole backward pass is one kernel that reads Q, K, V, O
// and dO and writes dQ, dK and dV once, which is what bounds short sequences. 256 keys by 32 columns
// of Sᵀ, dPᵀ, dK and dV are all the registers of an SM, hence the limits.
#include "attention_mma.cuh"

namespace siglip2::cuda::attention {

namespace {

constexpr int kTileQueries = 32;  // of the pass by keys
constexpr int kTileKeys = 32;     // of the pass by queries
constexpr int kWholeQueries = 256, kWholeKeys = 256, kWholeColumns = 72;
// Row of dSᵀ in shared memory: 80 bytes put eight rows into different banks.
constexpr int kDsRow = kTileQueries + 8;

struct BackwardTile {
  int row_tiles;  // 16-row tiles of a warp
  int warps;
};
// dK and dV of 32 keys take 4 registers a column in each lane, of 16 keys half of that.
__host__ __device__ constexpr BackwardTile keys_tile(int kD) {
  if (kD <= 72) return {2, 4};
  if (kD <= 96) return {1, 8};
  return {1, 4};  // 128 keys of 128 columns would need more shared memory than sm_86 has
}
// Queries of a tile that a warp works on at a time. All 32 read each fragment of K and V once a tile;
// where they would spill beside dK and dV of 32 keys, it is twice 16.
__host__ __device__ constexpr int part_queries(int kD, int kM, int kWarps, bool kWhole) {
  return kM == 1 || (kD == 64 && kWhole && kWarps >= 4) ? kTileQueries : 16;
}
constexpr int kQueriesWarps = 4;
__host__ __device__ constexpr int queries_row_tiles(int kD) { return kD <= 72 ? 2 : 1; }

template <int kD, int kM, int kWarps, bool kWhole> constexpr size_t keys_smem =
    sizeof(bf16) * (kRow<kD> * (2 * 16 * kM * kWarps + 4 * kTileQueries) +
                    (kWhole ? 16 * kM * kWarps * kDsRow : 0)) +
    sizeof(float) * (kWhole ? 2 * kWholeQueries : 4 * kTileQueries);
template <int kD> constexpr size_t queries_smem =
    sizeof(bf16) * kRow<kD> * (2 * 16 * queries_row_tiles(kD) * kQueriesWarps + 4 * kTileKeys);
static_assert(keys_smem<72, 2, 4, false> <= kSharedMemoryAll &&
              queries_smem<72> <= kSharedMemoryAll);
static_assert(keys_smem<96, 1, 8, false> <= kSharedMemoryAll &&
              queries_smem<96> <= kSharedMemoryAll);
static_assert(keys_smem<128, 1, 4, false> <= kSharedMemoryAll &&
              queries_smem<128> <= kSharedMemoryAll);
static_assert(keys_smem<72, 2, 8, true> <= kSharedMemory90);

// ---- by keys ------------------------------------------------------------------------------------

// lse·log₂e and delta of all queries. One that fills up the last tile gets lse = +∞, which makes its probabilities 0.
template <int kThreads> __device__ void whole_stats(const Problem<bf16>& p, const Head<bf16>& head,
                                                    float* lse, float* delta) {
  const int group = static_cast<int>(threadIdx.x) / 8, part = static_cast<int>(threadIdx.x) % 8;
  for (int i = group; i < (head.sample.Nq + kTileQueries - 1) / kTileQueries * kTileQueries;
       i += kThreads / 8) {
    const float sum = query_delta<kWholeColumns>(p, head, i, part);
    if (part == 0) {
      lse[i] = i < head.sample.Nq ? p.lse[head.lse_at + i] * kLog2e : INFINITY;
      delta[i] = sum;
    }
  }
}
// The same of one tile, from memory.
__device__ __forceinline__ void tile_stats(const Problem<bf16>& p, const Head<bf16>& head,
                                           int first, float* lse, float* delta) {
  const int t = opaque(static_cast<int>(threadIdx.x)), i = first + t;
  if (t >= kTileQueries) return;
  lse[t] = i < head.sample.Nq ? p.lse[head.lse_at + i] * kLog2e : INFINITY;
  delta[t] = i < head.sample.Nq ? p.delta[head.lse_at + i] : 0;
}

// One tile of dQ = scale·dS·K from dSᵀ (kKeys, kDsRow) and K in shared memory: each warp has 16
// queries and every so many pairs of 8 columns.
template <int kD, int kWarps>
__device__ __forceinline__ void whole_dq(const Problem<bf16>& p, const Head<bf16>& head, int first,
                                         const bf16* ds, const bf16* k) {
  constexpr int kPairs = (kWidth<kD> + 1) / 2, kGroups = kWarps / 2;
  constexpr int kMine = (kPairs + kGroups - 1) / kGroups;
  const int thread = opaque(static_cast<int>(threadIdx.x)), lane = thread % 32;
  const int m = thread / 32 % 2, group = thread / 64;
  float dq[kMine][2][4] = {};
  for (int j = 0; j < head.sample.keys; j += 16) {
    uint32_t a[4];
    ldmatrix_x4_transposed(
        a, ds + (j + lane % 8 + lane / 16 * 8) * kDsRow + m * 16 + lane / 8 % 2 * 8);
#pragma unroll
    for (int t = 0; t < kMine; ++t) {
      const int pair = group + t * kGroups;
      if (pair >= kPairs) continue;  // the whole warp
      uint32_t b[4];
      ldmatrix_x4_transposed(b, k + (j + lane % 16) * kRow<kD> + pair * 16 + lane / 16 * 8);
      mma_m16n8k16(dq[t][0], a, b[0], b[1]);
      if (2 * pair + 1 < kWidth<kD>) mma_m16n8k16(dq[t][1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int t = 0; t < kMine; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // 8 columns · 2 + half of the rows
      const int d = (group + t * kGroups) * 16 + i / 2 * 8 + lane % 4 * 2;
      const int query = first + m * 16 + i % 2 * 8 + lane / 4;
      if (d >= p.D || query >= head.sample.Nq) continue;
      const float x = dq[t][i / 2][i % 2 * 2] * p.scale, y = dq[t][i / 2][i % 2 * 2 + 1] * p.scale;
      if (p.dq_partial) {
        float* const to = p.dq_partial + head.o_at + static_cast<int64_t>(query) * p.H * p.D + d;
        to[0] = x;
        to[1] = y;
      } else {
        *reinterpret_cast<uint32_t*>(p.dq + head.q_at + query * p.q_row + d) = pack_bf16(x, y);
      }
    }
}

template <int kD, int kM, int kWarps, bool kWhole> __global__ void __launch_bounds__(kWarps * 32, 1)
    mma_backward_keys_kernel(const Problem<bf16> p, int tiles) {
  constexpr int kThreads = kWarps * 32, kKeys = kWarps * 16 * kM;
  constexpr int kPart = part_queries(kD, kM, kWarps, kWhole), kN = kPart / 8;
  constexpr int kTile = kTileQueries * kRow<kD>;
  DYN_SMEM(smem);
  bf16* const k = reinterpret_cast<bf16*>(smem);  // (kKeys, kRow)
  bf16* const v = k + kKeys * kRow<kD>;           // the same
  bf16* const q = v + kKeys * kRow<kD>;           // two stages of (kTileQueries, kRow)
  bf16* const d_o = q + 2 * kTile;                // the same
  bf16* const ds = d_o + 2 * kTile;               // (kKeys, kDsRow) when kWhole
  // lse and delta, of all queries when kWhole, else of two stages.
  constexpr int kStats = kWhole ? kWholeQueries : 2 * kTileQueries;
  float* const lse = reinterpret_cast<float*>(ds + (kWhole ? kKeys * kDsRow : 0));
  float* const delta = lse + kStats;

  const int lane = lane_id(), warp = warp_id();
  const BlockWork work = block_work(tiles, p.H);
  const Head<bf16> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  const int first = work.tile * kKeys, mine = first + warp * 16 * kM;
  if (!kWhole && first >= s.Nk) return;  // the whole block
  // Queries before the block's first key do not see it when attention is causal. Without a key
  // there is nothing to sum, but dQ is still to be set.
  const int begin = p.causal ? first / kTileQueries * kTileQueries : 0;
  const int end = first < s.keys || (kWhole && p.wants_dq()) ? s.Nq : 0;

  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  const auto copy_queries = [&](int i, int stage) {
    copy_rows<kTileQueries, kD, kThreads>(q + stage * kTile, p.q + head.q_at, p.q_row, i, s.Nq,
                                          p.D);
    copy_rows<kTileQueries, kD, kThreads>(d_o + stage * kTile, p.d_o + head.o_at, C, i, s.Nq, p.D);
    if (!kWhole) tile_stats(p, head, i, lse + stage * kTileQueries, delta + stage * kTileQueries);
  };
  copy_rows<kKeys, kD, kThreads>(k, p.k + head.k_at, p.k_row, first, s.keys, p.D);
  copy_rows<kKeys, kD, kThreads>(v, p.v + head.v_at, p.v_row, first, s.keys, p.D);
  if (begin < end) copy_queries(begin, 0);
  cp_async_commit();
  if (kWhole) whole_stats<kThreads>(p, head, lse, delta);  // while the copies are under way

  const float scale = p.scale * kLog2e;
  Fragments<kM, kWidth<kD>> dk, dv;
  dk.zero();
  dv.zero();
  for (int i = begin, stage = 0; i < end; i += kTileQueries, stage ^= 1) {
    if (i + kTileQueries < end) copy_queries(i + kTileQueries, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const float* const lse_tile = lse + (kWhole ? i : stage * kTileQueries);
    const float* const delta_tile = delta + (kWhole ? i : stage * kTileQueries);
    const bool all = mine + 16 * kM <= s.keys && (!p.causal || mine + 16 * kM - 1 <= i);
#pragma unroll 1
    for (int part = 0; part < kTileQueries; part += kPart) {
      const bf16* const q_part = q + stage * kTile + part * kRow<kD>;
      const bf16* const d_o_part = d_o + stage * kTile + part * kRow<kD>;
      Fragments<kM, kN> st, dst;  // Sᵀ, then Pᵀ; dPᵀ, then dSᵀ
      st.zero();
      multiply_transposed<kD>(st, q_part, [&](uint32_t(&a)[4], int step, int m) {
        load_a<kD>(a, k, warp * 16 * kM + m * 16, step);
      });
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const float2 l = *reinterpret_cast<const float2*>(lse_tile + part + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = mine + m * 16 + e / 2 * 8 + lane / 4,
                      query = i + part + n * 8 + lane % 4 * 2 + e % 2;
            const bool seen = all || (key < s.keys && (!p.causal || key <= query));
            st.x[m][n][e] = seen ? ex2(st.x[m][n][e] * scale - (e % 2 ? l.y : l.x)) : 0;
          }
      }
      // From here on Pᵀ is kept as bf16, in half the registers.
      const Operands<kM, kN> pt(st);
      multiply<kD>(dv, pt, d_o_part);
      dst.zero();
      multiply_transposed<kD>(dst, d_o_part, [&](uint32_t(&a)[4], int step, int m) {
        load_a<kD>(a, v, warp * 16 * kM + m * 16, step);
      });
#pragma unroll
      for (int n = 0; n < kN; ++n) {
        const float2 d = *reinterpret_cast<const float2*>(delta_tile + part + n * 8 + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            dst.x[m][n][e] = pt.at(m, n, e) * (dst.x[m][n][e] - (e % 2 ? d.y : d.x));
      }
      const Operands<kM, kN> ds_operands(dst);
      multiply<kD>(dk, ds_operands, q_part);
      if (kWhole && p.wants_dq()) {
        const int thread = opaque(static_cast<int>(threadIdx.x));
        bf16* const to =
            ds + (thread / 32 * 16 * kM + thread % 32 / 4) * kDsRow + part + thread % 4 * 2;
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int n = 0; n < kN; ++n)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              *reinterpret_cast<uint32_t*>(to + (m * 16 + half * 8) * kDsRow + n * 8) =
                  ds_operands.x[m][n / 2][n % 2 * 2 + half];
      }
    }
    if (kWhole && p.wants_dq()) {
      __syncthreads();
      whole_dq<kD, kWarps>(p, head, i, ds, k);
    }
    __syncthreads();  // the stage, and dSᵀ, are free
  }
  cp_async_wait<0>();
  __syncthreads();  // all copies of K and V have landed: their rows become staging
  if (!p.dk) return;
  const Head<bf16> to = head_of(p, opaque(work.b), opaque(work.h));
  bf16* const staging = k + warp * 16 * kM * kRow<kD>;
  store_rows<kD>(p.dk + to.k_at + mine * p.k_row, p.k_row, s.Nk - mine, p.D, dk, staging,
                 [&](int, int) { return p.scale; });
  store_rows<kD>(p.dv + to.v_at + mine * p.v_row, p.v_row, s.Nk - mine, p.D, dv, staging,
                 [](int, int) { return 1.0f; });
}

// ---- by queries ---------------------------------------------------------------------------------

template <int kD> __global__ void __launch_bounds__(kQueriesWarps * 32)
    mma_backward_queries_kernel(const Problem<bf16> p, int tiles) {
  constexpr int kM = queries_row_tiles(kD), kThreads = kQueriesWarps * 32;
  constexpr int kQueries = kQueriesWarps * 16 * kM, kN = kTileKeys / 8,
                kTile = kTileKeys * kRow<kD>;
  DYN_SMEM(smem);
  bf16* const q = reinterpret_cast<bf16*>(smem);  // (kQueries, kRow)
  bf16* const d_o = q + kQueries * kRow<kD>;      // the same
  bf16* const k = d_o + kQueries * kRow<kD>;      // two stages of (kTileKeys, kRow)
  bf16* const v = k + 2 * kTile;                  // the same
  const int lane = lane_id(), warp = warp_id();
  const BlockWork work = block_work(tiles, p.H);
  const Head<bf16> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  const int first = (p.causal ? tiles - 1 - work.tile : work.tile) * kQueries;
  if (first >= s.Nq) return;  // the whole block
  const int mine = first + warp * 16 * kM, row = mine + lane / 4;
  const int end = p.causal ? min(s.keys, first + kQueries) : s.keys;
  const int64_t C = static_cast<int64_t>(p.H) * p.D;

  const auto copy_keys = [&](int j, int stage) {
    copy_rows<kTileKeys, kD, kThreads>(k + stage * kTile, p.k + head.k_at, p.k_row, j, end, p.D);
    copy_rows<kTileKeys, kD, kThreads>(v + stage * kTile, p.v + head.v_at, p.v_row, j, end, p.D);
  };
  copy_rows<kQueries, kD, kThreads>(q, p.q + head.q_at, p.q_row, first, s.Nq, p.D);
  copy_rows<kQueries, kD, kThreads>(d_o, p.d_o + head.o_at, C, first, s.Nq, p.D);
  if (end > 0) copy_keys(0, 0);
  cp_async_commit();

  float lse[kM][2], delta[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = row + m * 16 + i * 8;
      lse[m][i] = query < s.Nq ? p.lse[head.lse_at + query] * kLog2e : INFINITY;
      delta[m][i] = query < s.Nq ? p.delta[head.lse_at + query] : 0;
    }
  const float scale = p.scale * kLog2e;
  Fragments<kM, kWidth<kD>> dq;
  dq.zero();
  for (int j = 0, stage = 0; j < end; j += kTileKeys, stage ^= 1) {
    if (j + kTileKeys < end) copy_keys(j + kTileKeys, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    Fragments<kM, kN> scores, ds;
    scores.zero();
    ds.zero();
    multiply_transposed<kD>(scores, k + stage * kTile, [&](uint32_t(&a)[4], int step, int m) {
      load_a<kD>(a, q, warp * 16 * kM + m * 16, step);
    });
    multiply_transposed<kD>(ds, v + stage * kTile, [&](uint32_t(&a)[4], int step, int m) {
      load_a<kD>(a, d_o, warp * 16 * kM + m * 16, step);
    });
    const bool all = j + kTileKeys <= end && (!p.causal || j + kTileKeys - 1 <= mine);
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = j + n * 8 + lane % 4 * 2 + e % 2, query = row + m * 16 + e / 2 * 8;
          const bool seen = all || (key < end && (!p.causal || key <= query));
          const float weight = seen ? ex2(scores.x[m][n][e] * scale - lse[m][e / 2]) : 0;
          ds.x[m][n][e] = weight * (ds.x[m][n][e] - delta[m][e / 2]);
        }
    multiply<kD>(dq, Operands<kM, kN>(ds), k + stage * kTile);
    __syncthreads();  // the stage is free
  }
  cp_async_wait<0>();
  __syncthreads();  // all copies of Q have landed: its rows become staging
  if (p.dq_partial)
    return store_rows<kD>(p.dq_partial + head.o_at + mine * C, C, s.Nq - mine, p.D, dq, p.scale);
  store_rows<kD>(p.dq + head.q_at + mine * p.q_row, p.q_row, s.Nq - mine, p.D, dq,
                 q + warp * 16 * kM * kRow<kD>, [&](int, int) { return p.scale; });
}

// ---- launchers ----------------------------------------------------------------------------------

bool whole_heads(const Problem<bf16>& p) {
  return p.D <= kWholeColumns && p.Nq <= kWholeQueries && p.Nk <= kWholeKeys &&
         keys_smem<kWholeColumns, 2, 8, true> <= shared_memory_limit();
}

template <int kD, int kM, int kWarps, bool kWhole>
void run_keys(Stream& s, const Problem<bf16>& p) {
  const int tiles = kWhole ? 1 : ceil_div(p.Nk, 16 * kM * kWarps);
  if (tiles == 0) return;
  launch(mma_backward_keys_kernel<kD, kM, kWarps, kWhole>, grid_of(p, tiles), kWarps * 32,
         keys_smem<kD, kM, kWarps, kWhole>, s, p, tiles);
}

}  // namespace

bool mma_backward_needs_delta(const Problem<bf16>& p) { return !whole_heads(p); }

void mma_backward(Stream& s, const Problem<bf16>& p) {
  if (whole_heads(p)) {
    const auto run = [&](auto columns) {
      if (p.Nk <= 64) run_keys<columns(), 2, 2, true>(s, p);
      else if (p.Nk <= 128) run_keys<columns(), 2, 4, true>(s, p);
      else run_keys<columns(), 2, 8, true>(s, p);
    };
    if (p.D <= 64) run(std::integral_constant<int, 64>{});
    else run(std::integral_constant<int, kWholeColumns>{});
    return;
  }
  dispatch_columns(p.D, [&](auto columns) {
    constexpr int kD = columns();
    constexpr BackwardTile tile = keys_tile(kD);
    if (p.dk) run_keys<kD, tile.row_tiles, tile.warps, false>(s, p);
    const int tiles = ceil_div(p.Nq, 16 * queries_row_tiles(kD) * kQueriesWarps);
    if (p.wants_dq() && tiles > 0)
      launch(mma_backward_queries_kernel<kD>, grid_of(p, tiles), kQueriesWarps * 32,
             queries_smem<kD>, s, p, tiles);
  });
}

}  // namespace siglip2::cuda::attention
