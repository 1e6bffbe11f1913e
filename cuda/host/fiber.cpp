#include "fiber.h"
#include <sys/mman.h>
#include "runtime.h"
#include "sanitizer.h"

namespace cuda_host {
namespace {
constexpr size_t kGuard = 4096;
}

#if !defined(CUDA_HOST_UCONTEXT)
// Saves the callee-saved registers on the old stack and takes the new one. swapcontext would cost a
// system call for the signal mask at each switch, which is fifteen times the price.
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_host_switch
.hidden cuda_host_switch
.type cuda_host_switch,@function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch,.-cuda_host_switch
)");
#endif

void prepare_fiber(Fiber& fiber, void (*entry)()) {
  fiber.asan_fake_stack = nullptr;
#if defined(CUDA_HOST_UCONTEXT)
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  auto top = reinterpret_cast<void**>(static_cast<uint8_t*>(fiber.stack) + fiber.stack_bytes);
  *--top = nullptr;  // a return address that stops unwinders, and leaves rsp % 16 == 8 at entry as
                     // the ABI asks
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#endif
}

void entered_fiber() { sanitizer::after_switch(nullptr); }

void switch_fiber(Fiber& from, Fiber& to, bool from_ends) {
  sanitizer::before_switch(from_ends ? nullptr : &from.asan_fake_stack, to.stack, to.stack_bytes);
  sanitizer::become(to.tsan_fiber);
#if defined(CUDA_HOST_UCONTEXT)
  swapcontext(&from.context, &to.context);
#else
  cuda_host_switch(&from.stack_pointer, to.stack_pointer);
#endif
  sanitizer::after_switch(from.asan_fake_stack);
}

void adopt_os_thread(Fiber& fiber) {
  sanitizer::own_stack(&fiber.stack, &fiber.stack_bytes);
  fiber.tsan_fiber = sanitizer::current_fiber();
}

StackPool::~StackPool() { clear(); }

void StackPool::clear() {
  for (uint8_t* p : stacks_) munmap(p, bytes_ + kGuard);
  stacks_.clear();
}

void StackPool::give(Fiber& fiber, size_t index, size_t bytes) {
  if (bytes != bytes_) {
    clear();
    bytes_ = bytes;
  }
  while (stacks_.size() <= index) {
    void* p = mmap(nullptr, bytes + kGuard, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error("no memory for the stack of a CUDA thread");
    mprotect(p, kGuard, PROT_NONE);
    stacks_.push_back(static_cast<uint8_t*>(p));
  }
  fiber.stack = stacks_[index] + kGuard;
  fiber.stack_bytes = bytes;
}

void StackPool::scrub() {
  for (uint8_t* p : stacks_) sanitizer::unpoison(p + kGuard, bytes_);
}

}  // namespace cuda_host
