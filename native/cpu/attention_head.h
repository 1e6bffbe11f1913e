// Attention of one head of one sample, forward and backward, on f32 copies of its rows. Tiles are kRows queries by kKeys
// keys: the scores of one tile fit the L1 cache, and softmax is online over key tiles, so memory grows with N and never
// with N². A single query (MAP pooling) is bound by reading K and V once and takes a path of its own, without packing.
#pragma once
#include <algorithm>
#include <limits>
#include "row_sums.h"
#include "tile_gemm.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kRows = 48, kKeys = 128;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape {
  int64_t B, H, Nq, Nk, Tq, Tk, D;
  bool q_shared, causal;
  float scale;
  const int32_t *lengths, *q_starts, *k_starts;

  int64_t columns() const { return round_up(D, kLanes); }
  int64_t ld() const { return leading(D); }                     // row of a packed Q, K, V, O
  int64_t ldt() const { return leading(std::min(Nk, kKeys)); }  // row of a tile of scores, Kᵀ or Vᵀ
};

// One sample: its rows of queries and of keys.
struct Sample {
  int64_t q_begin, Nq, k_begin, Nk;
  int64_t keys;    // that any of its queries sees
  int64_t q_rows;  // where its queries begin in q and dq: 0 when they are shared

  Sample(const Shape& s, int64_t b)
      : q_begin(s.q_starts ? s.q_starts[b] : b * s.Nq),
        Nq(s.q_starts ? s.q_starts[b + 1] - q_begin : s.Nq),
        k_begin(s.k_starts ? s.k_starts[b] : b * s.Nk),
        Nk(s.k_starts ? s.k_starts[b + 1] - k_begin : s.Nk),
        keys(s.lengths ? std::clamp<int64_t>(s.lengths[b], 0, Nk) : Nk),
        q_rows(s.q_shared ? 0 : q_begin) {
    if (s.causal) keys = std::min(keys, Nq);
  }
};

template <class T> void zero_rows(T* out, int64_t row, int64_t n, int64_t D) {
  for (int64_t r = 0; r < n; ++r)
    for (int64_t d = 0; d < D; ++d) out[r * row + d] = 0.0f;
}

// One row of a tile in the online softmax: scores become probabilities relative to the new maximum, and what was
// summed before, l and o, is rescaled to it. Only the first `valid` of the n scores count; the others become 0.
void softmax_row(float* score, int64_t n, int64_t valid, float* m, float* l, float* o, int64_t D) {
  if (valid > 0) {
    const int64_t whole = round_up(valid, kLanes);
    for (int64_t j = valid; j < whole; ++j) score[j] = std::numeric_limits<float>::lowest();
    Vec most = load(score);
    for (int64_t j = kLanes; j < whole; j += kLanes) most = larger(load(score + j), most);
    const float top = std::max(*m, max_of(most));
    Vec sum{};
    for (int64_t j = 0; j < whole; j += kLanes) {
      const Vec p = exp2_of(load(score + j) - top);
      store(score + j, p);
      sum += p;
    }
    if (top != *m && *m != -kInfinity) {
      const float shrink = exp2_of(splat(*m - top))[0];
      *l *= shrink;
      for (int64_t d = 0; d < D; d += kLanes) store(o + d, load(o + d) * shrink);
    }
    *l += sum_of(sum);
    *m = top;
  }
  for (int64_t j = std::max<int64_t>(0, valid); j < n; ++j) score[j] = 0;
}

// The same row in backward: score → p = 2^(score − lse), dp → ds = p·(dp − δ).
void gradient_row(float* score, float* dp, int64_t n, int64_t valid, float lse, float delta) {
  for (int64_t j = 0; j < valid; j += kLanes) {
    const Vec p = exp2_of(load(score + j) - lse);
    store(score + j, p);
    store(dp + j, p * (load(dp + j) - delta));
  }
  for (int64_t j = std::max<int64_t>(0, valid); j < n; ++j) score[j] = dp[j] = 0;
}

int64_t forward_floats(const Shape& s) {
  const int64_t tiles = (s.Nk + kKeys - 1) / kKeys;
  return tiles * s.columns() * s.ldt() + (s.Nk + kLanes + 2 * kRows) * s.ld() + kRows * s.ldt();
}

// Query rows begin … end of one head.
template <class T> void forward_head(const Shape& s, const Sample& sample, int64_t begin,
                                     int64_t end, T* o, int64_t o_row, float* lse, const T* q,
                                     int64_t q_row, const T* k, int64_t k_row, const T* v,
                                     int64_t v_row, float* space) {
  const int64_t ld = s.ld(), ldt = s.ldt(),
                nk = s.causal ? std::min(sample.keys, end) : sample.keys;
  if (nk == 0) {
    zero_rows(o + begin * o_row, o_row, end - begin, s.D);
    std::fill(lse + begin, lse + end, -kInfinity);
    return;
  }
  const auto take = [&](int64_t n) { return std::exchange(space, space + n); };
  float* some = take(kLanes * ld);
  float* vs = take(s.Nk * ld);
  float* qs = take(kRows * ld);
  float* os = take(kRows * ld);
  float* scores = take(kRows * ldt);
  float* kt = take(0);
  const int64_t kt_tile = s.columns() * ldt;
  for (int64_t j = 0; j < nk; j += kKeys)
    pack_transposed(kt + j / kKeys * kt_tile, ldt, some, ld, k + j * k_row, k_row,
                    std::min(kKeys, nk - j), s.D);
  pack_rows(vs, ld, v, v_row, nk, s.D, 1.0f);
  for (int64_t i = begin; i < end; i += kRows) {
    const int64_t rows = std::min(kRows, end - i), seen = s.causal ? std::min(nk, i + rows) : nk;
    float m[kRows], l[kRows];
    std::fill(m, m + kRows, -kInfinity);
    std::fill(l, l + kRows, 0.0f);
    pack_rows(qs, ld, q + i * q_row, q_row, rows, s.D, s.scale * kLog2e);
    for (int64_t j = 0; j < seen; j += kKeys) {
      const int64_t n = std::min(kKeys, seen - j);
      tile_gemm<false>(rows, n, s.D, qs, ld, kt + j / kKeys * kt_tile, ldt, scores, ldt, false);
      for (int64_t r = 0; r < rows; ++r)
        softmax_row(scores + r * ldt, n, s.causal ? std::min(n, i + r + 1 - j) : n, m + r, l + r,
                    os + r * ld, s.D);
      tile_gemm<false>(rows, s.D, n, scores, ldt, vs + j * ld, ld, os, ld, j > 0);
    }
    for (int64_t r = 0; r < kRows; r += kLanes) {  // rows beyond the block hold anything
      store(m + r, (load(m + r) + log2_of(load(l + r))) * kLn2);
      store(l + r, 1.0f / load(l + r));
    }
    std::copy_n(m, rows, lse + i);
    copy_rows(o + i * o_row, o_row, os, ld, rows, s.D, [&](int64_t r) { return l[r]; });
  }
}

int64_t backward_floats(const Shape& s) {
  return 2 * s.columns() * s.ldt() + (kLanes + 3 * s.Nq + 3 * kKeys) * s.ld() +
         2 * kRows * s.ldt() + round_up(s.Nq, 16);
}

// One head; G is float where dq is a partial sum. Null outputs are not computed.
template <class T, class G> void backward_head(const Shape& s, const Sample& sample, G* dq,
                                               int64_t dq_row, T* dk, T* dv, const T* d_o,
                                               const T* o, int64_t o_row, const float* lse,
                                               const T* q, int64_t q_row, const T* k, int64_t k_row,
                                               const T* v, int64_t v_row, float* space) {
  const int64_t ld = s.ld(), ldt = s.ldt(), Nq = sample.Nq, nk = sample.keys;
  if (dk) zero_rows(dk + nk * k_row, k_row, sample.Nk - nk, s.D);
  if (dv) zero_rows(dv + nk * v_row, v_row, sample.Nk - nk, s.D);
  if (nk == 0) {
    if (dq) zero_rows(dq, dq_row, Nq, s.D);
    return;
  }
  const auto take = [&](int64_t n) { return std::exchange(space, space + n); };
  float* some = take(kLanes * ld);
  float* qs = take(Nq * ld);
  float* dos = take(Nq * ld);
  float* dqs = take(Nq * ld);
  float* ks = take(kKeys * ld);
  float* dks = take(kKeys * ld);
  float* dvs = take(kKeys * ld);
  float* scores = take(kRows * ldt);
  float* dps = take(kRows * ldt);
  float* kt = take(s.columns() * ldt);
  float* vt = take(s.columns() * ldt);
  float* delta = take(Nq);
  pack_rows(qs, ld, q, q_row, Nq, s.D, s.scale * kLog2e);
  pack_rows(dos, ld, d_o, o_row, Nq, s.D, 1.0f);
  for (int64_t i = 0; i < Nq; ++i) {  // δ = Σ dO∘O = Σ P∘dP
    const float* a = dos + i * ld;
    const T* b = o + i * o_row;
    delta[i] = row_sum(s.D, [a, b](int64_t d) { return a[d] * static_cast<float>(b[d]); });
  }
  for (int64_t j = 0; j < nk; j += kKeys) {
    const int64_t keys = std::min(kKeys, nk - j);
    pack_transposed(kt, ldt, some, ld, k + j * k_row, k_row, keys, s.D);
    pack_transposed(vt, ldt, some, ld, v + j * v_row, v_row, keys, s.D);
    pack_rows(ks, ld, k + j * k_row, k_row, keys, s.D, 1.0f);
    std::fill(dks, dks + keys * ld, 0.0f);
    std::fill(dvs, dvs + keys * ld, 0.0f);
    for (int64_t i = s.causal ? j / kRows * kRows : 0; i < Nq; i += kRows) {
      const int64_t rows = std::min(kRows, Nq - i),
                    n = s.causal ? std::min(keys, i + rows - j) : keys;
      tile_gemm<false>(rows, n, s.D, qs + i * ld, ld, kt, ldt, scores, ldt, false);
      tile_gemm<false>(rows, n, s.D, dos + i * ld, ld, vt, ldt, dps, ldt, false);
      for (int64_t r = 0; r < rows; ++r)
        gradient_row(scores + r * ldt, dps + r * ldt, n, s.causal ? std::min(n, i + r + 1 - j) : n,
                     lse[i + r] * kLog2e, delta[i + r]);
      if (dk) {
        tile_gemm<true>(n, s.D, rows, scores, ldt, dos + i * ld, ld, dvs, ld, true);
        tile_gemm<true>(n, s.D, rows, dps, ldt, qs + i * ld, ld, dks, ld, true);
      }
      if (dq) tile_gemm<false>(rows, s.D, n, dps, ldt, ks, ld, dqs + i * ld, ld, j > 0);
    }
    if (dk) {
      copy_rows(dk + j * k_row, k_row, dks, ld, keys, s.D,
                [](int64_t) { return kLn2; });  // scale came with Q
      copy_rows(dv + j * v_row, v_row, dvs, ld, keys, s.D, [](int64_t) { return 1.0f; });
    }
  }
  if (dq) copy_rows(dq, dq_row, dqs, ld, Nq, s.D, [&](int64_t) { return s.scale; });
}

template <class T> float dot(const float* a, const T* b, int64_t D) {
  return row_sum(D, [a, b](int64_t d) { return a[d] * static_cast<float>(b[d]); });
}

int64_t single_floats(const Shape& s) { return 3 * s.ld() + 2 * kKeys; }

// One query: K and V are read where they lie, kKeys of them at a time.
template <class T> void forward_single(const Shape& s, const Sample& sample, T* o, float* lse,
                                       const T* q, const T* k, int64_t k_row, const T* v,
                                       int64_t v_row, float* space) {
  const int64_t D = s.D, nk = sample.keys;
  float *qs = space, *os = qs + s.ld(), *scores = os + s.ld();
  for (int64_t d = 0; d < D; ++d) qs[d] = s.scale * kLog2e * static_cast<float>(q[d]);
  std::fill(os, os + s.ld(), 0.0f);
  float m = -kInfinity, l = 0;
  for (int64_t j = 0; j < nk; j += kKeys) {
    const int64_t n = std::min(kKeys, nk - j);
    for (int64_t i = 0; i < n; ++i) scores[i] = dot(qs, k + (j + i) * k_row, D);
    softmax_row(scores, n, n, &m, &l, os, D);
    const T* vj = v + j * v_row;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      const T *v0 = vj + i * v_row, *v1 = v0 + v_row, *v2 = v1 + v_row, *v3 = v2 + v_row;
      const float p0 = scores[i], p1 = scores[i + 1], p2 = scores[i + 2], p3 = scores[i + 3];
      for (int64_t d = 0; d < D; ++d)
        os[d] += (p0 * static_cast<float>(v0[d]) + p1 * static_cast<float>(v1[d])) +
                 (p2 * static_cast<float>(v2[d]) + p3 * static_cast<float>(v3[d]));
    }
    for (; i < n; ++i)
      for (int64_t d = 0; d < D; ++d) os[d] += scores[i] * static_cast<float>(vj[i * v_row + d]);
  }
  for (int64_t d = 0; d < D; ++d) o[d] = nk ? os[d] / l : 0.0f;
  *lse = nk ? (m + log2_of(splat(l))[0]) * kLn2 : -kInfinity;
}

template <class T, class G> void backward_single(const Shape& s, const Sample& sample, G* dq, T* dk,
                                                 T* dv, const T* d_o, const T* o, float lse,
                                                 const T* q, const T* k, int64_t k_row, const T* v,
                                                 int64_t v_row, float* space) {
  const int64_t D = s.D, nk = sample.keys;
  float *qs = space, *dos = qs + s.ld(), *dqs = dos + s.ld(), *scores = dqs + s.ld(),
        *dps = scores + kKeys;
  pack_rows(qs, 0, q, 0, 1, D, s.scale);
  pack_rows(dos, 0, d_o, 0, 1, D, 1.0f);
  std::fill(dqs, dqs + D, 0.0f);
  const float delta = dot(dos, o, D);
  for (int64_t j = 0; j < nk; j += kKeys) {
    const int64_t n = std::min(kKeys, nk - j);
    for (int64_t i = 0; i < n; ++i) {
      scores[i] = kLog2e * dot(qs, k + (j + i) * k_row, D);
      dps[i] = dot(dos, v + (j + i) * v_row, D);
    }
    gradient_row(scores, dps, n, n, lse * kLog2e, delta);
    for (int64_t i = 0; i < n; ++i) {
      const T* ki = k + (j + i) * k_row;
      const float p = scores[i], ds = dps[i];
      for (int64_t d = 0; d < D; ++d) dqs[d] += ds * static_cast<float>(ki[d]);
      if (!dk) continue;
      T *dki = dk + (j + i) * k_row, *dvi = dv + (j + i) * v_row;
      for (int64_t d = 0; d < D; ++d) dki[d] = ds * qs[d];
      for (int64_t d = 0; d < D; ++d) dvi[d] = p * dos[d];
    }
  }
  if (dk) {
    zero_rows(dk + nk * k_row, k_row, sample.Nk - nk, D);
    zero_rows(dv + nk * v_row, v_row, sample.Nk - nk, D);
  }
  for (int64_t d = 0; dq && d < D; ++d) dq[d] = s.scale * dqs[d];
}

}  // namespace

}  // namespace siglip2::cpu::ISA
