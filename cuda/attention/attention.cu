// Attention on CUDA (native/ops/attention.h): checks the arguments and chooses the kernel.
//   one query for each sample         attention_single.cu
//   bf16, D ≤ 128, 16-byte rows       attention_forward.cu, attention_backward.cu (tensor cores),
//                                     attention_sm90.cu, attention_sm90_backward.cu (long ones on Hopper),
//                                     attention_sm90_whole.cu (backward of 129 to 256 keys)
//   everything else                   attention_plain.cu
#include "../../native/ops/attention.h"
#include "attention.cuh"

namespace siglip2::cuda {

namespace {

using attention::Problem;

struct Arguments {
  Tensor o, lse, q, k, v, key_lengths, q_starts, k_starts;
  int64_t B, H, Nq, Nk, Tq, Tk, D, q_offset, q_row, k_offset, k_row, v_offset, v_row;
  bool q_shared, causal;
  float scale;
};

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("attention: ") + what);
}

template <class T>
T* rows_of(const Tensor& t, int64_t rows, int64_t offset, int64_t row, int64_t C) {
  require(offset >= 0 && offset + C <= row, "heads do not fit into a row");
  T* const data = t.as_or_null<T>(rows * row);
  return data ? data + offset : nullptr;
}

template <class T> Problem<T> problem_of(const Arguments& a) {
  const int64_t C = a.H * a.D, q_rows = a.q_shared ? a.Nq : a.Tq;
  require(a.D >= 1 && a.D <= attention::kMaxColumns, "a head has 1 to 256 columns on CUDA");
  require(a.B <= INT32_MAX && C <= INT32_MAX && a.Nq <= INT32_MAX && a.Nk <= INT32_MAX,
          "sizes must fit 31 bits");
  require(!(a.q_shared && a.q_starts) && !(a.key_lengths && a.k_starts),
          "packed rows exclude shared queries and key lengths");
  require((a.q_starts || a.Tq == a.B * a.Nq) && (a.k_starts || a.Tk == a.B * a.Nk),
          "rows are not samples times positions");
  Problem<T> p{};
  p.q = rows_of<T>(a.q, q_rows, a.q_offset, a.q_row, C);
  p.k = rows_of<T>(a.k, a.Tk, a.k_offset, a.k_row, C);
  p.v = rows_of<T>(a.v, a.Tk, a.v_offset, a.v_row, C);
  p.q_row = a.q_row, p.k_row = a.k_row, p.v_row = a.v_row;
  p.key_lengths = a.key_lengths.as_or_null<int32_t>(a.B);
  p.q_starts = a.q_starts.as_or_null<int32_t>(a.B + 1);
  p.k_starts = a.k_starts.as_or_null<int32_t>(a.B + 1);
  p.Tq = a.Tq, p.Tk = a.Tk;
  p.B = static_cast<int>(a.B), p.H = static_cast<int>(a.H), p.Nq = static_cast<int>(a.Nq);
  p.Nk = static_cast<int>(a.Nk), p.D = static_cast<int>(a.D);
  p.q_shared = a.q_shared, p.causal = a.causal, p.scale = a.scale;
  p.o = a.o.as<T>(a.Tq * C);
  p.lse = a.lse.as<float>(a.Tq * a.H);
  return p;
}

// Every row of a head is made of whole 16-byte packs.
template <class T> bool packs(const Problem<T>& p) {
  constexpr int V = Pack<T>::size;
  return p.D % V == 0 && p.q_row % V == 0 && p.k_row % V == 0 && p.v_row % V == 0 &&
         aligned_16(p.q, p.k, p.v, p.o, p.d_o, p.dq, p.dk, p.dv);
}
template <class T> bool tensor_cores(const Problem<T>& p) {
  return std::is_same_v<T, __nv_bfloat16> && p.D <= attention::kMmaColumns && packs(p);
}
template <class T> bool single(const Problem<T>& p) { return p.Nq == 1 && !p.q_starts && packs(p); }

template <class T> void forward(Stream& s, const Problem<T>& p) {
  if (single(p)) return attention::single_forward(s, p);
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    if (tensor_cores(p)) {
      if (attention::wants_sm90_forward(p)) return attention::sm90_forward(s, p);
      return attention::mma_forward(s, p);
    }
  attention::plain_forward(s, p);
}

template <class T> void backward(Stream& s, Problem<T> p) {
  if (single(p)) return attention::single_backward(s, p);
  bool needs_delta = true;
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    needs_delta = !tensor_cores(p) || attention::mma_backward_needs_delta(p);
  Scratch<float> delta(s, needs_delta ? p.Tq * p.H : 0);
  p.delta = delta.data();
  if (needs_delta) attention::compute_delta(s, p);
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    if (tensor_cores(p)) {
      if (attention::wants_sm90_whole_backward(p)) return attention::sm90_whole_backward(s, p);
      if (needs_delta && attention::wants_sm90_backward(p)) return attention::sm90_backward(s, p);
      return attention::mma_backward(s, p);
    }
  attention::plain_backward(s, p);
}

}  // namespace

void attention_forward(Stream& s, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v,
                       Tensor key_lengths, Tensor q_starts, Tensor k_starts, int64_t B, int64_t H,
                       int64_t Nq, int64_t Nk, int64_t Tq, int64_t Tk, int64_t D, int64_t q_offset,
                       int64_t q_row, int64_t k_offset, int64_t k_row, int64_t v_offset,
                       int64_t v_row, bool q_shared, bool causal, float scale) {
  if (Tq == 0 || H == 0) return;
  dispatch_element(o.dtype, [&](auto t) {
    using T = decltype(t);
    forward(s,
            problem_of<T>({o,     lse,      q,     k,        v,     key_lengths, q_starts, k_starts,
                           B,     H,        Nq,    Nk,       Tq,    Tk,          D,        q_offset,
                           q_row, k_offset, k_row, v_offset, v_row, q_shared,    causal,   scale}));
  });
}

void attention_backward(Stream& s, Tensor dq, Tensor dk, Tensor dv, Tensor d_o, Tensor q, Tensor k,
                        Tensor v, Tensor o, Tensor lse, Tensor key_lengths, Tensor q_starts,
                        Tensor k_starts, int64_t B, int64_t H, int64_t Nq, int64_t Nk, int64_t Tq,
                        int64_t Tk, int64_t D, int64_t q_offset, int64_t q_row, int64_t k_offset,
                        int64_t k_row, int64_t v_offset, int64_t v_row, bool q_shared, bool causal,
                        float scale) {
  require(!dk == !dv, "dk and dv come together or not at all");
  if (H == 0) return;
  dispatch_element(o.dtype, [&](auto t) {
    using T = decltype(t);
    Problem<T> p =
        problem_of<T>({o,     lse,      q,     k,        v,     key_lengths, q_starts, k_starts,
                       B,     H,        Nq,    Nk,       Tq,    Tk,          D,        q_offset,
                       q_row, k_offset, k_row, v_offset, v_row, q_shared,    causal,   scale});
    const int64_t C = H * D;
    p.d_o = d_o.as<T>(Tq * C);
    p.dq = rows_of<T>(dq, q_shared ? Nq : Tq, q_offset, q_row, C);
    p.dk = rows_of<T>(dk, Tk, k_offset, k_row, C);
    p.dv = rows_of<T>(dv, Tk, v_offset, v_row, C);
    const bool partial = p.dq && q_shared;  // of no sample: the sum is 0
    Scratch<float> dq_partial(s, partial ? Tq * C : 0);
    p.dq_partial = dq_partial.data();
    if (B > 0) backward(s, p);
    if (partial) attention::sum_shared_dq(s, p);
  });
}

}  // namespace siglip2::cuda
