// CPU embedding (embedding.h). Bound by memory. Backward sorts row numbers by id (counting in two passes over the ids
// would touch the whole vocabulary; a sort touches only what occurs) and gives each run of equal ids to one thread.
#include "embedding.h"
#include <algorithm>
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

// Before any memory is touched: an id from outside must not become an address.
void check_ids(const int32_t* ids, int64_t R, int64_t V) {
  for (int64_t r = 0; r < R; ++r)
    if (ids[r] < 0 || ids[r] >= V)
      throw std::out_of_range(text_of(FaultKind::token_id, r, ids[r], V));
}

template <class T> void add_row(float* to, const T* from, int64_t D) {
  for (int64_t d = 0; d < D; ++d) to[d] += static_cast<float>(from[d]);
}

}  // namespace

void embedding_forward(Stream&, Tensor y, Tensor ids, Tensor table, Tensor position, int64_t R,
                       int64_t V, int64_t L, int64_t D) {
  const auto* id = ids.as<const int32_t>(R);
  check_ids(id, R, V);
  const auto* places = position.as<const float>(L * D);
  dispatch_float(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(R * D);
    dispatch_float(table.dtype, [&](auto u) {
      using U = decltype(u);
      const U* rows = table.as<const U>(V * D);
      parallel_ranges(R, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          const U* a = rows + id[r] * D;
          const float* b = places + r % L * D;
          for (int64_t d = 0; d < D; ++d) out[r * D + d] = static_cast<float>(a[d]) + b[d];
        }
      });
    });
  });
}

void embedding_backward(Stream& s, Tensor dtable, Tensor dposition, Tensor dy, Tensor ids,
                        int64_t R, int64_t V, int64_t L, int64_t D) {
  const auto* id = ids.as<const int32_t>(R);
  check_ids(id, R, V);
  dispatch_float(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* g = dy.as<const T>(R * D);
    if (float* places = dposition.as_or_null<float>(L * D))
      parallel_ranges(L, 1, [&](int64_t l0, int64_t l1) {
        for (int64_t l = l0; l < l1; ++l)
          for (int64_t r = l; r < R; r += L) add_row(places + l * D, g + r * D, D);
      });
    float* rows = dtable.as_or_null<float>(V * D);
    if (!rows) return;
    Scratch<int64_t> order(s, R);
    int64_t* sorted =
        order.data();  // id in the high half, row in the low: one comparison sorts by both
    for (int64_t r = 0; r < R; ++r) sorted[r] = static_cast<int64_t>(id[r]) << 32 | r;
    std::sort(sorted, sorted + R);
    parallel_ranges(R, 64, [&](int64_t i0, int64_t i1) {
      // A run of equal ids belongs to the range in which it begins.
      while (i0 < i1 && i0 > 0 && sorted[i0] >> 32 == sorted[i0 - 1] >> 32) ++i0;
      if (i0 == i1) return;
      while (i1 < R && sorted[i1] >> 32 == sorted[i1 - 1] >> 32) ++i1;
      for (int64_t i = i0; i < i1; ++i)
        add_row(rows + (sorted[i] >> 32) * D, g + (sorted[i] & 0xffffffff) * D, D);
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(embedding_forward);
OP(embedding_backward);
