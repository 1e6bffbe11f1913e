// Softmax attention, O = softmax(scale · Q·Kᵀ) · V for every head, with three restrictions of the keys a query sees:
// none; the first key_lengths[b] of them; and, with `causal`, those at or before the query's own position.
// A query without keys gives O = 0, lse = −∞ and zero gradients.
//
// Q, K and V are rows of H·D elements (head h at column h·D) inside wider rows: row t begins at element offset + t·row.
// So the fused (B, N, 3·H·D) projection is read in place and its gradient written in place: q, k and v are then the same
// tensor with offsets 0, H·D, 2·H·D, and likewise dq, dk, dv.
//
// Which rows belong to sample b: dense, b·N … (b+1)·N − 1; packed, starts[b] … starts[b+1] − 1, where `starts` are B + 1
// prefix sums from 0 to T and N is the longest sample. Queries (q_starts, Nq, Tq) and keys (k_starts, Nk, Tk) are packed
// independently of each other; packed keys have no key_lengths. With q_shared the queries are dense and one set of them,
// (Nq, q_row), serves the whole batch; dq is its gradient summed over the samples in their order.
// Starts that do not rise from 0 to T by at most N are an error on the CPU. On CUDA, where they cannot be told before the
// kernel runs, such a sample is left out: its rows of the outputs stay as they were. Rows that two samples claim hold
// either's result; nothing outside the tensors is touched.
//
// q, k, v, o and their gradients share one float type; everything in between is f32. The gradients are set, not added
// to, and only inside the H·D columns that belong to them; they may not overlap the inputs.
#pragma once
#include "../kernel.h"

KERNEL(
    attention_forward,
    Tensor o,  // (Tq, H·D)
    Tensor
        lse,  // log Σ exp(scale · q·k), f32: for each sample (H, its queries), one after the other
    Tensor q,            // (Tq, or Nq when shared; q_row) from q_offset
    Tensor k,            // (Tk, k_row) from k_offset
    Tensor v,            // (Tk, v_row) from v_offset
    Tensor key_lengths,  // (B) i32 or absent; values outside [0, Nk] are clamped
    Tensor q_starts,     // (B + 1) i32, or absent: dense, Tq = B·Nq
    Tensor k_starts,     // (B + 1) i32, or absent: dense, Tk = B·Nk
    int64_t B, int64_t H, int64_t Nq, int64_t Nk, int64_t Tq, int64_t Tk, int64_t D,
    int64_t q_offset, int64_t q_row, int64_t k_offset, int64_t k_row, int64_t v_offset,
    int64_t v_row, bool q_shared, bool causal, float scale)

KERNEL(attention_backward,
       Tensor dq,   // as q, or absent
       Tensor dk,   // as k, or absent together with dv
       Tensor dv,   // as v
       Tensor d_o,  // (Tq, H·D)
       Tensor q,    // as in forward, and so on
       Tensor k, Tensor v,
       Tensor o,            // (Tq, H·D) from forward
       Tensor lse,          // from forward
       Tensor key_lengths,  // (B) or absent
       Tensor q_starts,     // (B + 1) or absent
       Tensor k_starts,     // (B + 1) or absent
       int64_t B, int64_t H, int64_t Nq, int64_t Nk, int64_t Tq, int64_t Tk, int64_t D,
       int64_t q_offset, int64_t q_row, int64_t k_offset, int64_t k_row, int64_t v_offset,
       int64_t v_row, bool q_shared, bool causal, float scale)
