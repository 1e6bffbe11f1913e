// The f32 product of inference, whose rows do not depend on each other: every element is summed in the order of K, one
// fused multiply-add after the other, so a row's bits are the same whatever the other rows, their number and the number
// of threads. Not an op; compiled once per instruction set like the ops, and row_gemm() takes the best of them.
#pragma once
#include <cstdint>
#include "../kernel.h"

namespace siglip2 {

enum class Gelu : uint8_t { none, tanh, exact };

// What becomes of alpha times a sum: the bias is added, then GELU.
struct Finish {
  const float* bias = nullptr;  // (N)
  Gelu gelu = Gelu::none;
};

// C (M, N) = finish(alpha · A (M, K) · B). B is (K, N), or (N, K) when `transposed`; rows are lda, ldb, ldc apart.
void row_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const float* a, int64_t lda,
              const float* b, int64_t ldb, bool transposed, float* c, int64_t ldc,
              Finish finish = {});

namespace cpu::avx2 {
void row_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const float* a, int64_t lda,
              const float* b, int64_t ldb, bool transposed, float* c, int64_t ldc, Finish finish);
}
namespace cpu::avx512 {
void row_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const float* a, int64_t lda,
              const float* b, int64_t ldb, bool transposed, float* c, int64_t ldc, Finish finish);
}

}  // namespace siglip2
