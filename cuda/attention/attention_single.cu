// One query for each sample (MAP pooling, the last text token): bound by reading K and V once, so no
// tensor cores. A block owns a head. Eight lanes share a key and hold kPacks 16-byte packs of its
// row each, so that a warp reads four whole rows at a time; each group of eight lanes runs its own
// online softmax over every sixteenth key, two keys per step to keep enough loads in flight, and the
// groups are combined at the end in a fixed order.
#include "attention.cuh"

namespace siglip2::cuda::attention {

namespace {

constexpr int kSingleWarps = 4, kSingleThreads = kSingleWarps * 32;
constexpr int kLanes = 8, kGroups = kSingleThreads / kLanes;
// Keys per step: two rows of K and two of V fit the registers up to 16 columns a lane.
template <class T, int kPacks> constexpr int kKeys = kPacks * Pack<T>::size <= 16 ? 2 : 1;

// Sum over the eight lanes of a group.
__device__ __forceinline__ float group_sum(float v) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}

// This lane's packs of a row, pack c of them at column (c·8 + lane)·size; zeros beyond D.
template <class T, int kPacks> struct Row {
  static constexpr int kSize = Pack<T>::size;
  float x[kPacks][kSize];

  __device__ __forceinline__ static int column(int c) {
    return (c * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kSize;
  }
  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[c][e] = 0;
  }
  __device__ __forceinline__ void load(const T* row, bool there, int D) {
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
      (there && column(c) < D ? Pack<T>::load(row + column(c)) : Pack<T>::zero()).unpack(x[c]);
  }
  __device__ __forceinline__ void store(T* row, float factor, int D) const {
#pragma unroll
    for (int c = 0; c < kPacks; ++c) {
      if (column(c) >= D) continue;
      float y[kSize];
#pragma unroll
      for (int e = 0; e < kSize; ++e) y[e] = x[c][e] * factor;
      Pack<T>::from(y).store(row + column(c));
    }
  }
  __device__ __forceinline__ float dot(const Row& b) const {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum += x[c][e] * b.x[c][e];
    return group_sum(sum);
  }
  __device__ __forceinline__ void add(float factor, const Row& b) {
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[c][e] += factor * b.x[c][e];
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int c = 0; c < kPacks; ++c)
#pragma unroll
      for (int e = 0; e < kSize; ++e) x[c][e] *= factor;
  }
};

// Room for one row of each group, and one number of each.
template <class T, int kPacks> constexpr size_t single_smem =
    sizeof(float) * kGroups * (kPacks * kLanes * Pack<T>::size + 1);

// This group's row to shared memory.
template <class T, int kPacks>
__device__ __forceinline__ void put_row(float* shared, const Row<T, kPacks>& row) {
  constexpr int kColumns = kPacks * kLanes * Pack<T>::size;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll
  for (int c = 0; c < kPacks; ++c)
#pragma unroll
    for (int e = 0; e < Row<T, kPacks>::kSize; ++e)
      shared[group * kColumns + Row<T, kPacks>::column(c) + e] = row.x[c][e];
}
// Column d summed over the groups.
template <class T, int kPacks>
__device__ __forceinline__ float column_sum(const float* shared, int d) {
  constexpr int kColumns = kPacks * kLanes * Pack<T>::size;
  float sum = 0;
  for (int g = 0; g < kGroups; ++g) sum += shared[g * kColumns + d];
  return sum;
}

template <class T, int kPacks> __global__ void __launch_bounds__(kSingleThreads)
    single_forward_kernel(const Problem<T> p) {
  DYN_SMEM(smem);
  float* const rows = reinterpret_cast<float*>(smem);
  float* const tops = rows + kGroups * kPacks * kLanes * Pack<T>::size;
  constexpr int kUnroll = kKeys<T, kPacks>;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const BlockWork work = block_work(1, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  if (head.sample.Nq == 0) return;  // the whole block: a packed sample whose starts do not fit
  const int keys = head.sample.keys;
  Row<T, kPacks> q, sum;
  q.load(p.q + head.q_at, true, p.D);
  q.scale(p.scale * kLog2e);
  sum.zero();
  float most = -INFINITY, total = 0;
  for (int j0 = 0; j0 < keys; j0 += kGroups * kUnroll) {
    Row<T, kPacks> k[kUnroll], v[kUnroll];
    float score[kUnroll], top = most;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = j0 + u * kGroups + group;
      k[u].load(p.k + head.k_at + j * p.k_row, j < keys, p.D);
      v[u].load(p.v + head.v_at + j * p.v_row, j < keys, p.D);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float s = q.dot(k[u]);
      score[u] = j0 + u * kGroups + group < keys ? s : -INFINITY;
      top = fmaxf(top, score[u]);
    }
    const float base = top == -INFINITY ? 0 : top;  // no key yet: every weight is 2^−∞
    const float shrink = ex2(most - base);
    most = top;
    total *= shrink;
    sum.scale(shrink);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const float weight = ex2(score[u] - base);
      total += weight;
      sum.add(weight, v[u]);
    }
  }
  // The groups' sums, relative to the greatest maximum.
  if (threadIdx.x % kLanes == 0) tops[group] = most;
  __syncthreads();
  float top = -INFINITY;
  for (int g = 0; g < kGroups; ++g) top = fmaxf(top, tops[g]);
  const float shrink = most == -INFINITY ? 0 : ex2(most - top);
  sum.scale(shrink);
  put_row(rows, sum);
  __syncthreads();
  if (threadIdx.x % kLanes == 0) tops[group] = total * shrink;
  __syncthreads();
  float all = 0;
  for (int g = 0; g < kGroups; ++g) all += tops[g];
  const float inverse = all > 0 ? 1 / all : 0;
  for (int d = static_cast<int>(threadIdx.x); d < p.D; d += kSingleThreads)
    p.o[head.o_at + d] = static_cast<T>(column_sum<T, kPacks>(rows, d) * inverse);
  if (threadIdx.x == 0) p.lse[head.lse_at] = all > 0 ? top * kLn2 + logf(all) : -INFINITY;
}

template <class T, int kPacks> __global__ void __launch_bounds__(kSingleThreads)
    single_backward_kernel(const Problem<T> p) {
  DYN_SMEM(smem);
  float* const rows = reinterpret_cast<float*>(smem);
  constexpr int kUnroll = kKeys<T, kPacks>;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const BlockWork work = block_work(1, p.H);
  const Head<T> head = head_of(p, work.b, work.h);
  if (head.sample.Nq == 0) return;
  const int keys = head.sample.keys, all = p.dk ? head.sample.Nk : keys;
  Row<T, kPacks> q, d_o, o, dq;
  q.load(p.q + head.q_at, true, p.D);
  d_o.load(p.d_o + head.o_at, true, p.D);
  o.load(p.o + head.o_at, true, p.D);
  dq.zero();
  const float delta = d_o.dot(o), lse = p.lse[head.lse_at] * kLog2e;
  for (int j0 = 0; j0 < all; j0 += kGroups * kUnroll) {
    Row<T, kPacks> k[kUnroll], v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = j0 + u * kGroups + group;
      k[u].load(p.k + head.k_at + j * p.k_row, j < keys, p.D);
      v[u].load(p.v + head.v_at + j * p.v_row, j < keys, p.D);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = j0 + u * kGroups + group;
      const float score = p.scale * kLog2e * q.dot(k[u]), dp = d_o.dot(v[u]);
      const float weight = j < keys ? ex2(score - lse) : 0, ds = weight * (dp - delta);
      dq.add(ds, k[u]);
      if (!p.dk || j >= all) continue;
      q.store(p.dk + head.k_at + j * p.k_row, ds * p.scale, p.D);
      d_o.store(p.dv + head.v_at + j * p.v_row, weight, p.D);
    }
  }
  if (!p.wants_dq()) return;  // the whole block
  put_row(rows, dq);
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < p.D; d += kSingleThreads) {
    const float x = column_sum<T, kPacks>(rows, d) * p.scale;
    if (p.dq_partial) p.dq_partial[head.o_at + d] = x;
    else p.dq[head.q_at + d] = static_cast<T>(x);
  }
}

// f(how many packs a lane holds): the least that D columns need.
template <class T, class F> void dispatch_packs(int D, F&& f) {
  constexpr int kColumns = kLanes * Pack<T>::size;
  if (D <= kColumns) f(std::integral_constant<int, 1>{});
  else if (D <= 2 * kColumns) f(std::integral_constant<int, 2>{});
  else if (D <= 4 * kColumns) f(std::integral_constant<int, 4>{});
  else f(std::integral_constant<int, kMaxColumns / kColumns>{});
}

}  // namespace

template <class T> void single_forward(Stream& s, const Problem<T>& p) {
  dispatch_packs<T>(p.D, [&](auto packs) {
    launch(single_forward_kernel<T, packs()>, grid_of(p, 1), kSingleThreads,
           single_smem<T, packs()>, s, p);
  });
}
template <class T> void single_backward(Stream& s, const Problem<T>& p) {
  dispatch_packs<T>(p.D, [&](auto packs) {
    launch(single_backward_kernel<T, packs()>, grid_of(p, 1), kSingleThreads,
           single_smem<T, packs()>, s, p);
  });
}

template void single_forward(Stream&, const Problem<float>&);
template void single_forward(Stream&, const Problem<__nv_bfloat16>&);
template void single_backward(Stream&, const Problem<float>&);
template void single_backward(Stream&, const Problem<__nv_bfloat16>&);

}  // namespace siglip2::cuda::attention
