// CPU load_file (load_file.h). Bound by the page cache's copy out. Each thread reads runs of 256 KiB, which stay in its
// second-level cache until they are converted. Values that need no conversion take the same way: the kernel copies into
// memory that is touched for the first time, page by page and fault by fault, several times slower than we do.
#include "load_file.h"
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <memory>
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kRunBytes = 1 << 18;

struct half {
  uint16_t bits;
  // Integer arithmetic for subnormals: the stream's threads flush denormal floats to zero.
  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31,
                   mantissa = bits & 0x3ff;
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    uint32_t small_bits;
    std::memcpy(&small_bits, &small, 4);
    const uint32_t normal = (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
    const uint32_t u = sign | (exponent == 0 ? small_bits : normal);
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};

// Fills `bytes` from `offset`; the error number, or -1 when the file ends before, or 0.
int read_fully(int file, char* to, int64_t bytes, int64_t offset) {
  while (bytes > 0) {
    const ssize_t n = pread(file, to, static_cast<size_t>(bytes), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n < 0 ? errno : -1;
    to += n;
    bytes -= n;
    offset += n;
  }
  return 0;
}

template <class To, class From> int load(To* y, int file, int64_t offset, int64_t N) {
  constexpr int64_t kRun = kRunBytes / static_cast<int64_t>(sizeof(From));
  std::atomic<int> failure{0};
  parallel_ranges((N + kRun - 1) / kRun, 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<From[]> buffer(new (std::nothrow) From[kRun]);
    for (int64_t run = first; run < last && !failure; ++run) {
      const int64_t begin = run * kRun, n = std::min(kRun, N - begin),
                    size = static_cast<int64_t>(sizeof(From));
      const int error = buffer ? read_fully(file, reinterpret_cast<char*>(buffer.get()), n * size,
                                            offset + begin * size)
                               : ENOMEM;
      if (error) failure = error;
      else if constexpr (std::is_same_v<To, From>)
        std::memcpy(y + begin, buffer.get(), static_cast<size_t>(n * size));
      else
        for (int64_t i = 0; i < n; ++i)
          y[begin + i] = static_cast<float>(buffer[static_cast<size_t>(i)]);
    }
  });
  return failure;
}

}  // namespace

void load_file(Stream&, Tensor y, int64_t file, int64_t offset, int64_t source, int64_t N) {
  const int descriptor = static_cast<int>(file);
  const int failure = dispatch_float(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(N);
    if (source == 0) return load<T, float>(out, descriptor, offset, N);
    if (source == 1) return load<T, half>(out, descriptor, offset, N);
    if (source == 2) return load<T, bf16>(out, descriptor, offset, N);
    throw std::invalid_argument("load_file: the source type must be 0, 1 or 2");
  });
  if (failure)
    throw std::runtime_error(failure < 0 ? "the file ended early; it was cut while open"
                                         : std::string("the file cannot be read: ") +
                                               std::strerror(failure));
}

}  // namespace siglip2::cpu::ISA

OP(load_file);
