// wgmma m64n256k16 (sm_90a): the widest product, for which shared memory is read least often. As in
// wgmma.cuh, where descriptors and waiting are explained.
#pragma once
#include "wgmma.cuh"

namespace siglip2::cuda {

#define SIGLIP2_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIGLIP2_16(d, i) \
  SIGLIP2_4(d, i), SIGLIP2_4(d, i + 4), SIGLIP2_4(d, i + 8), SIGLIP2_4(d, i + 12)
#define SIGLIP2_64(d, i) \
  SIGLIP2_16(d, i), SIGLIP2_16(d, i + 16), SIGLIP2_16(d, i + 32), SIGLIP2_16(d, i + 48)
#define SIGLIP2_REGISTERS_128                                                    \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                       \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"             \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"             \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"             \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"             \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"             \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// d (64, 256) (+)= a (64, 16) b (16, 256), both from shared memory.
template <bool kTransposeA, bool kTransposeB>
__device__ __forceinline__ void wgmma_m64n256k16(float (&d)[128], uint64_t a, uint64_t b,
                                                 bool accumulate AND_WHERE) {
#ifdef SIGLIP2_CUDA_HOST
  cuda_host::wgmma_issue({d, nullptr, a, b, 256, accumulate, kTransposeA, kTransposeB}, where);
#elif defined(SIGLIP2_SM90A)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" SIGLIP2_REGISTERS_128
      "}, %128, %129, p, 1, 1, %131, %132;\n"
      "}"
      : SIGLIP2_64(d, 0), SIGLIP2_64(d, 64)
      : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransposeA}), "n"(int{kTransposeB}));
#else
  __trap();
#endif
}

#undef SIGLIP2_4
#undef SIGLIP2_16
#undef SIGLIP2_64
#undef SIGLIP2_REGISTERS_128

}  // namespace siglip2::cuda
