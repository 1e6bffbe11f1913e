// Attention without tensor cores, in float: the kernels for f32, for rows that are not made of
// 16-byte packs, and the yardstick for the others. A warp owns one row: a query in the forward pass
// and for dQ, a key for dK and dV. It walks over tiles of 32 rows of the other kind, which the block
// shares in shared memory: first each lane takes one of the 32 and computes its whole product with
// the warp's row, then each lane takes columns and sums over the 32. Every sum has a fixed order.
#include "attention.cuh"

namespace siglip2::cuda::attention {

namespace {

constexpr int kPlainWarps = 8, kPlainThreads = kPlainWarps * 32;
constexpr int kTile = 32;                // rows of a shared tile, one for each lane
constexpr int kMine = kMaxColumns / 32;  // columns of a row that one lane owns, 32 apart

// Rows of shared tiles have an odd length, so that lanes that read a column hit different banks.
__host__ __device__ constexpr int tile_row(int D) { return D | 1; }
// Two tiles, two rows for each warp, and two numbers for each row of a tile and each warp.
constexpr size_t plain_smem(int D) {
  return sizeof(float) * static_cast<size_t>(2 * kTile * tile_row(D) + 2 * kPlainWarps * D +
                                             2 * kPlainWarps * kTile + 2 * kTile);
}
static_assert(plain_smem(kMaxColumns) <= 232448);

struct Shared {
  float *tile_a, *tile_b;      // (kTile, tile_row)
  float *row_a, *row_b;        // this warp's, (D)
  float *weight_a, *weight_b;  // this warp's, (kTile)
  float *stat_a, *stat_b;      // (kTile)

  __device__ Shared(unsigned char* smem, int D) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    tile_a = reinterpret_cast<float*>(smem);
    tile_b = tile_a + kTile * tile_row(D);
    row_a = tile_b + kTile * tile_row(D) + warp * D;
    row_b = row_a + kPlainWarps * D;
    weight_a = tile_b + kTile * tile_row(D) + 2 * kPlainWarps * D + warp * kTile;
    weight_b = weight_a + kPlainWarps * kTile;
    stat_a = tile_b + kTile * tile_row(D) + 2 * kPlainWarps * D + 2 * kPlainWarps * kTile;
    stat_b = stat_a + kTile;
  }
};

// Rows begin … begin + kTile of `from`, by the whole block; zeros from row `end` on.
template <class T>
__device__ void load_tile(float* tile, const T* from, int64_t row, int begin, int end, int D) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * D; i += kPlainThreads) {
    const int r = i / D, d = i % D;
    tile[r * tile_row(D) + d] =
        begin + r < end ? static_cast<float>(from[(begin + r) * row + d]) : 0;
  }
}
template <class T> __device__ void load_row(float* to, const T* from, bool there, int D) {
  for (int d = static_cast<int>(threadIdx.x) % 32; d < D; d += 32)
    to[d] = there ? static_cast<float>(from[d]) : 0;
}
__device__ __forceinline__ float dot(const float* a, const float* b, int D) {
  float sum = 0;
  for (int d = 0; d < D; ++d) sum += a[d] * b[d];
  return sum;
}
// mine[i] += Σ over the tile's rows of weight·row, for this lane's columns.
__device__ void add_rows(float (&mine)[kMine], const float* weight, const float* tile, int D) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = 0; r < kTile; ++r) {
    const float w = weight[r];
#pragma unroll
    for (int i = 0; i < kMine; ++i)
      if (i * 32 + lane < D) mine[i] += w * tile[r * tile_row(D) + i * 32 + lane];
  }
}
template <class T>
__device__ void store_row(T* to, const float (&mine)[kMine], float factor, int D) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kMine; ++i)
    if (i * 32 + lane < D) to[i * 32 + lane] = static_cast<T>(mine[i] * factor);
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, d));
  return v;
}

// ---- forward: one query for each warp -----------------------------------------------------------

template <class T> __global__ void __launch_bounds__(kPlainThreads, 2)
    plain_forward_kernel(const Problem<T> p, int tiles) {
  DYN_SMEM(smem);
  const Shared shared(smem, p.D);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const BlockWork work = block_work(tiles, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  const int first = work.tile * kPlainWarps, i = first + warp;
  const bool there = i < s.Nq;
  const int end =
      p.causal ? min(s.keys, first + kPlainWarps) : s.keys;  // for the block's last query
  load_row(shared.row_a, p.q + head.q_at + i * p.q_row, there, p.D);
  float most = -INFINITY, sum = 0, mine[kMine] = {};
  for (int j = 0; j < end; j += kTile) {
    __syncthreads();
    load_tile(shared.tile_a, p.k + head.k_at, p.k_row, j, s.keys, p.D);
    load_tile(shared.tile_b, p.v + head.v_at, p.v_row, j, s.keys, p.D);
    __syncthreads();
    const bool seen = there && j + lane < s.keys && (!p.causal || j + lane <= i);
    const float score =
        seen ? p.scale * kLog2e * dot(shared.row_a, shared.tile_a + lane * tile_row(p.D), p.D)
             : -INFINITY;
    const float top = fmaxf(most, warp_max(score));
    if (top > -INFINITY) {  // the same in all lanes
      const float shrink = ex2(most - top), weight = ex2(score - top);
      most = top;
      sum = sum * shrink + warp_sum(weight);
#pragma unroll
      for (int c = 0; c < kMine; ++c) mine[c] *= shrink;
      shared.weight_a[lane] = weight;
      __syncwarp();
      add_rows(mine, shared.weight_a, shared.tile_b, p.D);
    }
  }
  if (!there) return;
  const float inverse = sum > 0 ? 1 / sum : 0;
  store_row(p.o + head.o_at + static_cast<int64_t>(i) * p.H * p.D, mine, inverse, p.D);
  if (lane == 0) p.lse[head.lse_at + i] = sum > 0 ? most * kLn2 + logf(sum) : -INFINITY;
}

// ---- backward -----------------------------------------------------------------------------------
// With P = softmax, dP = dO·Vᵀ and δ = Σ dO∘O:  dS = P∘(dP − δ),  dQ = scale·dS·K,
// dK = scale·dSᵀ·Q,  dV = Pᵀ·dO.

// One warp for each (row, head).
template <class T> __global__ void __launch_bounds__(kPlainThreads)
    delta_kernel(const Problem<T> p, int tiles) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const BlockWork work = block_work(tiles, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  const int i = work.tile * kPlainWarps + warp;
  if (i >= head.sample.Nq) return;  // whole warps, and no barrier follows
  const int64_t at = head.o_at + static_cast<int64_t>(i) * p.H * p.D;
  float sum = 0;
  for (int d = lane; d < p.D; d += 32)
    sum += static_cast<float>(p.d_o[at + d]) * static_cast<float>(p.o[at + d]);
  sum = warp_sum(sum);
  if (lane == 0) p.delta[head.lse_at + i] = sum;
}

// dQ: one query for each warp.
template <class T> __global__ void __launch_bounds__(kPlainThreads)
    plain_dq_kernel(const Problem<T> p, int tiles) {
  DYN_SMEM(smem);
  const Shared shared(smem, p.D);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const BlockWork work = block_work(tiles, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  const int first = work.tile * kPlainWarps, i = first + warp, C = p.H * p.D;
  const bool there = i < s.Nq;
  const int end = p.causal ? min(s.keys, first + kPlainWarps) : s.keys;
  load_row(shared.row_a, p.q + head.q_at + i * p.q_row, there, p.D);
  load_row(shared.row_b, p.d_o + head.o_at + static_cast<int64_t>(i) * C, there, p.D);
  const float lse = there ? p.lse[head.lse_at + i] * kLog2e : 0;
  const float delta = there ? p.delta[head.lse_at + i] : 0;
  float mine[kMine] = {};
  for (int j = 0; j < end; j += kTile) {
    __syncthreads();
    load_tile(shared.tile_a, p.k + head.k_at, p.k_row, j, s.keys, p.D);
    load_tile(shared.tile_b, p.v + head.v_at, p.v_row, j, s.keys, p.D);
    __syncthreads();
    const bool seen = there && j + lane < s.keys && (!p.causal || j + lane <= i);
    float ds = 0;
    if (seen) {
      const int at = lane * tile_row(p.D);
      const float score = p.scale * kLog2e * dot(shared.row_a, shared.tile_a + at, p.D);
      ds = ex2(score - lse) * (dot(shared.row_b, shared.tile_b + at, p.D) - delta);
    }
    shared.weight_a[lane] = ds;
    __syncwarp();
    add_rows(mine, shared.weight_a, shared.tile_a, p.D);
  }
  if (!there) return;
  if (p.dq_partial)
    store_row(p.dq_partial + head.o_at + static_cast<int64_t>(i) * C, mine, p.scale, p.D);
  else store_row(p.dq + head.q_at + i * p.q_row, mine, p.scale, p.D);
}

// dK and dV: one key for each warp.
template <class T> __global__ void __launch_bounds__(kPlainThreads)
    plain_dkv_kernel(const Problem<T> p, int tiles) {
  DYN_SMEM(smem);
  const Shared shared(smem, p.D);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const BlockWork work = block_work(tiles, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  const Sample& s = head.sample;
  const int first = work.tile * kPlainWarps, j = first + warp;
  const bool there = j < s.keys;
  load_row(shared.row_a, p.k + head.k_at + j * p.k_row, there, p.D);
  load_row(shared.row_b, p.v + head.v_at + j * p.v_row, there, p.D);
  float dk[kMine] = {}, dv[kMine] = {};
  const int begin = p.causal ? first / kTile * kTile : 0, end = first < s.keys ? s.Nq : 0;
  for (int i = begin; i < end; i += kTile) {
    __syncthreads();
    load_tile(shared.tile_a, p.q + head.q_at, p.q_row, i, s.Nq, p.D);
    load_tile(shared.tile_b, p.d_o + head.o_at, static_cast<int64_t>(p.H) * p.D, i, s.Nq, p.D);
    if (warp == 0 && i + lane < s.Nq) {
      shared.stat_a[lane] = p.lse[head.lse_at + i + lane] * kLog2e;
      shared.stat_b[lane] = p.delta[head.lse_at + i + lane];
    }
    __syncthreads();
    const bool seen = there && i + lane < s.Nq && (!p.causal || j <= i + lane);
    float weight = 0, ds = 0;
    if (seen) {
      const int at = lane * tile_row(p.D);
      const float score = p.scale * kLog2e * dot(shared.row_a, shared.tile_a + at, p.D);
      weight = ex2(score - shared.stat_a[lane]);
      ds = weight * (dot(shared.row_b, shared.tile_b + at, p.D) - shared.stat_b[lane]);
    }
    shared.weight_a[lane] = weight;
    shared.weight_b[lane] = ds;
    __syncwarp();
    add_rows(dv, shared.weight_a, shared.tile_b, p.D);
    add_rows(dk, shared.weight_b, shared.tile_a, p.D);
  }
  if (j >= s.Nk) return;  // keys that are not seen get zeros
  store_row(p.dk + head.k_at + j * p.k_row, dk, p.scale, p.D);
  store_row(p.dv + head.v_at + j * p.v_row, dv, 1.0f, p.D);
}

template <class T> __global__ void __launch_bounds__(kPlainThreads)
    sum_shared_dq_kernel(const Problem<T> p) {
  const int64_t C = static_cast<int64_t>(p.H) * p.D;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
  if (at >= p.Nq * C) return;
  float sum = 0;
  for (int b = 0; b < p.B; ++b) sum += p.dq_partial[static_cast<int64_t>(b) * p.Nq * C + at];
  p.dq[at / C * p.q_row + at % C] = static_cast<T>(sum);
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

template <class T> void plain_forward(Stream& s, const Problem<T>& p) {
  const int tiles = ceil_div(p.Nq, kPlainWarps);
  if (tiles > 0)
    launch(plain_forward_kernel<T>, grid_of(p, tiles), kPlainThreads, plain_smem(p.D), s, p, tiles);
}

template <class T> void compute_delta(Stream& s, const Problem<T>& p) {
  const int tiles = ceil_div(p.Nq, kPlainWarps);
  if (tiles > 0) launch(delta_kernel<T>, grid_of(p, tiles), kPlainThreads, 0, s, p, tiles);
}

template <class T> void plain_backward(Stream& s, const Problem<T>& p) {
  const int q_tiles = ceil_div(p.Nq, kPlainWarps), k_tiles = ceil_div(p.Nk, kPlainWarps);
  const size_t smem = plain_smem(p.D);
  if (p.wants_dq() && q_tiles > 0)
    launch(plain_dq_kernel<T>, grid_of(p, q_tiles), kPlainThreads, smem, s, p, q_tiles);
  if (p.dk && k_tiles > 0)
    launch(plain_dkv_kernel<T>, grid_of(p, k_tiles), kPlainThreads, smem, s, p, k_tiles);
}

template <class T> void sum_shared_dq(Stream& s, const Problem<T>& p) {
  const int64_t elements = static_cast<int64_t>(p.Nq) * p.H * p.D;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(elements, kPlainThreads));
  if (blocks > 0) launch(sum_shared_dq_kernel<T>, blocks, kPlainThreads, 0, s, p);
}

template void plain_forward(Stream&, const Problem<float>&);
template void plain_forward(Stream&, const Problem<__nv_bfloat16>&);
template void plain_backward(Stream&, const Problem<float>&);
template void plain_backward(Stream&, const Problem<__nv_bfloat16>&);
template void compute_delta(Stream&, const Problem<float>&);
template void compute_delta(Stream&, const Problem<__nv_bfloat16>&);
template void sum_shared_dq(Stream&, const Problem<float>&);
template void sum_shared_dq(Stream&, const Problem<__nv_bfloat16>&);

}  // namespace siglip2::cuda::attention
