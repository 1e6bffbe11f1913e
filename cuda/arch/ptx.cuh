// The only place with PTX. Each wrapper has a device body and a host body with the same meaning;
// the host bodies are in host/. sm_90 wrappers trap when they are compiled for an older target, so
// that one source builds for all.
#pragma once
#include <cstdint>
#ifdef SIGLIP2_CUDA_HOST
#include "../host/cuda_host.h"
// Kernels' lines appear in the reports of the host runtime; on a GPU there is no such argument.
#define WHERE SIGLIP2_WHERE
#define AND_WHERE , SIGLIP2_WHERE
#else
#include <cuda.h>
#include <cuda_bf16.h>
#define WHERE
#define AND_WHERE
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SIGLIP2_SM90 1
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SIGLIP2_SM90A 1
#endif
#endif

namespace siglip2::cuda {

// ---- arithmetic ---------------------------------------------------------------------------------

__device__ __forceinline__ float ex2(float x) {  // 2^x
#ifdef SIGLIP2_CUDA_HOST
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// Two sums of bf16.
__device__ __forceinline__ uint32_t add_bf16x2(uint32_t a, uint32_t b) {
#ifdef SIGLIP2_CUDA_HOST
  const auto upper = [](uint32_t x) { return __uint_as_float(x & 0xffff0000u); };
  return pack_bf16(upper(a << 16) + upper(b << 16), upper(a) + upper(b));
#elif defined(SIGLIP2_SM90)
  uint32_t sum;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  return sum;
#else
  __trap();
  return 0;
#endif
}

// The same number, but what is computed from it is computed here: it is not kept in registers over
// a loop around this.
__device__ __forceinline__ int opaque(int x) {
#ifndef SIGLIP2_CUDA_HOST
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// ---- shared memory, barriers --------------------------------------------------------------------

__device__ __forceinline__ uint32_t shared_address(const void* p) {
#ifdef SIGLIP2_CUDA_HOST
  return cuda_host::shared_address(p);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

// Named barriers 1-15; `threads` counts those that arrive and those that wait: a multiple of 32.
__device__ __forceinline__ void barrier_sync(int id, int threads AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::barrier_sync(id, threads, where);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
__device__ __forceinline__ void barrier_arrive(int id, int threads AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::barrier_arrive(id, threads, where);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- cp.async (sm_80) ---------------------------------------------------------------------------

// 16 bytes, past L1. Not valid: zeros are written; src is not read but must still be an address.
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, bool valid) {
  const int bytes = valid ? 16 : 0;
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::cp_async(dst, src, 16, bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src),
               "r"(bytes)
               : "memory");
#endif
}
// The same for a source of 0 to 16 bytes; the rest of the 16 is zeros.
__device__ __forceinline__ void cp_async_16_of(void* dst, const void* src, int bytes) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::cp_async(dst, src, 16, bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src),
               "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kGroupsLeft> __device__ __forceinline__ void cp_async_wait() {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::cp_async_wait(kGroupsLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

// ---- warp-level matrix instructions (sm_80) -----------------------------------------------------

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::ldmatrix(r, 4, false, row, where);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4],
                                                       const void* row AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::ldmatrix(r, 4, true, row, where);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}
// d (16, 8) += a (16, 16) b (16, 8), bf16 operands.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1 AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  const uint32_t b[2] = {b0, b1};
  cuda_host::mma_m16n8k16(d, a, b, where);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- clusters (sm_90) ---------------------------------------------------------------------------

// Which block of the cluster this is.
__device__ __forceinline__ uint32_t cluster_rank() {
#ifdef SIGLIP2_CUDA_HOST
  return cuda_host::cluster_rank();
#elif defined(SIGLIP2_SM90)
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
// All threads of the cluster meet; what they wrote to shared memory before is seen after. No block may exit while others
// may still copy to its shared memory or arrive at its barriers.
__device__ __forceinline__ void cluster_sync(WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::cluster_sync(where);
#elif defined(SIGLIP2_SM90)
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __trap();
#endif
}

// ---- mbarrier and TMA (sm_90) -------------------------------------------------------------------

#ifdef SIGLIP2_CUDA_HOST
using TensorMap = cuda_host::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::mbarrier_init(barrier, arrivals);
#elif defined(SIGLIP2_SM90)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void
fence_mbarrier_init() {  // makes the init visible to the copy engine
#if defined(SIGLIP2_SM90)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void
fence_proxy_async() {  // own shared-memory writes before wgmma or TMA reads
#if defined(SIGLIP2_SM90)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::mbarrier_arrive(barrier, 0);
#elif defined(SIGLIP2_SM90)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::mbarrier_arrive(barrier, bytes);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}
// Arrives at the barrier that another block of the cluster has at this place.
__device__ __forceinline__ void mbarrier_arrive_in(uint64_t* barrier, uint32_t rank) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::mbarrier_arrive_in(barrier, rank);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#else
  __trap();
#endif
}
// Returns when the phase of that parity is complete; a fresh barrier is in phase 0, and phase "-1"
// (1) is complete.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::mbarrier_wait(barrier, parity, where);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@!complete bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  __trap();
#endif
}

// A box of a tensor map to shared memory; completes `barrier` by its bytes. x is innermost.
__device__ __forceinline__ void tma_load_2d(void* dst, const TensorMap* map, int x, int y,
                                            uint64_t* barrier) {
#ifdef SIGLIP2_CUDA_HOST
  const int coordinates[2] = {x, y};
  cuda_host::tma_load(dst, map, coordinates, barrier);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(shared_address(dst)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
#else
  __trap();
#endif
}
// The same for every block of the cluster whose rank is a bit of `blocks`: each gets the box, and the bytes for its
// barrier, at the same places as this one.
__device__ __forceinline__ void tma_load_2d_for(void* dst, const TensorMap* map, int x, int y,
                                                uint64_t* barrier, uint32_t blocks) {
#ifdef SIGLIP2_CUDA_HOST
  const int coordinates[2] = {x, y};
  cuda_host::tma_load(dst, map, coordinates, barrier, blocks);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster [%0], "
      "[%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(dst)),
      "l"(map), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(blocks)), "r"(x), "r"(y)
      : "memory");
#else
  __trap();
#endif
}
// A box of a map with three dimensions, for this block.
__device__ __forceinline__ void tma_load_3d(void* dst, const TensorMap* map, int x, int y, int z,
                                            uint64_t* barrier) {
#ifdef SIGLIP2_CUDA_HOST
  const int coordinates[3] = {x, y, z};
  cuda_host::tma_load(dst, map, coordinates, barrier);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(shared_address(dst)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void tma_store_2d(const TensorMap* map, int x, int y, const void* src) {
#ifdef SIGLIP2_CUDA_HOST
  const int coordinates[2] = {x, y};
  cuda_host::tma_store(map, coordinates, src);
#elif defined(SIGLIP2_SM90)
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared_address(src)), "r"(x), "r"(y)
      : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void bulk_commit() {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::bulk_commit();
#elif defined(SIGLIP2_SM90)
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  __trap();
#endif
}
template <int kGroupsLeft> __device__ __forceinline__ void bulk_wait() {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::bulk_wait(kGroupsLeft);
#elif defined(SIGLIP2_SM90)
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  __trap();
#endif
}

}  // namespace siglip2::cuda
