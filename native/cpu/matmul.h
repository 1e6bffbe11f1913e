// Matrix products of the CPU device: oneDNN, versions 2 and 3.
#pragma once
#include <string>
#include "../kernel.h"

namespace siglip2 {

struct Matrix {  // row-major, rows `stride` elements apart
  const void* data;
  DType dtype;  // f32 or bf16
  int64_t stride;
  bool transposed = false;
};

// C (M, N) = alpha · A (M, K) · B (K, N) + beta · C. A and B share a type; C is that type or f32.
// bf16 runs natively where the CPU has AVX512-BF16 or AMX, otherwise through f32 copies.
void matmul(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a,
            const Matrix& b, float beta, void* c, DType c_dtype, int64_t c_stride);

// For the calling thread (a task sets it for its stream): each row of a product then has the same bits whatever the other
// rows, their number and the number of threads. bf16 products of oneDNN have the property on CPUs with AVX512-BF16 alone; on
// those with AMX, ours are taken (amx_gemm.h). Only products that start from zero (beta = 0) with A not transposed change.
void set_batch_invariant(bool on);
bool is_batch_invariant();

bool has_native_bf16();
bool multiplies_bf16(const Stream& s);  // without f32 copies: this CPU, or the GPU of a dry run
std::string onednn_version();

}  // namespace siglip2
