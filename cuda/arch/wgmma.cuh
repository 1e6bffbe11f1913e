// wgmma (sm_90a): asynchronous products of a warpgroup, bf16 operands, float accumulators. An
// operand is a shared-memory descriptor or, for A, registers. "K-major" is how Q Kᵀ reads both
// operands; with kTranspose the operand is MN-major, as V is in P V. Accumulators may be read only
// after wgmma_wait.
#pragma once
#include "ptx.cuh"

namespace siglip2::cuda {

// Registers of earlier instructions before the first wgmma of a group that uses them.
__device__ __forceinline__ void wgmma_fence() {
#if defined(SIGLIP2_SM90A)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit(WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_commit(where);
#elif defined(SIGLIP2_SM90A)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
template <int kGroupsLeft> __device__ __forceinline__ void wgmma_wait(WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_wait(kGroupsLeft, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
#else
  __trap();
#endif
}

// Moves registers between warpgroups. The kernel needs __launch_bounds__(threads, 1), or ptxas
// ignores it (C7508). They come from what the launch gave the block, 168 for each of 384 threads, and not from all
// 65,536: who takes more waits for ever.
template <int kRegisters> __device__ __forceinline__ void take_registers(WHERE) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::set_registers(kRegisters, true, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters> __device__ __forceinline__ void give_registers(WHERE) {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::set_registers(kRegisters, false, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Descriptors. Offsets in bytes. With the 128-byte swizzle: K-major ignores `leading`, `stride` =
// 1024 (8 rows of 128 B); MN-major has `leading` = distance of 64-wide column blocks, `stride` =
// 1024 (8 rows of k). Without swizzle: 8x8 core matrices of 128 contiguous bytes; K-major has
// `leading` = distance along k and `stride` along m or n, MN-major the other way round.
enum class Swizzle : uint64_t { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };
template <Swizzle kSwizzle> __device__ __forceinline__ uint64_t matrix_descriptor(const void* p,
                                                                                  uint32_t leading,
                                                                                  uint32_t stride) {
  return uint64_t{(shared_address(p) & 0x3ffff) >> 4} | uint64_t{leading >> 4} << 16 |
         uint64_t{stride >> 4} << 32 | static_cast<uint64_t>(kSwizzle) << 62;
}

#define SIGLIP2_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIGLIP2_16(d, i) \
  SIGLIP2_4(d, i), SIGLIP2_4(d, i + 4), SIGLIP2_4(d, i + 8), SIGLIP2_4(d, i + 12)
#define SIGLIP2_32(d) SIGLIP2_16(d, 0), SIGLIP2_16(d, 16)
#define SIGLIP2_36(d) SIGLIP2_32(d), SIGLIP2_4(d, 32)
#define SIGLIP2_REGISTERS_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define SIGLIP2_REGISTERS_32                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"           \
  "%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define SIGLIP2_REGISTERS_36                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,"           \
  "%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35"

// d (64, 32) (+)= a (64, 16) b (16, 32), both from shared memory.
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n32k16(float (&d)[16], uint64_t a, uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, nullptr, a, b, 32, accumulate, kTransposeA, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_16
      "}, %16, %17, p, 1, 1, %19, %20;\n"
      "}"
      : SIGLIP2_16(d, 0)
      : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeA}), "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

// d (64, 64) (+)= a (64, 16) b (16, 64): A from shared memory, then A from registers.
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, nullptr, a, b, 64, accumulate, kTransposeA, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_32
      "}, %32, %33, p, 1, 1, %35, %36;\n"
      "}"
      : SIGLIP2_32(d)
      : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeA}), "n"(int{kTransposeB}));
#else
  __trap();
#endif
}
template <bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, a, 0, b, 64, accumulate, false, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_32
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n"
      "}"
      : SIGLIP2_32(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),
        "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

// d (64, 72) (+)= a (64, 16) b (16, 72): A from shared memory, then A from registers.
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n72k16(float (&d)[36], uint64_t a, uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, nullptr, a, b, 72, accumulate, kTransposeA, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_36
      "}, %36, %37, p, 1, 1, %39, %40;\n"
      "}"
      : SIGLIP2_36(d)
      : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeA}), "n"(int{kTransposeB}));
#else
  __trap();
#endif
}
template <bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n72k16(float (&d)[36], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, a, 0, b, 72, accumulate, false, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %41, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_36
      "}, {%36,%37,%38,%39}, %40, p, 1, 1, %42;\n"
      "}"
      : SIGLIP2_36(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),
        "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

#undef SIGLIP2_4
#undef SIGLIP2_16
#undef SIGLIP2_32
#undef SIGLIP2_36
#undef SIGLIP2_REGISTERS_16
#undef SIGLIP2_REGISTERS_32
#undef SIGLIP2_REGISTERS_36

}  // namespace siglip2::cuda
