// gemm(): chooses who computes a product, and our own kernels for plain ones (gemm.h).
#include "gemm.h"
#include "gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    sum_splits_kernel(float* c,            // (M, N)
                      const float* parts,  // (splits, M, row)
                      int64_t M, int N, int64_t stride, int64_t row, int splits, bool accumulate) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, size = M * row;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step) {
    const int64_t r = i / row;
    const int column = static_cast<int>(i % row);
    if (column >= N) continue;
    float sum = 0;
    for (int part = 0; part < splits; ++part) sum += parts[part * size + i];
    float& to = c[r * stride + column];
    to = accumulate ? to + sum : sum;
  }
}

template <class A, class B> void multiply(Stream& s, const GemmDesc& d, const A& a, const B& b) {
  constexpr bool kFloat = std::is_same_v<A, FloatOperand<A::kDepthInLine>>;
  using T = std::conditional_t<kFloat, float, __nv_bfloat16>;
  const Splits whole{1, d.K};
  if (d.pre) {
    if constexpr (A::kDepthInLine && B::kDepthInLine)
      launch_gemm(s, a, b, d.M, d.N, d.K, GeluEpilogue<T>(d.c, d.pre, d.bias, d.N, d.c_stride), whole);
  } else if (d.c_dtype == DType::f32) {
    float* const c = static_cast<float*>(d.c);
    if (!d.bias) launch_gemm_to_float(s, a, b, d.M, d.N, d.K, c, d.c_stride, d.accumulate);
    else
      launch_gemm(s, a, b, d.M, d.N, d.K,
                  StoreEpilogue<float>(c, d.bias, d.N, d.c_stride, d.accumulate), whole);
  } else if constexpr (!kFloat) {
    launch_gemm(s, a, b, d.M, d.N, d.K, StoreEpilogue<T>(d.c, d.bias, d.N, d.c_stride, false), whole);
  }
}

// A's lines run along K unless it is transposed; B's do if it is.
template <template <bool> class Operand> void multiply_as(Stream& s, const GemmDesc& d) {
  const auto with_b = [&](const auto& a) {
    if (d.b.transposed) multiply(s, d, a, Operand<true>(d.b.data, d.N, d.K, d.b.stride));
    else multiply(s, d, a, Operand<false>(d.b.data, d.K, d.N, d.b.stride));
  };
  if (d.a.transposed) with_b(Operand<false>(d.a.data, d.K, d.M, d.a.stride));
  else with_b(Operand<true>(d.a.data, d.M, d.K, d.a.stride));
}

}  // namespace

void sum_splits(Stream& s, float* c, const float* parts, int64_t M, int64_t N, int64_t stride,
                int64_t splits, bool accumulate) {
  const int64_t row = ceil_div<int64_t>(N, 8) * 8;
  const int64_t blocks = std::min<int64_t>(ceil_div<int64_t>(M * row, kThreads), 8 * kTargetTiles);
  launch(sum_splits_kernel, static_cast<unsigned>(blocks), kThreads, 0, s, c, parts, M,
         static_cast<int>(N), stride, row, static_cast<int>(splits), accumulate);
}

void gemm(Stream& s, const GemmDesc& d) {
  if (d.M == 0 || d.N == 0) return;
  if (d.dtype != DType::f32 && d.dtype != DType::bf16)
    throw std::invalid_argument(std::string("gemm: operands are ") + name_of(d.dtype) +
                                " but must be f32 or bf16");
  if (d.c_dtype != DType::f32 && (d.c_dtype != d.dtype || d.accumulate))
    throw std::invalid_argument("gemm: a result is f32, or of the operands' type and not added to");
  if (d.pre && (d.c_dtype != d.dtype || d.accumulate || d.a.transposed || !d.b.transposed))
    throw std::invalid_argument("gemm: GELU is for x·Wᵀ as both lie in memory, in their type");
  if (d.dtype == DType::f32) multiply_as<FloatOperand>(s, d);
  else multiply_as<MatrixOperand>(s, d);
}

}  // namespace siglip2::cuda
