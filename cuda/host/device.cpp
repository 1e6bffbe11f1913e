// The CUDA device of a build without a GPU: memory is malloc's, so that ASan knows the exact size
// of every tensor, and a task runs to its end when it is enqueued.
#include "../../native/device.h"
#include <cstdlib>
#include <cstring>
#include <new>
#include "../flavour.h"
#include "runtime.h"

namespace siglip2 {
namespace {

class HostDevice final : public Device, private Stream {
 public:
  std::string name() const override { return "cuda-host (CUDA kernels run on the CPU)"; }
  bool is_cuda() const override { return true; }

  void* allocate(size_t bytes) override { return std::malloc(bytes ? bytes : 1); }
  void release(void* p, size_t) override { std::free(p); }

  void enqueue(const char* op, Task task) override {
    if (!error_.empty()) return;
    try {
      task(*this);
    } catch (const std::exception& e) {
      error_ = std::string(op) + ": " + e.what();
    }
  }
  void upload(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void fill(void* dst, uint8_t byte, size_t bytes) override {
    if (error_.empty() && bytes) std::memset(dst, byte, bytes);
  }
  void notify(Done done) override {
    const std::string fault = faults_.take();
    std::string error = std::exchange(error_, {});
    done(error.empty() ? fault : error);
  }
  void synchronize() override {}
  size_t scratch_peak() const override { return scratch_peak_; }
  void reset_scratch_peak() override { scratch_peak_ = scratch_used_; }

 private:
  void copy(void* dst, const void* src, size_t bytes) {
    if (error_.empty() && bytes) std::memcpy(dst, src, bytes);
  }
  // posix_memalign, unlike aligned_alloc, takes any size, so ASan knows the exact end.
  void* scratch_allocate(size_t bytes) override {
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes)) throw std::bad_alloc();
    std::memset(p, 0xff, bytes);  // a kernel that reads what it did not write gets NaN
    scratch_used_ += bytes;
    if (scratch_used_ > scratch_peak_) scratch_peak_ = scratch_used_;
    return p;
  }
  void scratch_release(void* p, size_t bytes) override {
    std::free(p);
    scratch_used_ -= bytes;
  }

  Faults* faults() override { return &faults_; }

  std::string error_;
  Faults faults_;
  size_t scratch_used_ = 0, scratch_peak_ = 0;
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(int index, std::string* why) {
  if (index == 0) return std::make_unique<HostDevice>();
  if (why) *why = "cuda-host has one device, with index 0, not " + std::to_string(index);
  return nullptr;
}

bool cuda::is_host_runtime() { return true; }

}  // namespace siglip2
