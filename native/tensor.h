// What a kernel receives for each tensor argument: where the bytes are, how many, and of which type.
// Handles, generations and ownership live in slots.h; kernels never see them.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace siglip2 {

enum class DType : uint8_t { f32 = 0, bf16 = 1, u8 = 2, i32 = 3 };

constexpr int64_t size_of(DType d) { return d == DType::bf16 ? 2 : d == DType::u8 ? 1 : 4; }
inline const char* name_of(DType d) {
  constexpr const char* names[] = {"f32", "bf16", "u8", "i32"};
  return names[static_cast<int>(d)];
}

// Storage-only bfloat16 of the CPU kernels; arithmetic is done in float.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(float f) {  // round to nearest even; NaN stays NaN
    uint32_t u;
    std::memcpy(&u, &f, 4);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
  }
  operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};

template <class T> inline constexpr DType dtype_of = DType::u8;
template <> inline constexpr DType dtype_of<float> = DType::f32;
template <> inline constexpr DType dtype_of<bf16> = DType::bf16;
template <> inline constexpr DType dtype_of<int32_t> = DType::i32;

struct Tensor {
  void* data = nullptr;
  int64_t bytes = 0;
  DType dtype = DType::f32;

  explicit operator bool() const { return data != nullptr; }  // an optional argument is null

  // The elements, after checking the type and that there are exactly `count` of them.
  template <class T> T* as(int64_t count) const {
    using U = std::remove_const_t<T>;
    if (dtype != dtype_of<U>)
      throw std::invalid_argument(std::string("a tensor is ") + name_of(dtype) +
                                  " where the kernel needs " + name_of(dtype_of<U>));
    if (bytes != count * static_cast<int64_t>(sizeof(U)))
      throw std::invalid_argument("a tensor has " + std::to_string(bytes) +
                                  " bytes where the kernel needs " +
                                  std::to_string(count * static_cast<int64_t>(sizeof(U))));
    return static_cast<T*>(data);
  }
  template <class T> T* as_or_null(int64_t count) const { return data ? as<T>(count) : nullptr; }
};

// Calls f with a value of the element type: dispatch_float(x.dtype, [&](auto t) { using T = decltype(t); … }).
template <class F> decltype(auto) dispatch_float(DType d, F&& f) {
  if (d == DType::f32) return f(float{});
  if (d == DType::bf16) return f(bf16{});
  throw std::invalid_argument(std::string("a tensor is ") + name_of(d) +
                              " where the kernel needs f32 or bf16");
}

}  // namespace siglip2
