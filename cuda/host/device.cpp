// The CUDA device of a build without a GPU: memory is malloc's, so that ASan knows the exact size
// of every tensor, and a task runs to its end when it is enqueued.
#include "../../native/device.h"
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <vector>
#include "../flavour.h"
#include "runtime.h"

namespace siglip2 {
namespace {

class HostDevice final : public Device, private Stream {
 public:
  std::string name() const override {
    return cuda_host::dry() ? "cuda-host (dry: kernels do nothing)"
                            : "cuda-host (CUDA kernels run on the CPU)";
  }
  bool is_cuda() const override { return true; }

  void* allocate(size_t bytes) override { return std::malloc(bytes ? bytes : 1); }
  void release(void* p, size_t) override { std::free(p); }

  void enqueue(const char* op, Task task) override {
    if (recording_) recording_->emplace_back(op, std::move(task));
    else run(op, task);
  }
  void upload(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { copy(dst, src, bytes); }
  void fill(void* dst, uint8_t byte, size_t bytes) override {
    if (bytes && !cuda_host::dry())
      enqueue("fill", [=](Stream&) { std::memset(dst, byte, bytes); });
  }
  void notify(Done done, bool keeps_error) override {
    if (keeps_error) return done(error_);
    const std::string fault = faults_.take();
    std::string error = std::exchange(error_, {});
    done(error.empty() ? fault : error);
  }
  void synchronize() override {}

  // Stands in for a CUDA graph: the tasks themselves, run again one after the other.
  bool can_record() const override { return true; }
  void begin_recording() override { recording_ = &recordings_[++last_recording_]; }
  int64_t end_recording() override {
    recording_ = nullptr;
    return last_recording_;
  }
  void replay(int64_t recording) override {
    if (cuda_host::dry()) return;  // a graph is one call
    for (const auto& [op, task] : recordings_.at(recording)) run(op, task);
  }
  void forget(int64_t recording) override { recordings_.erase(recording); }

  size_t scratch_peak() const override { return scratch_peak_; }
  void reset_scratch_peak() override { scratch_peak_ = scratch_used_; }

 private:
  using Recording = std::vector<std::pair<const char*, Task>>;

  void run(const char* op, const Task& task) {
    if (!error_.empty()) return;
    try {
      task(*this);
    } catch (const std::bad_alloc&) {
      error_ = std::string("ERR_MEMORY: ") + op + ": the host has no memory left for its workspace";
    } catch (const std::exception& e) {
      error_ = std::string(op) + ": " + e.what();
    }
  }
  void copy(void* dst, const void* src, size_t bytes) {
    if (error_.empty() && bytes && !cuda_host::dry()) std::memcpy(dst, src, bytes);
  }
  // posix_memalign, unlike aligned_alloc, takes any size, so ASan knows the exact end.
  void* scratch_allocate(size_t bytes) override {
    void* p = nullptr;
    if (cuda_host::dry())
      return untouched_;  // by anybody: a stream-ordered pool costs nothing like malloc
    if (posix_memalign(&p, 64, bytes)) throw std::bad_alloc();
    std::memset(p, 0xff, bytes);  // a kernel that reads what it did not write gets NaN
    scratch_used_ += bytes;
    if (scratch_used_ > scratch_peak_) scratch_peak_ = scratch_used_;
    return p;
  }
  void scratch_release(void* p, size_t bytes) override {
    if (cuda_host::dry()) return;
    std::free(p);
    scratch_used_ -= bytes;
  }

  Faults* faults() override { return &faults_; }

  alignas(64) std::byte untouched_[64];
  std::string error_;
  Faults faults_;
  std::map<int64_t, Recording> recordings_;
  Recording* recording_ = nullptr;
  int64_t last_recording_ = 0;
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
