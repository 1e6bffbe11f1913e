// What a .cu file sees in the host build in place of the CUDA headers: keywords, built-in
// variables, intrinsics.
#pragma once
#include <algorithm>
#include <cmath>
#include "runtime.h"

// Not thread_local: ASan puts red zones round globals, but not round thread-local variables.
#define __shared__ static
#define __global__
#define __device__
#define __host__
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (::cuda_host::view->thread)
#define blockIdx (::cuda_host::view->block)
#define blockDim (::cuda_host::view->block_size)
#define gridDim (::cuda_host::view->grid_size)
constexpr int warpSize = 32;

#define SIGLIP2_WHERE ::cuda_host::Where where = ::cuda_host::Where::current()

inline void __syncthreads(SIGLIP2_WHERE) { cuda_host::barrier_sync(0, 0, where); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, SIGLIP2_WHERE) {
  cuda_host::sync_warp(mask, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_host::yield_thread(); }
inline void __trap(SIGLIP2_WHERE) { cuda_host::trap("__trap", where); }

namespace cuda_host {
template <class T> T shuffle_value(uint32_t mask, T value, int source_lane, Where where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source_lane, where);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
// The lane itself when the source would lie outside its segment of `width` lanes.
inline int source_in_segment(int source, int width) {
  const int lane = static_cast<int>(view->lane);
  return source >= 0 && source / width == lane / width ? source : -1;
}
}  // namespace cuda_host

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, SIGLIP2_WHERE) {
  const int lane = static_cast<int>(cuda_host::view->lane);
  return cuda_host::shuffle_value(mask, value, lane / width * width + (source & (width - 1)),
                                  where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32, SIGLIP2_WHERE) {
  const int source = static_cast<int>(cuda_host::view->lane) ^ lane_mask;
  const int lane = static_cast<int>(cuda_host::view->lane);
  // Hardware lets a lane read an earlier segment here, not a later one.
  return cuda_host::shuffle_value(mask, value, source / width > lane / width ? -1 : source, where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32, SIGLIP2_WHERE) {
  const int source = static_cast<int>(cuda_host::view->lane) + delta;
  return cuda_host::shuffle_value(mask, value, cuda_host::source_in_segment(source, width), where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, int delta, int width = 32, SIGLIP2_WHERE) {
  const int source = static_cast<int>(cuda_host::view->lane) - delta;
  return cuda_host::shuffle_value(mask, value, cuda_host::source_in_segment(source, width), where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, SIGLIP2_WHERE) {
  return cuda_host::ballot(mask, predicate != 0, where);
}
inline int __any_sync(uint32_t mask, int predicate, SIGLIP2_WHERE) {
  return cuda_host::ballot(mask, predicate != 0, where) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, SIGLIP2_WHERE) {
  return cuda_host::ballot(mask, predicate != 0, where) == mask;
}

// One OS thread runs a grid and only waits switch threads, so a plain read-modify-write would do;
// but TSan would report two blocks that add to one word.
namespace cuda_host {
template <class T, class F> T atomic_update(T* p, F update) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do next = update(old);
  while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
}  // namespace cuda_host
template <class T> T atomicAdd(T* p, std::type_identity_t<T> v) {
  return cuda_host::atomic_update(p, [v](T old) { return static_cast<T>(old + v); });
}
template <class T> T atomicMax(T* p, std::type_identity_t<T> v) {
  return cuda_host::atomic_update(p, [v](T old) { return std::max(old, v); });
}
template <class T> T atomicMin(T* p, std::type_identity_t<T> v) {
  return cuda_host::atomic_update(p, [v](T old) { return std::min(old, v); });
}
template <class T> T atomicExch(T* p, std::type_identity_t<T> v) {
  return cuda_host::atomic_update(p, [v](T) { return v; });
}
template <class T> T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return cuda_host::atomic_update(p, [=](T old) { return old == expected ? v : old; });
}

template <class T> T __ldg(const T* p) { return *p; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
using std::max;
using std::min;
