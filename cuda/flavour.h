// Which of the builds of the CUDA kernels this is.
#pragma once

namespace siglip2::cuda {
// True when kernels run on the CPU through cuda/host/. Such results are labelled "cuda-host" and
// never pass for a GPU's.
bool is_host_runtime();
}  // namespace siglip2::cuda
