// gemm(): chooses who computes a product, and our own kernels for plain ones (gemm.h).
#include "gemm.h"
#include <cstdlib>
#include <optional>
#include "cublaslt.h"
#include "../flavour.h"
#include "gemm_launch.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    sum_splits_kernel(float* c,            // (M, N)
                      const float* parts,  // (splits, M, row)
                      int64_t M, int N, int64_t stride, int64_t row, int splits, bool accumulate) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, size = M * row;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step) {
    const int64_t r = i / row;
    const int column = static_cast<int>(i % row);
    if (column >= N) continue;
    float sum = 0;
    for (int part = 0; part < splits; ++part) sum += parts[part * size + i];
    float& to = c[r * stride + column];
    to = accumulate ? to + sum : sum;
  }
}

template <class A, class B> void multiply(Stream& s, const GemmDesc& d, const A& a, const B& b) {
  constexpr bool kFloat = std::is_same_v<A, FloatOperand<A::kDepthInLine>>;
  using T = std::conditional_t<kFloat, float, __nv_bfloat16>;
  const Splits whole{1, d.K};
  if (d.pre) {
    if constexpr (A::kDepthInLine && B::kDepthInLine)
      launch_gemm(s, a, b, d.M, d.N, d.K, GeluEpilogue<T>(d.c, d.pre, d.bias, d.N, d.c_stride),
                  whole);
  } else if (d.through_gelu) {
    if constexpr (A::kDepthInLine && !B::kDepthInLine)
      launch_gemm(s, a, b, d.M, d.N, d.K,
                  GeluGradientEpilogue<T>(d.c, d.through_gelu, d.N, d.c_stride), whole);
  } else if (d.c_dtype == DType::f32) {
    float* const c = static_cast<float*>(d.c);
    if (!d.bias) launch_gemm_to_float(s, a, b, d.M, d.N, d.K, c, d.c_stride, d.accumulate);
    else
      launch_gemm(s, a, b, d.M, d.N, d.K,
                  StoreEpilogue<float>(c, d.bias, d.N, d.c_stride, d.accumulate), whole);
  } else if constexpr (!kFloat) {
    launch_gemm(s, a, b, d.M, d.N, d.K, StoreEpilogue<T>(d.c, d.bias, d.N, d.c_stride, false),
                whole);
  }
}

// A's lines run along K unless it is transposed; B's do if it is.
template <template <bool> class Operand> void multiply_as(Stream& s, const GemmDesc& d) {
  const auto with_b = [&](const auto& a) {
    if (d.b.transposed) multiply(s, d, a, Operand<true>(d.b.data, d.N, d.K, d.b.stride));
    else multiply(s, d, a, Operand<false>(d.b.data, d.K, d.N, d.b.stride));
  };
  if (d.a.transposed) with_b(Operand<false>(d.a.data, d.K, d.M, d.a.stride));
  else with_b(Operand<true>(d.a.data, d.M, d.K, d.a.stride));
}

// ---- cuBLASLt -----------------------------------------------------------------------------------

// What a library left to do: c = pre + bias, or pre += bias and c = GELU(pre).
template <class T> __global__ void __launch_bounds__(kThreads)
    finish_product_kernel(T* c,               // (M, N)
                          T* pre,             // (M, N) or null
                          const float* bias,  // (N) or null
                          int64_t M, int N, int64_t stride, bool exact_gelu) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < M * N;
       i += step) {
    const int64_t at = i / N * stride + i % N;
    T* const from = pre ? pre : c;
    const T v = static_cast<T>(static_cast<float>(from[at]) + (bias ? bias[i % N] : 0.0f));
    from[at] = v;
    if (pre) c[at] = static_cast<T>(gelu(static_cast<float>(v), exact_gelu));
  }
}

// c *= GELU'(pre): what a library left to do of a gradient. V columns a thread.
template <class T, int V> __global__ void __launch_bounds__(kThreads)
    through_gelu_kernel(T* c,          // (M, N)
                        const T* pre,  // (M, N)
                        int64_t M, int N, int64_t stride, bool exact_gelu) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads, row = N / V;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < M * row;
       i += step) {
    const int64_t at = i / row * stride + i % row * V;
    float v[V], before[V];
    load_values(v, c + at);
    load_values(before, pre + at);
#pragma unroll
    for (int k = 0; k < V; ++k) v[k] *= gelu_gradient(before[k], exact_gelu);
    store_values(c + at, v);
  }
}

// The values of a diagonal matrix that tell the two forms of GELU apart (they differ by up to 5e-4).
constexpr int kProbe = 64;
__device__ __forceinline__ float probe_value(int i) {
  return static_cast<float>(i - kProbe / 2) / 8;
}
__global__ void __launch_bounds__(kProbe) fill_probe_kernel(float* a, float* identity) {
  for (int i = 0; i < kProbe; ++i) {
    const int row = static_cast<int>(threadIdx.x);
    a[row * kProbe + i] = i == row ? probe_value(i) : 0.0f;
    identity[row * kProbe + i] = i == row ? 1.0f : 0.0f;
  }
}
__global__ void __launch_bounds__(kProbe)
    judge_probe_kernel(int* wrong, const float* c, bool gradient, bool exact) {
  const int i = static_cast<int>(threadIdx.x);
  const float want = gradient ? gelu_gradient(probe_value(i), exact) : gelu(probe_value(i), exact);
  if (!(fabsf(c[i * kProbe + i] - want) < 1e-4f)) atomicAdd(wrong, 1);
}

int read_back(Stream& s, const int* device) {
#ifdef SIGLIP2_CUDA_HOST
  static_cast<void>(s);
  return *device;
#else
  int value = 0;
  const auto stream = static_cast<cudaStream_t>(s.native());
  check(cudaMemcpyAsync(&value, device, sizeof value, cudaMemcpyDeviceToHost, stream),
        "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return value;
#endif
}
__global__ void clear_kernel(int* value) { *value = 0; }

// Which GELU the library has, and which gradient of it, is not written anywhere, so it is asked once.
bool has_gelu(Stream& s, CublasLt& library, bool gradient, bool exact) {
  constexpr int64_t size = kProbe * kProbe;
  const Scratch<float> a(s, size), identity(s, size), c(s, size), pre(s, size);
  const Scratch<int> wrong(s, 1);
  launch(clear_kernel, 1, 1, 0, s, wrong.data());
  launch(fill_probe_kernel, 1, kProbe, 0, s, a.data(), identity.data());
  GemmDesc d{
      kProbe,   kProbe,     kProbe, DType::f32, {a.data(), kProbe}, {identity.data(), kProbe, true},
      c.data(), DType::f32, kProbe};
  if (gradient) {  // identity · identity ∘ GELU'(a)
    d.a.data = identity.data();
    d.b.transposed = false;
    d.through_gelu = a.data();
  } else {
    d.pre = pre.data();
  }
  if (!library.multiply(s, d)) return false;
  launch(judge_probe_kernel, 1, kProbe, 0, s, wrong.data(), static_cast<const float*>(c.data()),
         gradient, exact);
  return read_back(s, wrong.data()) == 0;
}

// What is left to do of a product that was made without its bias and its GELU.
void finish(Stream& s, const GemmDesc& d) {
  const int64_t blocks =
      std::min<int64_t>(ceil_div<int64_t>(d.M * d.N, kThreads), 8 * kTargetTiles);
  dispatch_element(d.c_dtype, [&](auto t) {
    using T = decltype(t);
    if (d.through_gelu) {
      T* const c = static_cast<T*>(d.c);
      const T* const pre = static_cast<const T*>(d.through_gelu);
      constexpr int64_t kPack = Pack<T>::size;
      dispatch_packs<T>(
          d.N % kPack == 0 && d.c_stride % kPack == 0 && aligned_16(c, pre), [&](auto V) {
            launch(through_gelu_kernel<T, V.value>, static_cast<unsigned>(blocks), kThreads, 0, s,
                   c, pre, d.M, static_cast<int>(d.N), d.c_stride, d.exact_gelu);
          });
      return;
    }
    launch(finish_product_kernel<T>, static_cast<unsigned>(blocks), kThreads, 0, s,
           static_cast<T*>(d.c), static_cast<T*>(d.pre), d.bias, d.M, static_cast<int>(d.N),
           d.c_stride, d.exact_gelu);
  });
}

struct Choice {
  CublasLt* library = nullptr;  // null: our own kernels
  std::string reason;
};
const Choice& choice() {
  static const Choice made = [] {
    const char* const variable = std::getenv("SIGLIP2_GEMM");
    const std::string wish = variable ? variable : "";
    if (!wish.empty() && wish != "own" && wish != "cublaslt")
      throw std::invalid_argument("SIGLIP2_GEMM is " + wish + " but must be own or cublaslt");
    if (wish == "own") return Choice{nullptr, "SIGLIP2_GEMM=own"};
    if (wish.empty() && is_host_runtime())
      return Choice{nullptr, "kernels run on the CPU, where no GPU library can"};
    auto* const library = new CublasLt(CublasLt::usual_names());  // as long as the process
    if (library->loaded()) return Choice{library, ""};
    const std::string why = library->why_not();
    delete library;
    if (wish == "cublaslt") throw std::runtime_error("SIGLIP2_GEMM=cublaslt, but " + why);
    return Choice{nullptr, why};
  }();
  return made;
}

bool multiply_by_library(Stream& s, const GemmDesc& d) {
  CublasLt* const library = choice().library;
  if (!library || d.K == 0) return false;
  const auto gelu_fits = [&] {
    static std::optional<bool> known[2][2];  // by gradient and form
    std::optional<bool>& fits = known[d.through_gelu != nullptr][d.exact_gelu];
    if (!fits) fits = has_gelu(s, *library, d.through_gelu != nullptr, d.exact_gelu);
    return *fits;
  };
  if (((!d.pre && !d.through_gelu) || gelu_fits()) && library->multiply(s, d)) return true;
  if ((!d.bias && !d.pre && !d.through_gelu) || d.accumulate) return false;
  GemmDesc plain = d;  // the library's product, and bias and GELU in a pass of our own
  plain.bias = nullptr;
  plain.pre = nullptr;
  plain.through_gelu = nullptr;
  if (d.pre) plain.c = d.pre;
  if (!library->multiply(s, plain)) return false;
  finish(s, d);
  return true;
}

}  // namespace

void sum_splits(Stream& s, float* c, const float* parts, int64_t M, int64_t N, int64_t stride,
                int64_t splits, bool accumulate) {
  const int64_t row = ceil_div<int64_t>(N, 8) * 8;
  const int64_t blocks = std::min<int64_t>(ceil_div<int64_t>(M * row, kThreads), 8 * kTargetTiles);
  launch(sum_splits_kernel, static_cast<unsigned>(blocks), kThreads, 0, s, c, parts, M,
         static_cast<int>(N), stride, row, static_cast<int>(splits), accumulate);
}

void gemm(Stream& s, const GemmDesc& d) {
  if (d.M == 0 || d.N == 0) return;
  if (d.dtype != DType::f32 && d.dtype != DType::bf16)
    throw std::invalid_argument(std::string("gemm: operands are ") + name_of(d.dtype) +
                                " but must be f32 or bf16");
  if (d.c_dtype != DType::f32 && (d.c_dtype != d.dtype || d.accumulate))
    throw std::invalid_argument("gemm: a result is f32, or of the operands' type and not added to");
  if (d.pre && (d.c_dtype != d.dtype || d.accumulate || d.a.transposed || !d.b.transposed))
    throw std::invalid_argument("gemm: GELU is for x·Wᵀ as both lie in memory, in their type");
  if (d.through_gelu &&
      (d.c_dtype != d.dtype || d.accumulate || d.pre || d.bias || d.a.transposed || d.b.transposed))
    throw std::invalid_argument(
        "gemm: the gradient of GELU is for dy·W as both lie in memory, in their type, alone");
  check_extent(d.M, d.N, d.K);
  if (multiply_by_library(s, d)) return;
  if (d.exact_gelu && (d.pre || d.through_gelu)) {  // our kernels' epilogues have the tanh form
    GemmDesc plain = d, rest = d;
    plain.pre = nullptr;
    plain.through_gelu = nullptr;
    if (d.pre) plain.c = d.pre;
    rest.bias = nullptr;
    gemm(s, plain);
    return finish(s, rest);
  }
  if (d.dtype == DType::f32) multiply_as<FloatOperand>(s, d);
  else multiply_as<MatrixOperand>(s, d);
}

std::string gemm_library() {
  const Choice& c = choice();
  if (c.library)
    return "matrix products by cuBLASLt " + c.library->version() + " (" + c.library->name() + ")";
  return "matrix products by kernels of our own: " + c.reason;
}

}  // namespace siglip2::cuda
