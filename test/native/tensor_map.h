// Tensor maps of row-major matrices for the host runtime.
#pragma once
#include "../../cuda/arch/ptx.cuh"

namespace test {

// swizzle: 0 none, 1 32 bytes, 2 64 bytes, 3 128 bytes.
template <class T> siglip2::cuda::TensorMap tensor_map(const T* data, int columns, int rows,
                                                       unsigned box_columns, unsigned box_rows,
                                                       uint8_t swizzle) {
  siglip2::cuda::TensorMap map{};
  map.base = reinterpret_cast<const uint8_t*>(data);
  map.rank = 2;
  map.element_bytes = sizeof(T);
  map.swizzle = swizzle;
  map.dim[0] = static_cast<uint64_t>(columns);
  map.dim[1] = static_cast<uint64_t>(rows);
  map.stride[0] = sizeof(T);
  map.stride[1] = static_cast<uint64_t>(columns) * sizeof(T);
  map.box[0] = box_columns;
  map.box[1] = box_rows;
  return map;
}

}  // namespace test
