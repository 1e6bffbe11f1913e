// Softmax attention, O = softmax(scale · Q·Kᵀ) · V for every head, with three restrictions of the keys a query sees:
// none; the first key_lengths[b] of them; and, with `causal`, those at or before the query's own position.
// A query without keys gives O = 0, lse = −∞ and zero gradients.
//
// Q, K and V are rows of H·D elements (head h at column h·D) inside wider rows: row i of sample b begins at element
// offset + (b·N + i)·row. So the fused (B, N, 3·H·D) projection is read in place and its gradient written in place:
// q, k and v are then the same tensor with offsets 0, H·D, 2·H·D, and likewise dq, dk, dv. With q_shared there is one
// set of queries, (Nq, row), for the whole batch, and dq is its gradient summed over the samples in their order.
// q, k, v, o and their gradients share one float type; everything in between is f32. The gradients are set, not added
// to, and only inside the H·D columns that belong to them; they may not overlap the inputs.
#pragma once
#include "../op.h"

KERNEL(attention_forward,
       Tensor o,            // (B, Nq, H·D)
       Tensor lse,          // (B, H, Nq) f32, log Σ exp(scale · q·k)
       Tensor q,            // (B or 1, Nq, q_row) from q_offset
       Tensor k,            // (B, Nk, k_row) from k_offset
       Tensor v,            // (B, Nk, v_row) from v_offset
       Tensor key_lengths,  // (B) i32 or absent; values outside [0, Nk] are clamped
       int64_t B, int64_t H, int64_t Nq, int64_t Nk, int64_t D, int64_t q_offset, int64_t q_row, int64_t k_offset,
       int64_t k_row, int64_t v_offset, int64_t v_row, bool q_shared, bool causal, float scale)

KERNEL(attention_backward,
       Tensor dq,           // as q, or absent
       Tensor dk,           // as k, or absent together with dv
       Tensor dv,           // as v
       Tensor d_o,          // (B, Nq, H·D)
       Tensor q,            // as in forward, and so on
       Tensor k,
       Tensor v,
       Tensor o,            // (B, Nq, H·D) from forward
       Tensor lse,          // (B, H, Nq) from forward
       Tensor key_lengths,  // (B) or absent
       int64_t B, int64_t H, int64_t Nq, int64_t Nk, int64_t D, int64_t q_offset, int64_t q_row, int64_t k_offset,
       int64_t k_row, int64_t v_offset, int64_t v_row, bool q_shared, bool causal, float scale)
