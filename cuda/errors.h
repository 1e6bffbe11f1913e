// What a failed CUDA call means to the user, in one sentence. Free of CUDA headers, so that it is tested without them;
// the numbers are cudaError_t's.
#pragma once
#include <string>

namespace siglip2::cuda {

constexpr int kErrorMemory = 2, kErrorInsufficientDriver = 35, kErrorNoDevice = 100;

// The context is gone: every later call fails with the same number.
constexpr bool device_is_lost(int error) {
  switch (error) {
    case 46:   // devices unavailable
    case 214:  // uncorrectable memory error
    case 220:  // uncorrectable NVLink error
    case 700:
    case 702:
    case 709:
    case 710:  // illegal address, launch timeout, context destroyed, device-side assert
    case 714:
    case 715:
    case 716:
    case 717:
    case 718:
    case 719:  // hardware stack, instruction, alignment, …, launch failure
      return true;
    default: return false;
  }
}

inline std::string explain(int error, const std::string& text) {
  if (error == kErrorMemory)
    return "the GPU has no memory left (" + text + "); use a smaller batch or checkpoint: true";
  if (device_is_lost(error))
    return "the GPU failed (" + text +
           ") and this process cannot use it any more; start it again from its last checkpoint";
  return text;
}

inline std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Why no device can be counted; driver: the version of CUDA that the driver supports, 0 without a driver.
inline std::string why_no_device(int error, const std::string& text, int driver, int runtime) {
  if (error == kErrorInsufficientDriver && driver > 0)
    return "the NVIDIA driver supports CUDA " + version_text(driver) + " and is too old for CUDA " +
           version_text(runtime) + "; install a newer driver";
  if (error == kErrorNoDevice || error == kErrorInsufficientDriver)
    return "this machine has no CUDA device";
  return "CUDA does not start: " + text;
}

}  // namespace siglip2::cuda
