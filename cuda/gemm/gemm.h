// Matrix products of the CUDA device: cuBLASLt where it is installed, else kernels of our own.
#pragma once
#include <string>
#include "../../native/kernel.h"

namespace siglip2::cuda {

struct GemmMatrix {  // row-major, rows `stride` elements apart
  const void* data;
  int64_t stride;
  bool transposed = false;  // it lies in memory as (columns, rows)
};

// C (M, N) = A (M, K) · B (K, N), then in this order: + bias, C += …, GELU.
struct GemmDesc {
  int64_t M, N, K;
  DType dtype;  // of A and B, f32 or bf16; products are summed in float, and no TF32 is used
  GemmMatrix a, b;
  void* c;
  DType c_dtype;  // that of A and B, or f32
  int64_t c_stride;
  bool accumulate = false;      // C +=; f32 only
  const float* bias = nullptr;  // (N)
  void* pre = nullptr;          // (M, N) of C's type and stride: pre = A·B + bias, C = GELU(pre);
                                // only for A as it is and B transposed
  const void* through_gelu =
      nullptr;  // (M, N) of C's type and stride: C = A·B ∘ GELU'(it); only for A and B as they
                // are, alone
  bool exact_gelu =
      false;  // x·Φ(x) instead of the tanh form: a pass of its own unless the library has it
};

// Sums in a fixed order: the same product twice gives the same bits on the same device.
// `SIGLIP2_GEMM=own` keeps to our kernels, `=cublaslt` makes it an error when cuBLASLt is missing.
void gemm(Stream& s, const GemmDesc& desc);

// One sentence: which library multiplies, and why not cuBLASLt if it does not.
std::string gemm_library();

}  // namespace siglip2::cuda
