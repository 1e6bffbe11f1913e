// Exact-size free lists in front of a device. Training repeats its sizes, so after the first step no call reaches the
// device. Used from the JavaScript thread only; stream order makes immediate reuse safe (device.h).
#pragma once
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>
#include "device.h"

namespace siglip2 {

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Allocator {
 public:
  explicit Allocator(Device& device) : device_(device) {}
  ~Allocator() {
    while (!sets_.empty()) give_up(sets_.begin()->first);
    flush();
  }

  void* allocate(size_t bytes);  // throws OutOfMemory; the state is then unchanged
  void free(void* p, size_t bytes);
  void flush();  // gives cached blocks back to the device; waits for it

  // From here on every block comes from a set of its own, until end_private(); freed blocks go back to that set, for a
  // recording writes to its blocks whenever it is replayed. give_up() makes them common property again.
  int64_t begin_private();
  void end_private() { private_ = nullptr; }
  void give_up(int64_t set);

  // Debug mode of the tests: new memory is filled with a NaN pattern, and guard zones around it are checked when it is
  // freed. Set it while nothing is live.
  void set_debug(bool on);
  int64_t guard_violations();  // found so far; complete after synchronize()

  size_t live() const { return live_; }
  size_t peak() const { return peak_; }
  size_t reserved() const { return reserved_; }
  void reset_peak() { peak_ = live_; }
  size_t limit = SIZE_MAX;

 private:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kGuardByte = 0xA5, kPoisonByte = 0xFF;  // 0xFFFFFFFF and 0xFFFF are NaN
  size_t block_bytes(size_t bytes) const;
  void check_guards(uint8_t* block, size_t bytes);

  struct Violations {
    std::mutex mutex;
    int64_t count = 0;
  };
  Device& device_;
  using FreeLists = std::map<size_t, std::vector<void*>>;
  FreeLists cached_;
  std::map<int64_t, FreeLists> sets_;  // of the recordings
  std::map<void*, int64_t> owners_;    // blocks that belong to a set
  FreeLists* private_ = nullptr;       // the set that blocks come from now; null: the common one
  int64_t last_set_ = 0;
  size_t live_ = 0, peak_ = 0, reserved_ = 0;
  bool debug_ = false;
  std::shared_ptr<Violations> violations_ = std::make_shared<Violations>();
};

}  // namespace siglip2
