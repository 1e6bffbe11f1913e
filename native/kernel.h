// What a kernel of any device sees: its stream, its workspace, its tensors, and KERNEL, which declares it. Every kernel file
// includes this, nvcc's once per architecture, so it stays free of the heavy standard headers of device.h and op.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include "fault.h"
#include "tensor.h"

#define KERNEL(name, ...)                                \
  namespace siglip2::cpu::avx2 {                         \
  void name(Stream&, __VA_ARGS__);                       \
  }                                                      \
  namespace siglip2::cpu::avx512 {                       \
  void name(Stream&, __VA_ARGS__);                       \
  }                                                      \
  namespace siglip2::cuda {                              \
  __attribute__((weak)) void name(Stream&, __VA_ARGS__); \
  }

namespace siglip2 {

// Where a kernel runs, and its temporary memory. Only valid inside a task.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void* native() { return nullptr; }         // cudaStream_t on CUDA
  virtual void* scratch_allocate(size_t bytes) = 0;  // 64-byte aligned; throws std::bad_alloc
  virtual void scratch_release(void* p, size_t bytes) = 0;
  virtual Faults* faults() {
    return nullptr;
  }  // where kernels that cannot throw leave bad values; CUDA only

  // In a dry run (dry.cc) no address may be followed: a kernel takes its workspace and returns. `cuda`: it stands in for
  // the CUDA kernel of its op.
  enum class Dry { no, cpu, cuda };
  virtual Dry dry() const { return Dry::no; }
  bool is_dry() const { return dry() != Dry::no; }
};

// Kernel workspace as a local variable; given back in stream order.
template <class T> class Scratch {
 public:
  Scratch(Stream& s, int64_t count)
      : stream_(s),
        bytes_(static_cast<size_t>(count) * sizeof(T)),
        data_(static_cast<T*>(count ? s.scratch_allocate(bytes_) : nullptr)) {}
  ~Scratch() {
    if (data_) stream_.scratch_release(data_, bytes_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() const { return data_; }

 private:
  Stream& stream_;
  size_t bytes_;
  T* data_;
};

}  // namespace siglip2
