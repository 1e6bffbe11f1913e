// Every ASan and TSan hook of the host runtime; without a sanitizer all of them are empty.
//
// TSan: each CUDA thread is a TSan fiber. Only what orders memory on a GPU (barriers, mbarriers,
// __syncwarp) acquires and releases; shuffles and matrix instructions order nothing. The runtime's
// own files are compiled without -fsanitize=thread, with SIGLIP2_CUDA_HOST_TSAN defined, and report
// the accesses they make for the kernel.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_HOST_ASAN 1
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(SIGLIP2_CUDA_HOST_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace cuda_host::sanitizer {

#if defined(SIGLIP2_CUDA_HOST_TSAN)
constexpr bool tsan = true;
inline void acquire(void* p) { __tsan_acquire(p); }
inline void release(void* p) { __tsan_release(p); }
inline void reads(const void* p, size_t bytes) { __tsan_read_range(const_cast<void*>(p), bytes); }
inline void writes(void* p, size_t bytes) { __tsan_write_range(p, bytes); }
inline void* current_fiber() { return __tsan_get_current_fiber(); }
inline void* create_fiber() { return __tsan_create_fiber(0); }
inline void become(void* fiber) {
  __tsan_switch_to_fiber(fiber, 1);
}  // 1: the switch itself orders nothing
struct Quiet {  // while the runtime's own containers, which all fibers share, are touched
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};
#else
constexpr bool tsan = false;
inline void acquire(void*) {}
inline void release(void*) {}
inline void reads(const void*, size_t) {}
inline void writes(void*, size_t) {}
inline void* current_fiber() { return nullptr; }
inline void* create_fiber() { return nullptr; }
inline void become(void*) {}
struct Quiet {
  Quiet() {}
  ~Quiet() {}
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};
#endif

#if defined(CUDA_HOST_ASAN)
inline void poison(void* p, size_t bytes) { ASAN_POISON_MEMORY_REGION(p, bytes); }
inline void unpoison(void* p, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(p, bytes); }
// fake: where to keep the leaving fiber's fake stack, or null when the fiber ends here.
inline void before_switch(void** fake, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(fake, stack, bytes);
}
inline void after_switch(void* fake) { __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); }
inline void own_stack(void** stack, size_t* bytes) {
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, stack, bytes);
  pthread_attr_destroy(&attributes);
}
#else
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
inline void before_switch(void**, const void*, size_t) {}
inline void after_switch(void*) {}
inline void own_stack(void** stack, size_t* bytes) {
  *stack = nullptr;
  *bytes = 0;
}
#endif

}  // namespace cuda_host::sanitizer
