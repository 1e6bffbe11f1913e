// A test harness of one page: TEST(name) { … } registers a test, CHECK and check_close judge,
// main() runs all of them under the schedule named on the command line: <order> <timing>, such as
// "random late".
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>
#include "../../cuda/common.cuh"

namespace test {

using siglip2::Tensor;

struct Test {
  const char* name;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}
inline int& failures() {
  static int count = 0;
  return count;
}
struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                                          \
  static void name();                                       \
  static const test::Register register_##name(#name, name); \
  static void name()

inline void check(bool ok, const std::string& what, const char* file, int line) {
  if (ok) return;
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}
#define CHECK(condition) test::check(condition, #condition, __FILE__, __LINE__)

#if defined(__SANITIZE_THREAD__)
constexpr bool under_tsan = true;
#else
constexpr bool under_tsan = false;
#endif
constexpr bool small = under_tsan;  // small shapes there: TSan is some ten times slower

// A stream whose workspace has exact sizes and starts as NaN.
class HostStream final : public siglip2::Stream {
 public:
  void* scratch_allocate(size_t bytes) override {
    void* p = nullptr;
    if (posix_memalign(&p, 64, bytes)) throw std::bad_alloc();
    std::memset(p, 0xff, bytes);
    return p;
  }
  void scratch_release(void* p, size_t) override { std::free(p); }
  siglip2::Faults* faults() override { return &noted; }
  siglip2::Faults noted;
};

// A tensor in an allocation of its own, exactly as long as it is, so that ASan sees one byte too
// many. With `offset` elements before it, it is a view into a larger arena, and not aligned.
template <class T> class Buffer {
 public:
  Buffer() = default;  // absent
  explicit Buffer(int64_t count, int64_t offset = 0) : count_(count) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, static_cast<size_t>(count + offset) * sizeof(T)))
      throw std::bad_alloc();
    std::memset(p, 0xff, static_cast<size_t>(count + offset) * sizeof(T));
    memory_.reset(static_cast<T*>(p));
    data_ = memory_.get() + offset;
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  double at(int64_t i) const { return static_cast<double>(static_cast<float>(data_[i])); }
  int64_t size() const { return count_; }
  operator Tensor() const {
    return {data_, count_ * static_cast<int64_t>(sizeof(T)), siglip2::dtype_of<T>};
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  T* data_ = nullptr;
  int64_t count_ = 0;
};

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}
  float normal() { return normal_(generator_); }
  template <class T>
  Buffer<T> buffer(int64_t count, float scale = 1, float shift = 0, int64_t offset = 0) {
    Buffer<T> b(count, offset);
    for (int64_t i = 0; i < count; ++i) b[i] = static_cast<T>(normal() * scale + shift);
    return b;
  }

 private:
  std::mt19937 generator_;
  std::normal_distribution<float> normal_;
};

// Normalised mean squared error: Σ(got − want)² / Σ want². A NaN anywhere fails.
template <class T> void check_close(const Buffer<T>& got, const std::vector<double>& want,
                                    double tolerance, const std::string& what, const char* file,
                                    int line) {
  double error = 0, scale = 0;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double w = want[static_cast<size_t>(i)], d = got.at(i) - w;
    error += d * d;
    scale += w * w;
  }
  const double nmse = scale > 0 ? error / scale : error;
  char text[160];
  std::snprintf(text, sizeof text, ": normalised error %.3g is more than %.3g", nmse, tolerance);
  check(nmse <= tolerance, what + text, file, line);
}
#define CHECK_CLOSE(got, want, tolerance, what) \
  test::check_close(got, want, tolerance, what, __FILE__, __LINE__)

template <class T> constexpr const char* type_name = "f32";
template <> inline constexpr const char* type_name<__nv_bfloat16> = "bf16";
// What rounding the result to T costs, squared, with room for a few float operations.
template <class T> constexpr double tolerance = 1e-11;
template <> inline constexpr double tolerance<__nv_bfloat16> = 1e-5;

}  // namespace test

#if !defined(TEST_OWN_MAIN)
int main(int count, char** words) {
  setvbuf(stdout, nullptr, _IONBF, 0);
  auto& config = cuda_host::config();
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "ascending") config.order = cuda_host::Order::ascending;
    else if (word == "descending") config.order = cuda_host::Order::descending;
    else if (word == "random") config.order = cuda_host::Order::random;
    else if (word == "early") config.timing = cuda_host::Timing::early;
    else if (word == "late") config.timing = cuda_host::Timing::late;
    else if (word == "mixed") config.timing = cuda_host::Timing::random;
    else config.seed = std::strtoull(word.c_str(), nullptr, 10);
  }
  for (const test::Test& t : test::tests()) {
    const int before = test::failures();
    try {
      t.run();
    } catch (const std::exception& e) {
      ++test::failures();
      std::fprintf(stderr, "%s: %s\n", t.name, e.what());
    }
    std::printf("%s %s\n", test::failures() == before ? "ok  " : "FAIL", t.name);
  }
  return test::failures() != 0;
}
#endif
