// The CPU device: one thread that runs tasks in order, so that JavaScript's event loop stays free while a step
// computes. Kernels use the team of that thread (threads.h); oneDNN is given parts of a product and starts no threads. The
// helpers are niced: on a machine whose cores are all computing, timers and the data loader still get a core at once
// (docs/architecture.md).
#include <omp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>
#include "../device.h"
#include "threads.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace siglip2 {

namespace {

constexpr size_t kHugePage = 2u << 20;

// Blocks of many megabytes, parameters above all, lie on huge pages where the system has them to give: a model is then
// loaded with a five-hundredth of the page faults.
void* allocate_aligned(size_t bytes) {
  const bool huge = bytes >= 8 * kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kHugePage : bytes >= kHugePage ? 4096 : 64, bytes ? bytes : 64))
    return nullptr;
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

// Workspace of the running kernel: exact-size reuse, so a training step allocates nothing after the first.
class CpuStream : public Stream {
 public:
  ~CpuStream() override {
    for (auto& [bytes, list] : cached_)
      for (void* p : list) std::free(p);
  }
  void* scratch_allocate(size_t bytes) override {
    auto& list = cached_[bytes];
    void* p = nullptr;
    if (list.empty()) {
      p = allocate_aligned(bytes);
      if (!p) throw std::bad_alloc();
    } else {
      p = list.back();
      list.pop_back();
      cached_bytes_ -= bytes;
    }
    live_ += bytes;
    size_t peak = peak_.load();
    while (live_ > peak && !peak_.compare_exchange_weak(peak, live_)) {}
    return p;
  }
  void scratch_release(void* p, size_t bytes) override {
    live_ -= bytes;
    if (cached_bytes_ + bytes > kMostCached) {
      std::free(p);
      return;
    }
    cached_[bytes].push_back(p);
    cached_bytes_ += bytes;
  }
  std::atomic<size_t> peak_{0};

 private:
  static constexpr size_t kMostCached = size_t{1} << 30;
  std::map<size_t, std::vector<void*>> cached_;
  size_t live_ = 0, cached_bytes_ = 0;
};

// Squares of small gradients are denormal, and each costs the processor a hundred cycles (sum_of_squares ran ten times
// slower with them): they are zero on every thread of the team.
void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

class CpuDevice : public Device {
 public:
  CpuDevice() : thread_([this] { run(); }) {}
  ~CpuDevice() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  std::string name() const override { return "cpu"; }
  bool is_cuda() const override { return false; }
  void* allocate(size_t bytes) override { return allocate_aligned(bytes); }
  void release(void* p, size_t) override { std::free(p); }
  void enqueue(const char* op, Task task) override { push({op, std::move(task), {}}); }
  void upload(void* dst, const void* src, size_t bytes) override {
    auto copy = std::make_shared<std::vector<uint8_t>>(static_cast<const uint8_t*>(src),
                                                       static_cast<const uint8_t*>(src) + bytes);
    enqueue("upload", [copy, dst](Stream&) { std::memcpy(dst, copy->data(), copy->size()); });
  }
  void download(void* dst, const void* src, size_t bytes) override {
    enqueue("download", [=](Stream&) { std::memcpy(dst, src, bytes); });
  }
  void fill(void* dst, uint8_t byte, size_t bytes) override {
    enqueue("fill", [=](Stream&) { std::memset(dst, byte, bytes); });
  }
  void notify(Done done, bool keeps_error) override {
    push({"notify", {}, std::move(done), keeps_error});
  }
  void synchronize() override {
    std::mutex m;
    std::condition_variable cv;
    bool reached = false;
    // A task, not notify(): the error stays for whoever asks for it.
    push({"synchronize",
          {},
          [&](const std::string&) {
            std::lock_guard lock(m);
            reached = true;
            cv.notify_one();
          },
          true,
          true});
    std::unique_lock lock(m);
    cv.wait(lock, [&] { return reached; });
  }
  void cancel() override {
    cancelling_ = true;
    synchronize();
    cancelling_ = false;
  }
  std::vector<Timing> take_profile() override {
    std::lock_guard lock(profile_mutex_);
    std::vector<Timing> out;
    for (auto& [op, t] : profile_) {
      auto same =
          std::find_if(out.begin(), out.end(), [op = op](const Timing& o) { return o.op == op; });
      if (same == out.end()) same = out.insert(out.end(), {op, 0, 0});
      same->calls += t.first;
      same->seconds += t.second;
    }
    profile_.clear();
    return out;
  }
  int active_threads(int hold) override {
    int active = 0;
    enqueue("threads", [&, hold](Stream&) {
      if (hold >= 0) team_->hold(hold);
      active = team_->active();
    });
    synchronize();
    return active;
  }
  size_t scratch_peak() const override { return stream_.peak_; }
  void reset_scratch_peak() override { stream_.peak_ = 0; }

 private:
  struct Item {
    const char* op;
    Task task;
    Done done;
    bool keeps_error = false, even_cancelled = false;
  };
  void push(Item item) {
    bool idle;
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(item));
      idle = idle_;
    }
    if (idle) wake_.notify_one();
  }
  void run() {
    omp_set_num_threads(1);
    flush_denormals();
    // With a core to spare nobody has to wait for the helpers, and then they need not give way either.
    const bool nice = thread_count() >= static_cast<int>(std::thread::hardware_concurrency());
    Team team(thread_count(), [nice] {
      if (nice) setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), 10);
      omp_set_num_threads(1);
      flush_denormals();
    });
    team_ = &team;
    std::string error;
    std::deque<Item> batch;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        idle_ = true;
        wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
        idle_ = false;
        if (stop_) return;
        batch.swap(queue_);
      }
      for (Item& item : batch) {
        if (item.done) {
          if (cancelling_ && !item.even_cancelled) continue;
          item.done(error);
          if (!item.keeps_error) error.clear();
        } else if (error.empty() && !cancelling_) {
          const auto begin = std::chrono::steady_clock::now();
          try {
            item.task(stream_);
          } catch (const std::exception& e) {
            error = std::string(item.op) + ": " + e.what();
          }
          std::lock_guard lock(profile_mutex_);
          auto& timing = profile_[item.op];
          timing.first++;
          timing.second +=
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        }
        item = {};  // gives captured memory back in order
      }
      batch.clear();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Item> queue_;
  bool idle_ = false;
  bool stop_ = false;
  std::atomic<bool> cancelling_{false};
  CpuStream stream_;
  Team* team_ = nullptr;  // of the stream's thread, which alone touches it
  std::mutex profile_mutex_;
  std::unordered_map<const char*, std::pair<int64_t, double>>
      profile_;         // by the name's address: quick
  std::thread thread_;  // last: starts when the rest is there
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() { return std::make_unique<CpuDevice>(); }

}  // namespace siglip2
