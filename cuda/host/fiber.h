// Context switches between the CUDA threads of a block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>
#if !defined(__x86_64__)
#define CUDA_HOST_UCONTEXT 1
#include <ucontext.h>
#endif

namespace cuda_host {

struct Fiber {
#if defined(CUDA_HOST_UCONTEXT)
  ucontext_t context;
#endif
  void* stack_pointer = nullptr;
  void* stack = nullptr;
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

void prepare_fiber(Fiber& fiber,
                   void (*entry)());  // entry must call entered_fiber() first and never return
void entered_fiber();
void switch_fiber(Fiber& from, Fiber& to, bool from_ends);
void adopt_os_thread(Fiber& fiber);  // makes `fiber` stand for the calling OS thread's own stack

// Fiber stacks, each with a guard page below it; kept between grids.
class StackPool {
 public:
  ~StackPool();
  void give(Fiber& fiber, size_t index, size_t bytes);
  void scrub();  // after a failed grid: forget the red zones of frames that were abandoned

 private:
  void clear();
  std::vector<uint8_t*> stacks_;
  size_t bytes_ = 0;
};

}  // namespace cuda_host
