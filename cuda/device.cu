// The CUDA device: one compute stream, one stream for large uploads, memory from cudaMalloc, kernel workspace from the
// stream-ordered pool, copies through pinned staging buffers, completion told by a thread that waits for events. The
// host build has its own device (host/device.cpp).
//
// Large uploads land beside their destination, on the copy stream, while earlier kernels compute; the compute stream
// waits for them only where it comes to them, and moves them into place at memory speed. The landing place is needed
// because the destination may be memory that kernels before it still read.
#ifndef SIGLIP2_CUDA_HOST
#include "../native/device.h"
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include "common.cuh"
#include "errors.h"
#include "flavour.h"
#if __has_include( \
    <nvtx3/nvToolsExt.h>)  // headers only; a profiler provides the rest when it is there
#include <nvtx3/nvToolsExt.h>
#else
inline void nvtxRangePushA(const char*) {}
inline void nvtxRangePop() {}
#endif

namespace siglip2 {
namespace {

using cuda::check;

constexpr size_t kStagingBytes = 4 << 20;  // of one staging buffer
constexpr size_t kStagingBuffers = 8;      // so reads of up to 32 MiB never block the caller
// Uploads between these are worth an event and a landing place; above them are whole sets of weights.
constexpr size_t kLeastLanding = 1 << 20, kMostLanding = size_t{1} << 30;

class Event {
 public:
  Event() {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
          "cudaEventCreate");
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  cudaError_t wait() const { return cudaEventSynchronize(event_); }  // blocks without spinning
  void hold_back(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_), "cudaStreamWaitEvent");
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// A ring of pinned buffers for both directions. A buffer is taken again when the copy it served has
// finished; what a download left in it is then first moved to its destination.
class Staging {
 public:
  ~Staging() {
    for (Buffer& b : buffers_) cudaFreeHost(b.pinned);
  }

  void upload(cudaStream_t stream, void* dst, const void* src, size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (size_t at = 0; at < bytes; at += kStagingBytes) {
      const size_t part = std::min(kStagingBytes, bytes - at);
      Buffer& b = take();
      std::memcpy(b.pinned, static_cast<const std::byte*>(src) + at, part);
      check(cudaMemcpyAsync(static_cast<std::byte*>(dst) + at, b.pinned, part,
                            cudaMemcpyHostToDevice, stream),
            "cudaMemcpyAsync to the device");
      b.copied.record(stream);
      b.busy = true;
    }
  }

  void download(cudaStream_t stream, void* dst, const void* src, size_t bytes) {
    const std::lock_guard lock(mutex_);
    for (size_t at = 0; at < bytes; at += kStagingBytes) {
      const size_t part = std::min(kStagingBytes, bytes - at);
      Buffer& b = take();
      check(cudaMemcpyAsync(b.pinned, static_cast<const std::byte*>(src) + at, part,
                            cudaMemcpyDeviceToHost, stream),
            "cudaMemcpyAsync from the device");
      b.copied.record(stream);
      b.busy = true;
      b.destination = static_cast<std::byte*>(dst) + at;
      b.bytes = part;
      b.ticket = ++tickets_;
    }
  }

  uint64_t last_ticket() {
    const std::lock_guard lock(mutex_);
    return tickets_;
  }

  // Moves the downloads up to a ticket to their destinations; the stream has passed them.
  void deliver(uint64_t ticket) {
    const std::lock_guard lock(mutex_);
    for (Buffer& b : buffers_)
      if (b.destination && b.ticket <= ticket) b.deliver();
  }

  // After an error those downloads are not delivered: what they would bring is not right.
  void abandon(uint64_t ticket) {
    const std::lock_guard lock(mutex_);
    for (Buffer& b : buffers_)
      if (b.ticket <= ticket) b.destination = nullptr;
  }

 private:
  struct Buffer {
    std::byte* pinned = nullptr;
    Event copied;
    bool busy = false;
    std::byte* destination = nullptr;  // of a download that has not been delivered
    size_t bytes = 0;
    uint64_t ticket = 0;
    void deliver() { std::memcpy(std::exchange(destination, nullptr), pinned, bytes); }
  };

  Buffer& take() {
    Buffer& b = buffers_[next_++ % kStagingBuffers];
    if (!b.pinned) check(cudaMallocHost(&b.pinned, kStagingBytes), "cudaMallocHost");
    if (b.busy) check(b.copied.wait(), "waiting for a copy");
    if (b.destination) b.deliver();
    b.busy = false;
    return b;
  }

  std::mutex mutex_;
  Buffer buffers_[kStagingBuffers];
  size_t next_ = 0;
  uint64_t tickets_ = 0;
};

// Called from one thread at a time; only `done` of notify() runs elsewhere.
class CudaDevice final : public Device, private Stream {
 public:
  CudaDevice(int index, std::string name) : index_(index), name_(std::move(name)) {
    use();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "cudaStreamCreate");
    landed_ = std::make_unique<Event>();
    check(cudaHostAlloc(&faults_, sizeof(Faults), cudaHostAllocMapped), "cudaHostAlloc");
    new (faults_) Faults;
    check(cudaDeviceGetDefaultMemPool(&pool_, index), "cudaDeviceGetDefaultMemPool");
    uint64_t keep_all = UINT64_MAX;  // workspace is used again at each step: do not give it back
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep_all),
          "cudaMemPoolSetAttribute");
    // A landing place must not be memory that the compute stream has yet to free: the copy would wait for it.
    int no = 0;
    check(cudaMemPoolSetAttribute(pool_, cudaMemPoolReuseAllowInternalDependencies, &no),
          "cudaMemPoolSetAttribute");
    notifier_ = std::thread([this] { notify_loop(); });
  }

  ~CudaDevice() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_one();
    notifier_.join();
    cudaSetDevice(index_);
    cudaStreamSynchronize(stream_);
    for (const auto& [number, graph] : recordings_) cudaGraphExecDestroy(graph);
    cudaStreamDestroy(copies_);
    cudaStreamDestroy(stream_);
    cudaFreeHost(faults_);
  }

  std::string name() const override { return name_; }
  bool is_cuda() const override { return true; }

  void* allocate(size_t bytes) override {
    use();
    void* p = nullptr;
    if (cudaMalloc(&p, bytes ? bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();              // being full is not an error of the stream
    if (recording_) return nullptr;  // which must not be waited for
    cudaStreamSynchronize(stream_);
    cudaMemPoolTrimTo(pool_, 0);  // idle workspace may make room
    if (cudaMalloc(&p, bytes ? bytes : 1) == cudaSuccess) return p;
    cudaGetLastError();
    return nullptr;
  }
  void release(void* p, size_t) override {
    use();
    cudaFree(p);
  }

  void enqueue(const char* op, Task task) override {
    nvtxRangePushA(op);
    attempt(op, [&] { task(*this); });
    nvtxRangePop();
  }
  void upload(void* dst, const void* src, size_t bytes) override {
    attempt("upload", [&] {
      void* landing = nullptr;
      if (bytes < kLeastLanding || bytes > kMostLanding ||
          cudaMallocFromPoolAsync(&landing, bytes, pool_, copies_) != cudaSuccess) {
        cudaGetLastError();  // no room to land is no error
        return staging_.upload(stream_, dst, src, bytes);
      }
      staging_.upload(copies_, landing, src, bytes);
      landed_->record(copies_);
      landed_->hold_back(stream_);
      check(cudaMemcpyAsync(dst, landing, bytes, cudaMemcpyDeviceToDevice, stream_),
            "cudaMemcpyAsync on the device");
      check(cudaFreeAsync(landing, stream_), "cudaFreeAsync");
    });
  }
  void download(void* dst, const void* src, size_t bytes) override {
    attempt("download", [&] { staging_.download(stream_, dst, src, bytes); });
  }
  void fill(void* dst, uint8_t byte, size_t bytes) override {
    attempt("fill", [&] { check(cudaMemsetAsync(dst, byte, bytes, stream_), "cudaMemsetAsync"); });
  }

  void notify(Done done, bool keeps_error) override {
    Notice notice;
    attempt("notify", [&] {
      notice.reached = std::make_unique<Event>();
      notice.reached->record(stream_);
    });
    notice.error = keeps_error ? error_ : std::exchange(error_, {});
    notice.keeps_error = keeps_error;
    notice.ticket = staging_.last_ticket();
    notice.done = std::move(done);
    {
      const std::lock_guard lock(mutex_);
      notices_.push_back(std::move(notice));
    }
    wake_.notify_one();
  }

  void synchronize() override {
    attempt("synchronize", [&] {
      check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
      staging_.deliver(staging_.last_ticket());
    });
  }

  // A CUDA graph of the compute stream. Workspace becomes allocation nodes of the graph.
  bool can_record() const override { return true; }
  void begin_recording() override {
    attempt("recording a step", [&] {
      // Relaxed: the allocator may call cudaMalloc meanwhile.
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed),
            "cudaStreamBeginCapture");
      recording_ = true;
    });
  }
  int64_t end_recording() override {
    use();
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    cudaError_t status =
        std::exchange(recording_, false) ? cudaStreamEndCapture(stream_, &graph) : cudaSuccess;
    if (status == cudaSuccess && graph && error_.empty())
      status = cudaGraphInstantiate(&executable, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (!error_.empty()) throw std::runtime_error(std::exchange(error_, {}));
    check(status, "recording a step as a CUDA graph");
    recordings_[++last_recording_] = executable;
    return last_recording_;
  }
  void replay(int64_t recording) override {
    attempt("replay",
            [&] { check(cudaGraphLaunch(recordings_.at(recording), stream_), "cudaGraphLaunch"); });
  }
  void forget(int64_t recording) override {
    use();
    cudaStreamSynchronize(stream_);
    cudaGraphExecDestroy(recordings_.at(recording));
    recordings_.erase(recording);
  }

  size_t scratch_peak() const override { return scratch_peak_; }
  void reset_scratch_peak() override { scratch_peak_ = scratch_used_; }

 private:
  struct Notice {
    std::unique_ptr<Event> reached;  // null after an error: there is nothing to wait for
    uint64_t ticket = 0;
    std::string error;
    bool keeps_error = false;
    Done done;
  };

  void use() const { check(cudaSetDevice(index_), "cudaSetDevice"); }

  template <class F> void attempt(const char* op, F&& work) {
    if (!error_.empty()) return;
    try {
      use();
      work();
    } catch (const std::bad_alloc&) {
      error_ = std::string("ERR_MEMORY: ") + op +
               ": the GPU has no memory left for its workspace, beside the " +
               std::to_string(scratch_used_) +
               " bytes of workspace in use; use a smaller batch or checkpoint: true";
      cudaGetLastError();
    } catch (const std::exception& e) {
      error_ = std::string(op) + ": " + e.what();
      cudaGetLastError();  // clears an error of the call; one of the context stays
    }
  }

  void* native() override { return stream_; }
  Faults* faults() override { return faults_; }
  void* scratch_allocate(size_t bytes) override {  // the pool aligns to 256 bytes or more
    void* p = nullptr;
    if (cudaMallocFromPoolAsync(&p, bytes, pool_, stream_) != cudaSuccess) {
      cudaGetLastError();
      throw std::bad_alloc();
    }
    scratch_used_ += bytes;
    scratch_peak_ = std::max(scratch_peak_, scratch_used_);
    return p;
  }
  void scratch_release(void* p, size_t bytes) override {
    cudaFreeAsync(p, stream_);
    scratch_used_ -= bytes;
  }

  // A host function in the stream would not run at all after a failure on the device; an event
  // tells of it.
  void notify_loop() {
    cudaSetDevice(index_);
    for (;;) {
      Notice notice;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return closing_ || !notices_.empty(); });
        if (notices_.empty()) return;
        notice = std::move(notices_.front());
        notices_.pop_front();
      }
      if (notice.reached) {
        const cudaError_t status = notice.reached->wait();
        if (status != cudaSuccess && notice.error.empty())
          notice.error = cuda::explain(status, cudaGetErrorString(status));
        // The kernels before the event have written theirs.
        else if (notice.error.empty() && !notice.keeps_error) notice.error = faults_->take();
      }
      if (notice.error.empty()) staging_.deliver(notice.ticket);
      else staging_.abandon(notice.ticket);
      notice.done(notice.error);
    }
  }

  const int index_;
  const std::string name_;
  cudaStream_t stream_ = nullptr, copies_ = nullptr;
  std::unique_ptr<Event> landed_;
  Faults* faults_ = nullptr;  // host memory that the GPU writes to
  cudaMemPool_t pool_ = nullptr;
  std::map<int64_t, cudaGraphExec_t> recordings_;
  int64_t last_recording_ = 0;
  bool recording_ = false;
  Staging staging_;
  std::string error_;  // not empty: the stream is poisoned
  size_t scratch_used_ = 0, scratch_peak_ = 0;

  std::mutex mutex_;  // guards what the notifier shares
  std::condition_variable wake_;
  std::deque<Notice> notices_;
  bool closing_ = false;
  std::thread notifier_;
};

std::string why_no_device(cudaError_t status) {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return cuda::why_no_device(status, cudaGetErrorString(status), driver, CUDART_VERSION);
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(int index, std::string* why) {
  const auto refuse = [&](const std::string& reason) {
    cudaGetLastError();
    if (why) *why = reason;
    return nullptr;
  };
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return refuse(why_no_device(status));
  if (count == 0) return refuse("this machine has no CUDA device");
  if (index < 0 || index >= count)
    return refuse("CUDA device " + std::to_string(index) +
                  " was asked for, but the devices are 0 to " + std::to_string(count - 1));
  try {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    const std::string name = std::string(properties.name) + " (sm_" +
                             std::to_string(properties.major) + std::to_string(properties.minor) +
                             ")";
    if (properties.major < 8) return refuse(name + " is older than sm_80, which the kernels need");
    return std::make_unique<CudaDevice>(index, name);
  } catch (const std::exception& e) {
    return refuse(std::string("the CUDA device does not start: ") + e.what());
  }
}

bool cuda::is_host_runtime() { return false; }

}  // namespace siglip2
#endif
