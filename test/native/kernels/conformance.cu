// Instances of the test kernels, so that nvcc assembles every wrapper of ptx.cuh and wgmma.cuh.
#include "depth_72.cuh"
#include "hopper_gemm.cuh"
#include "mma_gemm.cuh"
#include "small.cuh"

#define HOPPER_GEMM(transpose_b, registers)                            \
  template __global__ void hopper_gemm_kernel<transpose_b, registers>( \
      const __grid_constant__ TensorMap, const __grid_constant__ TensorMap, float*, int, int)

namespace siglip2::cuda {
HOPPER_GEMM(false, false);
HOPPER_GEMM(true, false);
HOPPER_GEMM(false, true);
HOPPER_GEMM(true, true);
template __global__ void cluster_kernel<>(const __grid_constant__ TensorMap, int, float*);
using Matrix = const __nv_bfloat16*;
template __global__ void mma_gemm_kernel<false>(float*, Matrix, Matrix, int, int, int);
template __global__ void mma_gemm_kernel<true>(float*, Matrix, Matrix, int, int, int);
}  // namespace siglip2::cuda
