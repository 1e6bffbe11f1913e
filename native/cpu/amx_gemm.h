// The bf16 product of inference on CPUs with matrix units (AMX). oneDNN's sums K in another order for few rows; here every
// element is summed in the order of K whatever the other rows, their number and the number of threads, because a tile's
// rows do not depend on each other and K is never divided.
#pragma once
#include <cstring>
#include "matmul.h"
#include "threads.h"

namespace siglip2 {

bool has_amx();  // the CPU has bf16 tiles and the kernel lets this process use them

// C (M, N) = alpha · A (M, K) · B (K, N) of bf16, A not transposed; C is bf16 or f32. Needs has_amx().
void amx_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a,
              const Matrix& b, void* c, DType c_dtype, int64_t c_stride);

namespace tiles {

constexpr int64_t kSide = 32;             // of a block of C: two tiles by two
constexpr int64_t kStep = kSide * kSide;  // elements of A or B that one step of K brings to a block
constexpr int64_t kRows = 256;  // of A in one task, to stay in the L2 cache beside a panel of B

inline int64_t blocks(int64_t n) { return (n + kSide - 1) / kSide; }

// 32 rows of A, step by step of K: rows of 32 elements, zeros where A has ended.
inline void pack_a(uint16_t* out, const uint16_t* a, int64_t stride, int64_t rows, int64_t K) {
  for (int64_t k = 0; k < K; k += kSide) {
    const int64_t n = std::min(kSide, K - k);
    for (int64_t r = 0; r < kSide; ++r, out += kSide) {
      if (r < rows && n == kSide) {
        std::memcpy(out, a + r * stride + k, kSide * sizeof(uint16_t));
      } else {
        std::memset(out, 0, kSide * sizeof(uint16_t));
        if (r < rows)
          std::memcpy(out, a + r * stride + k, static_cast<size_t>(n) * sizeof(uint16_t));
      }
    }
  }
}

// 32 columns of B, step by step of K: two tiles of 16 columns, in each the pairs of K neighbours of its columns, row by row.
inline void pack_b(uint16_t* out, const uint16_t* b, int64_t stride, bool transposed,
                   int64_t columns, int64_t K) {
  const int64_t by_k = transposed ? 1 : stride, by_n = transposed ? stride : 1;
  for (int64_t k = 0; k < K; k += kSide, out += kStep) {
    if (columns < kSide || K - k < kSide) std::memset(out, 0, kStep * sizeof(uint16_t));
    for (int64_t n = 0; n < columns; ++n) {
      const uint16_t* from = b + k * by_k + n * by_n;
      uint16_t* to = out + n / 16 * (kStep / 2) + n % 16 * 2;
      const int64_t most = std::min(kSide, K - k);
      if (by_k == 1 && most == kSide)
        for (int64_t i = 0; i < kSide; i += 2)
          std::memcpy(to + i / 2 * kSide, from + i, 2 * sizeof(uint16_t));
      else
        for (int64_t i = 0; i < most; ++i) to[i / 2 * kSide + i % 2] = from[i * by_k];
    }
  }
}

// `block(a, b, steps, c)`: c (32, 32) = the product of packed A and packed B.
template <class Block> void product(Stream& s, int64_t M, int64_t N, int64_t K, float alpha,
                                    const Matrix& a, const Matrix& b, void* c, DType c_dtype,
                                    int64_t c_stride, Block block) {
  const int64_t steps = blocks(K), panel = steps * kStep;
  Scratch<uint16_t> packed_a(s, blocks(M) * panel), packed_b(s, blocks(N) * panel);
  if (s.is_dry()) return;
  const auto *pa = static_cast<const uint16_t*>(a.data), *pb = static_cast<const uint16_t*>(b.data);
  parallel_items(blocks(M) + blocks(N), [&](int64_t i) {
    const int64_t m = i * kSide, n = (i - blocks(M)) * kSide;
    if (m < M)
      pack_a(packed_a.data() + i * panel, pa + m * a.stride, a.stride, std::min(kSide, M - m), K);
    else
      pack_b(packed_b.data() + (i - blocks(M)) * panel, pb + (b.transposed ? n * b.stride : n),
             b.stride, b.transposed, std::min(kSide, N - n), K);
  });
  parallel_items((M + kRows - 1) / kRows * blocks(N), [&](int64_t i) {
    const int64_t first = i / blocks(N) * kRows, n = i % blocks(N) * kSide,
                  columns = std::min(kSide, N - n);
    for (int64_t m = first; m < std::min(M, first + kRows); m += kSide) {
      alignas(64) float sums[kSide * kSide];
      block(packed_a.data() + m / kSide * panel, packed_b.data() + n / kSide * panel, steps, sums);
      for (int64_t r = 0; r < std::min(kSide, M - m); ++r) {
        const float* from = sums + r * kSide;
        const int64_t at = (m + r) * c_stride + n;
        if (c_dtype == DType::f32)
          for (int64_t j = 0; j < columns; ++j) static_cast<float*>(c)[at + j] = alpha * from[j];
        else
          for (int64_t j = 0; j < columns; ++j) static_cast<bf16*>(c)[at + j] = alpha * from[j];
      }
    }
  });
}

}  // namespace tiles
}  // namespace siglip2
