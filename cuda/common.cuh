// What every kernel file shares: launching, dynamic shared memory, 16-byte packs, reductions,
// element types.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include "../native/kernel.h"
#include "errors.h"
#include "arch/ptx.cuh"

#ifdef SIGLIP2_CUDA_HOST
#define DYN_SMEM(name) auto* const name = static_cast<unsigned char*>(::cuda_host::dynamic_shared())
#else
#define DYN_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace siglip2 {
template <> inline constexpr DType dtype_of<__nv_bfloat16> = DType::bf16;
}

namespace siglip2::cuda {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T> __host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }

// ---- host side ----------------------------------------------------------------------------------

#ifdef SIGLIP2_CUDA_HOST
template <class... P, class... A> void launch_clusters(void (*kernel)(P...), unsigned cluster,
                                                       dim3 grid, dim3 block, size_t smem, Stream&,
                                                       A&&... arguments) {
  if (cuda_host::dry()) return;
  cuda_host::run_kernel(kernel, grid, block, smem, cluster, std::forward<A>(arguments)...);
}
#else
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(call) + ": " +
                             explain(status, cudaGetErrorString(status)));
}
// Blocks of which `cluster` neighbours along x run at the same time (sm_90) and can share copies.
template <class... P, class... A> void launch_clusters(void (*kernel)(P...), unsigned cluster,
                                                       dim3 grid, dim3 block, size_t smem,
                                                       Stream& s, A&&... arguments) {
  if (smem > (48 << 10))  // more is opt-in, per kernel; the call only notes the number
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(smem)),
          "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = smem;
  config.stream = static_cast<cudaStream_t>(s.native());
  cudaLaunchAttribute size{};
  if (cluster > 1) {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {cluster, 1, 1};
    config.attrs = &size;
    config.numAttrs = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...), "cudaLaunchKernelEx");
}
#endif
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, Stream& s, A&&... arguments) {
  launch_clusters(kernel, 1, grid, block, smem, s, std::forward<A>(arguments)...);
}

// Calls f with a value of the element type: dispatch_element(x.dtype, [&](auto t) { using T =
// decltype(t); … }).
template <class F> void dispatch_element(DType d, F&& f) {
  if (d == DType::f32) return f(float{});
  if (d == DType::bf16) return f(__nv_bfloat16{});
  throw std::invalid_argument(std::string("a tensor is ") + name_of(d) +
                              " where the kernel needs f32 or bf16");
}

// Every pointer is null or 16-byte aligned. Tensors may be views into an arena, so this is asked at
// run time.
template <class... P> bool aligned_16(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) % 16 == 0) && ...);
}

template <class T> struct Pack;

// Calls f with the number of values that a thread takes at a time, as a constant: a pack's size or 1.
template <class T, class F> void dispatch_packs(bool packs, F&& f) {
  if (packs) f(std::integral_constant<int, Pack<T>::size>{});
  else f(std::integral_constant<int, 1>{});
}

// ---- 16-byte packs ------------------------------------------------------------------------------

template <class T> struct alignas(16) Pack {
  static constexpr int size = 16 / static_cast<int>(sizeof(T));
  uint4 bits;

  __device__ __forceinline__ static Pack load(const T* p) {
    return {*reinterpret_cast<const uint4*>(p)};
  }
  __device__ __forceinline__ static Pack zero() { return {uint4{0, 0, 0, 0}}; }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<uint4*>(p) = bits; }
  // Unpacked, changed as floats, packed again: indices are constants after unrolling, so this stays
  // in registers.
  __device__ __forceinline__ void unpack(float (&values)[size]) const {
    T elements[size];
    memcpy(elements, &bits, 16);
#pragma unroll
    for (int i = 0; i < size; ++i) values[i] = static_cast<float>(elements[i]);
  }
  __device__ __forceinline__ static Pack from(const float (&values)[size]) {
    T elements[size];
#pragma unroll
    for (int i = 0; i < size; ++i) elements[i] = static_cast<T>(values[i]);
    Pack pack;
    memcpy(&pack.bits, elements, 16);
    return pack;
  }
};

// V neighbouring values as floats: in packs where V fills them, so p must be 16-byte aligned then; one by one
// otherwise. Kernels take V as a template argument, a pack's size or 1, and are written once.
template <class T, int V>
__device__ __forceinline__ void load_values(float (&values)[V], const T* p) {
  constexpr int size = Pack<T>::size;
  if constexpr (V % size == 0) {
#pragma unroll
    for (int i = 0; i < V; i += size) {
      float part[size];
      Pack<T>::load(p + i).unpack(part);
#pragma unroll
      for (int k = 0; k < size; ++k) values[i + k] = part[k];
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = static_cast<float>(p[i]);
  }
}
template <class T, int V>
__device__ __forceinline__ void store_values(T* p, const float (&values)[V]) {
  constexpr int size = Pack<T>::size;
  if constexpr (V % size == 0) {
#pragma unroll
    for (int i = 0; i < V; i += size) {
      float part[size];
#pragma unroll
      for (int k = 0; k < size; ++k) part[k] = values[i + k];
      Pack<T>::from(part).store(p + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = static_cast<T>(values[i]);
  }
}

// ---- bad values ---------------------------------------------------------------------------------

// Notes that row `row` holds a value that is not below `limit`; see native/fault.h.
__device__ __forceinline__ void note_fault(Faults* faults, FaultKind kind, int64_t row,
                                           int32_t value, int64_t limit) {
  if (!faults) return;
  Fault& fault = faults->of[static_cast<int>(kind)];
  atomicExch(&fault.limit, static_cast<unsigned long long>(limit));
  atomicMin(&fault.first,
            static_cast<unsigned long long>(row) << 32 | static_cast<uint32_t>(value));
}

// ---- reductions in a fixed order ----------------------------------------------------------------

template <class T> __device__ __forceinline__ T warp_sum(T v) {  // every lane gets the sum
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}
// Thread 0 gets the sum over a block of whole warps. `shared` holds one T for each warp; it may be
// used again after the next barrier.
template <class T> __device__ __forceinline__ T block_sum(T v, T* shared) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  v = warp_sum(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0)
    for (unsigned w = 0; w < warps; ++w) total += shared[w];
  return total;
}

}  // namespace siglip2::cuda
