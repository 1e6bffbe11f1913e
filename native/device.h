// What a device must answer. Work on a device is ordered: what is enqueued first is finished first, and
// memory freed by the host may be handed out again at once, because its next user is enqueued later.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "kernel.h"

namespace siglip2 {

using Task = std::function<void(Stream&)>;
using Done = std::function<void(const std::string& error)>;  // empty: all work so far succeeded

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  virtual bool is_cuda() const = 0;
  virtual bool is_dry() const { return false; }     // counts memory and computes nothing
  virtual void* allocate(size_t bytes) = 0;         // null when the device is full
  virtual void release(void* p, size_t bytes) = 0;  // call only after synchronize()
  virtual void enqueue(const char* op,
                       Task task) = 0;  // runs in order; a throw poisons the stream until notify()
  virtual void upload(void* dst, const void* src, size_t bytes) = 0;  // src may be reused on return
  virtual void download(void* dst, const void* src,
                        size_t bytes) = 0;  // dst is complete when notify() fires
  virtual void fill(void* dst, uint8_t byte, size_t bytes) = 0;
  // done runs on any thread, after all work so far, with the first error since the last notify(); an error that it keeps
  // goes to the next one too.
  virtual void notify(Done done, bool keeps_error = false) = 0;
  virtual void synchronize() = 0;  // blocks the caller

  // A recording: between begin and end, what is enqueued is noted and not run; replay() runs all of it again, in stream
  // order, for the price of one call. Memory that it uses must stay reserved for it (Allocator::begin_private). Uploads,
  // downloads and notifications cannot be recorded.
  virtual bool can_record() const { return false; }
  virtual void begin_recording() {}
  virtual int64_t end_recording() {
    return 0;
  }  // the recording's number; throws the first error since begin
  virtual void replay(int64_t /*recording*/) {}
  virtual void forget(int64_t /*recording*/) {}  // waits for its last replay

  virtual void cancel() { synchronize(); }  // drops what has not started, waits for what has
  // Time by op since the last call, where the device can tell: name, calls, seconds.
  struct Timing {
    std::string op;
    int64_t calls;
    double seconds;
  };
  virtual std::vector<Timing> take_profile() { return {}; }
  // Waits, then says how many threads are at work; from now on `hold` of them, 0: as many as the machine lets run, -1: no
  // change. 0 where the device has none.
  virtual int active_threads(int /*hold*/) { return 0; }
  virtual size_t scratch_peak() const = 0;  // most bytes of kernel workspace in use at once
  virtual void reset_scratch_peak() = 0;
};

std::unique_ptr<Device> make_cpu_device();
// Null when there is none; *why is then one sentence that says so.
std::unique_ptr<Device> make_cuda_device(int index, std::string* why);
// Counts what a CPU or a CUDA device would hold.
std::unique_ptr<Device> make_dry_device(bool cuda);

}  // namespace siglip2
