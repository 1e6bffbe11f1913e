// KERNEL(name, args…) in native/ops/<op>.h declares one kernel for every device; OP(name) in native/ops/<op>.cc
// exports it to JavaScript. Arguments are decoded from the C++ signature: Tensor from a handle (0 = absent),
// numbers from numbers, bool from boolean. The call picks the device from the first tensor, enqueues, returns.
//
// Each native/ops/*.cc is compiled once per instruction set, into namespace cpu::ISA; the first of them
// (SIGLIP2_REGISTERS_OPS) also registers the ops. CUDA kernels are weak references: an op without one says so
// when it is called on a CUDA tensor, and nothing has to be edited when one is added.
//
// OP_SIZED(name) is OP for a CPU kernel that knows a dry run: where s.dry() says so, it takes its workspace and returns.
// The others are not called then, and their workspace counts as nothing.
#pragma once
#include <functional>
#include <vector>
#include "kernel.h"

namespace siglip2 {

enum class Arg : uint8_t { tensor, integer, real, boolean };
struct Value {  // one decoded argument
  Tensor tensor;
  double number = 0;
};

template <class T> constexpr Arg arg_of() {
  using U = std::decay_t<T>;
  if constexpr (std::is_same_v<U, Tensor>) return Arg::tensor;
  else if constexpr (std::is_same_v<U, bool>) return Arg::boolean;
  else if constexpr (std::is_floating_point_v<U>) return Arg::real;
  else {
    static_assert(std::is_integral_v<U>, "kernel arguments are Tensor, integers, reals or bool");
    return Arg::integer;
  }
}
template <class T> T value_as(const Value& v) {
  if constexpr (std::is_same_v<std::decay_t<T>, Tensor>) return v.tensor;
  else return static_cast<T>(v.number);
}

struct OpEntry {
  const char* name;
  std::vector<Arg> args;
  std::function<void(Stream&, const Value*)> cpu,
      cuda;    // cuda is empty when the op has no CUDA kernel
  bool sized;  // the CPU kernel knows a dry run
};
std::vector<OpEntry>& op_table();  // filled before main by OP()
bool use_avx512();  // this CPU has AVX-512 F, BW, DQ, VL, and SIGLIP2_ISA does not say avx2
extern bool has_avx512_kernels;  // this build has them; set by OP()

constexpr size_t most_arguments = 32;  // that a call from JavaScript decodes (addon.cc)

template <class... A> std::vector<Arg> args_of(void (*)(Stream&, A...)) {
  static_assert(sizeof...(A) <= most_arguments,
                "a kernel takes at most 32 arguments; raise most_arguments");
  return {arg_of<A>()...};
}
template <class... A>
std::function<void(Stream&, const Value*)> bind_kernel(void (*kernel)(Stream&, A...)) {
  if (!kernel) return {};
  return [kernel](Stream& s, const Value* v) {
    [&]<size_t... I>(std::index_sequence<I...>) { kernel(s, value_as<A>(v[I])...); }
    (std::index_sequence_for<A...>{});
  };
}
struct OpRegistration {
  template <class F> OpRegistration(const char* name, F* avx2, F* avx512, F* cuda, bool sized) {
    has_avx512_kernels = avx512 != nullptr;
    op_table().push_back({name, args_of(avx2), bind_kernel(avx512 && use_avx512() ? avx512 : avx2),
                          bind_kernel(cuda), sized});
  }
};

}  // namespace siglip2

#define OP(name) REGISTER_OP(name, false)
#define OP_SIZED(name) REGISTER_OP(name, true)
#if !defined(SIGLIP2_REGISTERS_OPS)
#define REGISTER_OP(name, sized)
#elif defined(SIGLIP2_HAS_AVX512)
#define REGISTER_OP(name, sized)                                                            \
  static const siglip2::OpRegistration registration_##name {                                \
#name, siglip2::cpu::avx2::name, siglip2::cpu::avx512::name, siglip2::cuda::name, sized \
  }
#else
#define REGISTER_OP(name, sized)                                                  \
  static const siglip2::OpRegistration registration_##name {                      \
#name, siglip2::cpu::avx2::name,                                              \
        decltype(&siglip2::cpu::avx2::name){nullptr }, siglip2::cuda::name, sized \
  }
#endif
