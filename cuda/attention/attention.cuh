// What the attention kernels share: the problem as they see it, the rows of one sample, and what
// each file of kernels offers to the launchers in attention.cu.
#pragma once
#include "../common.cuh"

namespace siglip2::cuda::attention {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr int kMaxColumns = 256;  // of one head, in any kernel

// The arguments of native/ops/attention.h. Pointers are to the first row, at the first head.
template <class T> struct Problem {
  const T *q, *k, *v;
  int64_t q_row, k_row, v_row;  // elements from one row to the next; o and d_o have H·D
  const int32_t *key_lengths, *q_starts, *k_starts;  // or null
  int64_t Tq, Tk;
  int B, H, Nq, Nk, D;
  bool q_shared, causal;
  float scale;
  T* o;
  float* lse;
  // Backward only. Gradients have the layout of what they are the gradients of, or are null.
  const T* d_o;
  T *dq, *dk, *dv;
  float* dq_partial;  // (Tq, H·D) of every sample, in place of dq when the queries are shared
  float* delta;       // as lse: Σ dO∘O; not for the kernels that own a whole head

  __host__ __device__ bool wants_dq() const { return dq || dq_partial; }
};

// The rows of one sample.
struct Sample {
  int64_t q_begin, k_begin;
  int Nq, Nk;
  int keys;  // the first so many are seen
};

// The range starts[0] … starts[1] − 1 if it has up to N rows and lies in [0, T).
__device__ __forceinline__ bool packed_rows(const int32_t* starts, int N, int64_t T, int64_t* begin,
                                            int* count) {
  const int64_t first = starts[0], last = starts[1];
  *begin = first;
  *count = static_cast<int>(last - first);
  return first >= 0 && first <= last && last <= T && last - first <= N;
}

// A packed sample whose starts do not fit has no queries and no keys, so nothing of it is touched.
template <class T> __device__ __forceinline__ Sample sample_of(const Problem<T>& p, int b) {
  Sample s{static_cast<int64_t>(b) * p.Nq, static_cast<int64_t>(b) * p.Nk, p.Nq, p.Nk, 0};
  bool fits = true;
  if (p.q_starts) fits = packed_rows(p.q_starts + b, p.Nq, p.Tq, &s.q_begin, &s.Nq);
  if (p.k_starts) fits = packed_rows(p.k_starts + b, p.Nk, p.Tk, &s.k_begin, &s.Nk) && fits;
  if (!fits) s.Nq = s.Nk = 0;
  s.keys = p.key_lengths ? max(0, min(p.key_lengths[b], s.Nk)) : s.Nk;
  if (p.causal) s.keys = min(s.keys, s.Nq);
  return s;
}

// One head of one sample: where each tensor has it.
template <class T> struct Head {
  Sample sample;
  int64_t q_at, k_at, v_at, o_at, lse_at;
};
template <class T> __device__ __forceinline__ Head<T> head_of(const Problem<T>& p, int b, int h) {
  Head<T> head{sample_of(p, b), 0, 0, 0, 0, 0};
  const Sample& s = head.sample;
  head.q_at = (p.q_shared ? 0 : s.q_begin * p.q_row) + h * p.D;
  head.k_at = s.k_begin * p.k_row + h * p.D;
  head.v_at = s.k_begin * p.v_row + h * p.D;
  head.o_at = (s.q_begin * p.H + h) * p.D;
  head.lse_at = s.q_begin * p.H + static_cast<int64_t>(h) * s.Nq;
  return head;
}

// Blocks are numbered with the tiles of one head next to each other, so that they share its rows
// in the L2 cache.
struct BlockWork {
  int b, h, tile;
};
__device__ __forceinline__ BlockWork block_work(int block, int tiles, int H) {
  const int head = block / tiles;
  return {head / H, head % H, block % tiles};
}
__device__ __forceinline__ BlockWork block_work(int tiles, int H) {
  return block_work(static_cast<int>(blockIdx.x), tiles, H);
}
template <class T> unsigned grid_of(const Problem<T>& p, int tiles) {
  const int64_t blocks = static_cast<int64_t>(p.B) * p.H * tiles;
  if (blocks > 0x7fffffff) throw std::invalid_argument("attention: too many tiles for one launch");
  return static_cast<unsigned>(blocks);
}

// ---- attention_plain.cu: any layout, any D up to kMaxColumns ------------------------------------

template <class T> void plain_forward(Stream& s, const Problem<T>& p);
template <class T> void plain_backward(Stream& s, const Problem<T>& p);  // with delta
template <class T> void compute_delta(Stream& s, const Problem<T>& p);
// dq (Nq, q_row) = Σ over the samples of dq_partial (B, Nq, H·D), in their order.
template <class T> void sum_shared_dq(Stream& s, const Problem<T>& p);

// ---- attention_single.cu: one query for each sample; rows that are whole 16-byte packs ----------

template <class T> void single_forward(Stream& s, const Problem<T>& p);
template <class T> void single_backward(Stream& s, const Problem<T>& p);

// ---- attention_forward.cu, attention_backward.cu, attention_sm90*.cu: tensor cores --------------

constexpr int kMmaColumns =
    128;  // most columns; D is a multiple of 8, rows are whole 16-byte packs
void mma_forward(Stream& s, const Problem<__nv_bfloat16>& p);
bool wants_sm90_forward(const Problem<__nv_bfloat16>& p);  // and the device has wgmma
void sm90_forward(Stream& s, const Problem<__nv_bfloat16>& p);
bool mma_backward_needs_delta(const Problem<__nv_bfloat16>& p);
void mma_backward(Stream& s, const Problem<__nv_bfloat16>& p);
bool wants_sm90_backward(const Problem<__nv_bfloat16>& p);
void sm90_backward(Stream& s, const Problem<__nv_bfloat16>& p);  // with delta
bool wants_sm90_whole_backward(const Problem<__nv_bfloat16>& p);
void sm90_whole_backward(Stream& s, const Problem<__nv_bfloat16>& p);

}  // namespace siglip2::cuda::attention
