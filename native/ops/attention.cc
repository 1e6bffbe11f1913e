// CPU attention (attention.h). Bound by multiply-adds: 4·Nq·Nk·D forward and 10·Nq·Nk·D backward per head, beside one
// exponential per score, so everything runs through tile_gemm.h on f32 copies of one head's rows, packed once per task.
// A task owns a (sample, head): K and V of a head stay in the L2 cache, the sums over queries and keys need no atomics
// and their order is fixed.
#include "attention.h"
#include <numeric>
#include <vector>
#include "../cpu/attention_head.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

void check_starts(const char* name, const int32_t* starts, int64_t B, int64_t N, int64_t T) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument(std::string("attention: packed ") + name +
                                " must begin at row 0 and end at row " + std::to_string(T) +
                                ", each with 0 to " + std::to_string(N) + " rows, but " + what);
  };
  if (starts[0] != 0) fail("the first begins at row " + std::to_string(starts[0]));
  for (int64_t b = 0; b < B; ++b) {
    const int64_t n = static_cast<int64_t>(starts[b + 1]) - starts[b];
    if (n < 0 || n > N) fail("number " + std::to_string(b) + " has " + std::to_string(n));
  }
  if (starts[B] != T) fail("the last ends at row " + std::to_string(starts[B]));
}

Shape checked_shape(Tensor key_lengths, Tensor q_starts, Tensor k_starts, int64_t B, int64_t H,
                    int64_t Nq, int64_t Nk, int64_t Tq, int64_t Tk, int64_t D, bool q_shared,
                    bool causal, float scale) {
  const Shape s{B,
                H,
                Nq,
                Nk,
                Tq,
                Tk,
                D,
                q_shared,
                causal,
                scale,
                key_lengths.as_or_null<const int32_t>(B),
                q_starts.as_or_null<const int32_t>(B + 1),
                k_starts.as_or_null<const int32_t>(B + 1)};
  if ((q_shared && s.q_starts) || (s.lengths && s.k_starts))
    throw std::invalid_argument("attention: packed rows exclude shared queries and key lengths");
  if ((!s.q_starts && Tq != B * Nq) || (!s.k_starts && Tk != B * Nk))
    throw std::invalid_argument("attention: rows are not samples times positions");
  if (s.q_starts) check_starts("queries", s.q_starts, B, Nq, Tq);
  if (s.k_starts && s.k_starts != s.q_starts) check_starts("keys", s.k_starts, B, Nk, Tk);
  return s;
}

// One of q, k, v, o and their gradients: rows of H heads of D columns.
template <class T> struct View {
  T* data;
  int64_t row;
  T* at(int64_t t, int64_t column) const { return data ? data + t * row + column : nullptr; }
};
template <class T>
View<T> view(const Tensor& t, int64_t rows, int64_t offset, int64_t row, int64_t width) {
  if (!t) return {nullptr, 0};
  if (offset < 0 || row < width || offset + width > row)
    throw std::invalid_argument("attention: heads do not fit into a row");
  return {t.as<T>(rows * row) + offset, row};
}

// The samples, those with most work first: packed ones differ much, and a long one that comes last keeps a thread busy
// alone. Dense ones keep their order.
std::vector<int64_t> longest_first(const Shape& s) {
  std::vector<int64_t> order(s.B);
  std::iota(order.begin(), order.end(), 0);
  if (s.q_starts || s.k_starts || s.lengths)
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const Sample x(s, a), y(s, b);
      return x.Nq * x.keys > y.Nq * y.keys;
    });
  return order;
}

// f(task, this thread's workspace) for every task.
template <class F> void each_task(Stream& stream, int64_t tasks, int64_t floats, F&& f) {
  const int64_t each =
      round_up(floats, 1024) + 16;  // the odd cache line keeps threads' rows in different sets
  Scratch<float> space(stream, thread_count() * each);
  parallel_items(tasks, [&](int64_t t) { f(t, space.data() + worker_index() * each); });
}

}  // namespace

void attention_forward(Stream& stream, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v,
                       Tensor key_lengths, Tensor q_starts, Tensor k_starts, int64_t B, int64_t H,
                       int64_t Nq, int64_t Nk, int64_t Tq, int64_t Tk, int64_t D, int64_t q_offset,
                       int64_t q_row, int64_t k_offset, int64_t k_row, int64_t v_offset,
                       int64_t v_row, bool q_shared, bool causal, float scale) {
  const Shape s = checked_shape(key_lengths, q_starts, k_starts, B, H, Nq, Nk, Tq, Tk, D, q_shared,
                                causal, scale);
  float* stats = lse.as<float>(Tq * H);
  const std::vector<int64_t> order = longest_first(s);
  dispatch_float(o.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t C = H * D;
    const auto out = view<T>(o, Tq, 0, C, C);
    const auto qv = view<const T>(q, q_shared ? Nq : Tq, q_offset, q_row, C);
    const auto kv = view<const T>(k, Tk, k_offset, k_row, C),
               vv = view<const T>(v, Tk, v_offset, v_row, C);
    // With few heads, several tasks share one: rows of the result do not depend on how queries are grouped.
    const int64_t most = (Nq + kRows - 1) / kRows, threads = thread_count();
    const int64_t pieces = std::clamp<int64_t>(4 * threads / std::max<int64_t>(1, B * H), 1,
                                               std::max<int64_t>(1, most));
    each_task(stream, B * H * pieces, std::max(single_floats(s), forward_floats(s)),
              [&](int64_t task, float* space) {
                const int64_t b = order[task / (H * pieces)], h = task / pieces % H,
                              piece = task % pieces;
                const Sample sample(s, b);
                T* oh = out.at(sample.q_begin, h * D);
                float* stats_h = stats + sample.q_begin * H + h * sample.Nq;
                const T *qh = qv.at(sample.q_rows, h * D), *kh = kv.at(sample.k_begin, h * D),
                        *vh = vv.at(sample.k_begin, h * D);
                if (sample.Nq == 1) {
                  if (piece == 0)
                    forward_single<T>(s, sample, oh, stats_h, qh, kh, k_row, vh, v_row, space);
                  return;
                }
                const int64_t blocks = (sample.Nq + kRows - 1) / kRows,
                              begin = blocks * piece / pieces * kRows;
                const int64_t end = std::min(sample.Nq, blocks * (piece + 1) / pieces * kRows);
                if (begin < end)
                  forward_head<T>(s, sample, begin, end, oh, C, stats_h, qh, q_row, kh, k_row, vh,
                                  v_row, space);
              });
  });
}

void attention_backward(Stream& stream, Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q,
                        Tensor k, Tensor v, Tensor o, Tensor lse, Tensor key_lengths,
                        Tensor q_starts, Tensor k_starts, int64_t B, int64_t H, int64_t Nq,
                        int64_t Nk, int64_t Tq, int64_t Tk, int64_t D, int64_t q_offset,
                        int64_t q_row, int64_t k_offset, int64_t k_row, int64_t v_offset,
                        int64_t v_row, bool q_shared, bool causal, float scale) {
  const Shape s = checked_shape(key_lengths, q_starts, k_starts, B, H, Nq, Nk, Tq, Tk, D, q_shared,
                                causal, scale);
  const float* stats = lse.as<const float>(Tq * H);
  if (!dk != !dv)
    throw std::invalid_argument("attention_backward: dk and dv come together or not at all");
  const std::vector<int64_t> order = longest_first(s);
  dispatch_float(o.dtype, [&](auto t) {
    using T = decltype(t);
    const int64_t C = H * D, q_total = q_shared ? Nq : Tq;
    const auto out = view<const T>(o, Tq, 0, C, C), dout = view<const T>(d_o, Tq, 0, C, C);
    const auto qv = view<const T>(q, q_total, q_offset, q_row, C);
    const auto kv = view<const T>(k, Tk, k_offset, k_row, C),
               vv = view<const T>(v, Tk, v_offset, v_row, C);
    const auto dqv = view<T>(dq, q_total, q_offset, q_row, C);
    const auto dkv = view<T>(dk, Tk, k_offset, k_row, C), dvv = view<T>(dv, Tk, v_offset, v_row, C);
    const auto run = [&]<class G>(const View<G>& to) {  // every sample's dq to a place of its own
      each_task(stream, B * H, std::max(single_floats(s), backward_floats(s)),
                [&](int64_t task, float* space) {
                  const int64_t h = task % H, column = h * D;
                  const Sample sample(s, order[task / H]);
                  G* dqh = to.at(sample.q_begin, column);
                  T *dkh = dkv.at(sample.k_begin, column), *dvh = dvv.at(sample.k_begin, column);
                  const T *doh = dout.at(sample.q_begin, column),
                          *oh = out.at(sample.q_begin, column);
                  const T *qh = qv.at(sample.q_rows, column), *kh = kv.at(sample.k_begin, column),
                          *vh = vv.at(sample.k_begin, column);
                  const float* stats_h = stats + sample.q_begin * H + h * sample.Nq;
                  if (sample.Nq == 1)
                    backward_single<T, G>(s, sample, dqh, dkh, dvh, doh, oh, *stats_h, qh, kh,
                                          k_row, vh, v_row, space);
                  else
                    backward_head<T, G>(s, sample, dqh, to.row, dkh, dvh, doh, oh, C, stats_h, qh,
                                        q_row, kh, k_row, vh, v_row, space);
                });
    };
    if (!dq || !q_shared) return run(dqv);
    Scratch<float> partial(stream, Tq * C);
    run(View<float>{partial.data(), C});
    parallel_ranges(Nq, 1 + 16384 / std::max<int64_t>(1, B * C), [&](int64_t i0, int64_t i1) {
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t c = 0; c < C; ++c) {
          float sum = 0;
          for (int64_t b = 0; b < B; ++b) sum += partial.data()[(b * Nq + i) * C + c];
          dqv.data[i * q_row + c] = sum;
        }
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP(attention_forward);
OP(attention_backward);
