// Stands in for cuda/ in a build without CUDA.
#include "../native/device.h"
#include "flavour.h"

#ifndef SIGLIP2_NO_CUDA_REASON
#define SIGLIP2_NO_CUDA_REASON "nvcc was not found when it was built"
#endif

namespace siglip2 {

std::unique_ptr<Device> make_cuda_device(int, std::string* why) {
  if (why) *why = "this build has no CUDA (" SIGLIP2_NO_CUDA_REASON ")";
  return nullptr;
}

bool cuda::is_host_runtime() { return false; }

}  // namespace siglip2
