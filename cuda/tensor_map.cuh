// Tensor maps, by which TMA finds its way in a matrix of bf16 in global memory.
#pragma once
#include "common.cuh"

namespace siglip2::cuda {

// What a tensor map asks of a matrix.
inline bool tensor_map_fits(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

// Lines of `length` elements, `stride` apart; boxes of 64 elements (128 bytes, swizzled) of each of
// `box_lines` lines. Outside of the matrix a box reads zeros.
#ifdef SIGLIP2_CUDA_HOST
inline TensorMap tensor_map_of(const __nv_bfloat16* data, int64_t lines, int64_t length,
                               int64_t stride, uint32_t box_lines) {
  TensorMap map{};
  map.base = reinterpret_cast<const uint8_t*>(data);
  map.rank = 2;
  map.element_bytes = 2;
  map.swizzle = 3;
  map.dim[0] = static_cast<uint64_t>(length);
  map.dim[1] = static_cast<uint64_t>(lines);
  map.stride[0] = 2;
  map.stride[1] = static_cast<uint64_t>(stride) * 2;
  map.box[0] = 64;
  map.box[1] = box_lines;
  return map;
}
#else
// The driver's function comes through the runtime, so that nothing links to libcuda.
inline TensorMap tensor_map_of(const __nv_bfloat16* data, int64_t lines, int64_t length,
                               int64_t stride, uint32_t box_lines) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("the NVIDIA driver has no cuTensorMapEncodeTiled; it is older than CUDA 12");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  TensorMap map;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(length), static_cast<cuuint64_t>(lines)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[2] = {64, box_lines}, step[2] = {1, 1};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                                 const_cast<__nv_bfloat16*>(data), size, pitch, box, step,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled failed with status " + std::to_string(status));
  return map;
}
#endif

}  // namespace siglip2::cuda
