// Token rows plus positions, and their gradients (native/ops/embedding.h). Bound by memory.
//
// The gradient of the table is a scatter-add. Float atomics would give other bits at every run, so the rows are sorted
// by id (sort_ids.cuh) and every run of equal ids is added up in order. Padding makes one id own half of all rows: a
// run is therefore cut at every 32nd place of the sorted order. What begins and ends inside a piece goes straight to the
// table; what crosses a cut becomes a row of the next, sixteen times shorter level, until one piece is left.
#include "../native/ops/embedding.h"
#include "column_sums.cuh"
#include "common.cuh"
#include "sort_ids.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kWarps = 8;      // rows of a block, forward
constexpr unsigned kThreads = 128;  // columns (packs) of a block, backward
constexpr int64_t kPiece = 32;      // sorted rows that one block adds up
constexpr uint32_t kNobody = ~0u;   // key of an unused row of a level

// ---- forward ------------------------------------------------------------------------------------

template <class T, int V> __global__ void __launch_bounds__(kWarps* kWarp)
    embedding_forward_kernel(T* y,                   // (R, D)
                             const int32_t* ids,     // (R)
                             const float* table,     // (rows, D)
                             const float* position,  // (L, D)
                             Faults* faults, int64_t R, int64_t rows, int64_t L, int64_t D) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp,
                lane = threadIdx.x % kWarp;
  if (r >= R) return;
  const int32_t id = ids[r];
  const bool valid = id >= 0 && id < rows;  // an id from outside must not become an address
  if (!valid && lane == 0) note_fault(faults, FaultKind::token_id, r, id, rows);
  for (int64_t d = lane * V; d < D; d += kWarp * V) {
    float a[V] = {}, b[V];
    if (valid) load_values(a, table + id * D + d);
    load_values(b, position + r % L * D + d);
#pragma unroll
    for (int i = 0; i < V; ++i) a[i] += b[i];
    store_values(y + r * D + d, a);
  }
}

// ---- backward -----------------------------------------------------------------------------------

// The rows of one level: key (id) and place in x of each; a negative place stands for zeros.
template <class X> struct Level {
  const uint32_t* keys;  // (n)
  const int32_t* places;
  const X* x;  // (…, D)
  int64_t n;
};
// What crosses the cuts: two rows for each piece, the run that comes in and the one that goes out.
struct NextLevel {
  uint32_t* keys;  // (2 · pieces)
  int32_t* places;
  float* x;  // (2 · pieces, D)
};

template <class X, int V> __global__ void __launch_bounds__(kThreads)
    embedding_scatter_kernel(float* dtable,  // (rows, D) +=
                             Level<X> level, NextLevel next, int64_t rows, int64_t D) {
  const int64_t piece = blockIdx.x, begin = piece * kPiece;
  const int64_t end = begin + kPiece < level.n ? begin + kPiece : level.n;
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * V;
  const bool writes_keys = blockIdx.y == 0 && threadIdx.x == 0;
  if (writes_keys && next.keys)
    for (int k = 0; k < 2; ++k) {
      next.keys[2 * piece + k] = kNobody;
      next.places[2 * piece + k] = -1;
    }
  if (d >= D) return;
  for (int64_t i = begin; i < end;) {
    const uint32_t key = level.keys[i];
    const bool comes_in = i == begin && begin > 0 && level.keys[begin - 1] == key;
    float total[V] = {};
    for (; i < end && level.keys[i] == key; ++i) {
      const int32_t place = level.places[i];
      if (place < 0 || key >= rows) continue;
      float v[V];
      load_values(v, level.x + place * D + d);
#pragma unroll
      for (int k = 0; k < V; ++k) total[k] += v[k];
    }
    if (key >= rows) continue;  // outside the table, or nobody's
    const bool goes_out = i == end && end < level.n && level.keys[end] == key;
    if (!comes_in && !goes_out) {
      float old[V];
      load_values(old, dtable + key * D + d);
#pragma unroll
      for (int k = 0; k < V; ++k) old[k] += total[k];
      store_values(dtable + key * D + d, old);
      continue;
    }
    const int64_t slot = 2 * piece + (comes_in ? 0 : 1);
    store_values(next.x + slot * D + d, total);
    if (!writes_keys) continue;
    next.keys[slot] = key;
    next.places[slot] = static_cast<int32_t>(slot);
    if (comes_in && goes_out)
      next.keys[slot + 1] = key;  // no row, but a link: the run goes on behind it
  }
}

// Adds the rows of a level to the table, and then what crossed its cuts.
template <int V, class X>
void scatter(Stream& s, float* dtable, const Level<X>& level, int64_t rows, int64_t D) {
  const int64_t pieces = ceil_div(level.n, kPiece), left = pieces > 1 ? 2 * pieces : 0;
  Scratch<uint32_t> keys(s, left);
  Scratch<int32_t> places(s, left);
  Scratch<float> x(s, left * D);
  launch(embedding_scatter_kernel<X, V>,
         dim3(static_cast<unsigned>(pieces),
              static_cast<unsigned>(ceil_div<int64_t>(D, V * kThreads))),
         kThreads, 0, s, dtable, level, NextLevel{keys.data(), places.data(), x.data()}, rows, D);
  if (left) scatter<V, float>(s, dtable, {keys.data(), places.data(), x.data(), left}, rows, D);
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void embedding_forward(Stream& s, Tensor y, Tensor ids, Tensor table, Tensor position, int64_t R,
                       int64_t V, int64_t L, int64_t D) {
  if (R == 0 || D == 0) return;
  dispatch_element(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* const to = y.as<T>(R * D);
    const float *const rows = table.as<const float>(V * D), *const places =
                                                                position.as<const float>(L * D);
    dispatch_packs<T>(D % Pack<T>::size == 0 && aligned_16(to, rows, places), [&](auto v) {
      launch(embedding_forward_kernel<T, v.value>,
             static_cast<unsigned>(ceil_div<int64_t>(R, kWarps)), kWarps * kWarp, 0, s, to,
             ids.as<const int32_t>(R), rows, places, s.faults(), R, V, L, D);
    });
  });
}

void embedding_backward(Stream& s, Tensor dtable, Tensor dposition, Tensor dy, Tensor ids,
                        int64_t R, int64_t V, int64_t L, int64_t D) {
  if (R == 0 || D == 0) return;
  if (R > INT32_MAX)
    throw std::invalid_argument("embedding_backward: there are more than 2^31 - 1 ids");
  const int32_t* const id = ids.as<const int32_t>(R);
  dispatch_element(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* const g = dy.as<const T>(R * D);
    if (float* const places = dposition.as_or_null<float>(L * D))
      column_sums<true>(s, places, g, R * D, L * D);
    float* const rows = dtable.as_or_null<float>(V * D);
    if (!rows) return;
    const SortedIds sorted(s, id, R, V);
    dispatch_packs<T>(D % Pack<T>::size == 0 && aligned_16(rows, g), [&](auto v) {
      scatter<v.value, T>(s, rows, {sorted.keys.data(), sorted.rows.data(), g, R}, V, D);
    });
  });
}

}  // namespace siglip2::cuda
