// The device of a dry run: it computes nothing, its memory is not there, and the allocator in front of it counts bytes
// as on a real one. So the code of a training step says what it needs, whatever the machine has. Addresses are numbers
// that nobody reads. Workspace comes from the CPU kernels of the ops marked OP_SIZED, which take it and return; for a
// CUDA device they stand in, because the large workspaces are of the same size there.
#include <algorithm>
#include "device.h"

namespace siglip2 {
namespace {

class DryDevice final : public Device, private Stream {
 public:
  explicit DryDevice(bool cuda) : cuda_(cuda) {}
  std::string name() const override { return "dry run: counts memory, computes nothing"; }
  bool is_cuda() const override { return cuda_; }
  bool is_dry() const override { return true; }

  void* allocate(size_t bytes) override {
    next_ += bytes;
    return reinterpret_cast<void*>(next_ - bytes);
  }
  void release(void*, size_t) override {}
  void enqueue(const char*, Task task) override { task(*this); }
  void upload(void*, const void*, size_t) override {}
  void download(void*, const void*, size_t) override {}
  void fill(void*, uint8_t, size_t) override {}
  void notify(Done done, bool) override { done({}); }
  void synchronize() override {}

  size_t scratch_peak() const override { return scratch_peak_; }
  void reset_scratch_peak() override { scratch_peak_ = scratch_used_; }

 private:
  void* scratch_allocate(size_t bytes) override {
    scratch_used_ += bytes;
    scratch_peak_ = std::max(scratch_peak_, scratch_used_);
    return reinterpret_cast<void*>(kAlignment);
  }
  void scratch_release(void*, size_t bytes) override { scratch_used_ -= bytes; }
  Dry dry() const override { return cuda_ ? Dry::cuda : Dry::cpu; }

  static constexpr uintptr_t kAlignment = 64;
  const bool cuda_;
  uintptr_t next_ = kAlignment;
  size_t scratch_used_ = 0, scratch_peak_ = 0;
};

}  // namespace

std::unique_ptr<Device> make_dry_device(bool cuda) { return std::make_unique<DryDevice>(cuda); }

}  // namespace siglip2
