// Tensor maps, by which TMA finds its way in bf16 data in global memory.
#pragma once
#include "../common.cuh"
#include "wgmma.cuh"

namespace siglip2::cuda {

// What a tensor map asks of a matrix.
inline bool tensor_map_fits(const void* data, int64_t stride) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % 8 == 0;
}

// Dimensions innermost first; pitch[i] elements from one index of dimension i + 1 to the next. A box is read with
// `swizzle` into shared memory; outside of the tensor it reads zeros.
template <int kRank> TensorMap tensor_map_of(const __nv_bfloat16* data,
                                             const int64_t (&size)[kRank],
                                             const int64_t (&pitch)[kRank - 1],
                                             const uint32_t (&box)[kRank], Swizzle swizzle) {
  // CU_TENSOR_MAP_SWIZZLE_* counts upwards from none, 32, 64 to 128 bytes; descriptors count 128 as 1.
  const int mode = swizzle == Swizzle::none ? 0 : 4 - static_cast<int>(swizzle);
#ifdef SIGLIP2_CUDA_HOST
  TensorMap map{};
  map.base = reinterpret_cast<const uint8_t*>(data);
  map.rank = kRank;
  map.element_bytes = 2;
  map.swizzle = static_cast<uint8_t>(mode);
  for (int i = 0; i < kRank; ++i) {
    map.dim[i] = static_cast<uint64_t>(size[i]);
    map.stride[i] = i ? static_cast<uint64_t>(pitch[i - 1]) * 2 : 2;
    map.box[i] = box[i];
  }
  return map;
#else
  // The driver's function comes through the runtime, so that nothing links to libcuda.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found),
          "cudaGetDriverEntryPointByVersion");
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error(
          "the NVIDIA driver has no cuTensorMapEncodeTiled; it is older than CUDA 12");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  TensorMap map;
  cuuint64_t sizes[kRank], pitches[kRank - 1];
  cuuint32_t boxes[kRank], steps[kRank];
  for (int i = 0; i < kRank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(size[i]);
    boxes[i] = box[i];
    steps[i] = 1;
    if (i) pitches[i - 1] = static_cast<cuuint64_t>(pitch[i - 1]) * 2;
  }
  const CUresult status = encode(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kRank, const_cast<__nv_bfloat16*>(data), sizes,
      pitches, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(mode),
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled failed with status " + std::to_string(status));
  return map;
#endif
}

}  // namespace siglip2::cuda
