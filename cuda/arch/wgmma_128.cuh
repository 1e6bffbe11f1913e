// wgmma m64n96k16 and m64n128k16 (sm_90a), the products of attention. As in wgmma.cuh, where descriptors and waiting are
// explained.
#pragma once
#include "wgmma.cuh"

namespace siglip2::cuda {

#define SIGLIP2_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIGLIP2_16(d, i) \
  SIGLIP2_4(d, i), SIGLIP2_4(d, i + 4), SIGLIP2_4(d, i + 8), SIGLIP2_4(d, i + 12)
#define SIGLIP2_48(d) SIGLIP2_16(d, 0), SIGLIP2_16(d, 16), SIGLIP2_16(d, 32)
#define SIGLIP2_64(d) SIGLIP2_48(d), SIGLIP2_16(d, 48)
#define SIGLIP2_REGISTERS_48                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"           \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define SIGLIP2_REGISTERS_64                                         \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"           \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// d (64, 96) (+)= a (64, 16) b (16, 96), A from registers.
template <bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n96k16(float (&d)[48], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, a, 0, b, 96, accumulate, false, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_48
      "}, {%48,%49,%50,%51}, %52, p, 1, 1, %54;\n"
      "}"
      : SIGLIP2_48(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),
        "n"(int{kTransposeB}));
#else
  __trap();
#endif
}
// d (64, 128) (+)= a (64, 16) b (16, 128), A from registers.
template <bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                 bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, a, 0, b, 128, accumulate, false, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_64
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n"
      "}"
      : SIGLIP2_64(d)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),
        "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

// d (64, 128) (+)= a (64, 16) b (16, 128), both from shared memory.
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b,
                                                 bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, nullptr, a, b, 128, accumulate, kTransposeA, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_64
      "}, %64, %65, p, 1, 1, %67, %68;\n"
      "}"
      : SIGLIP2_64(d)
      : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeA}), "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

#undef SIGLIP2_4
#undef SIGLIP2_16
#undef SIGLIP2_48
#undef SIGLIP2_64
#undef SIGLIP2_REGISTERS_48
#undef SIGLIP2_REGISTERS_64

}  // namespace siglip2::cuda
