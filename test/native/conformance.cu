// Runs the kernels of kernels/*.cuh on fixed inputs and prints what they give, one line a case: name, count, values, between tabs.
// Built twice: by nvcc, where it runs on the GPU, and for the host runtime. Both print the same lines when the runtime
// means what the hardware does: every PTX wrapper, every descriptor mode.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>
#include "kernels/depth_72.cuh"
#include "kernels/hopper_gemm.cuh"
#include "kernels/mma_gemm.cuh"
#include "kernels/small.cuh"
#include "kernels/wgmma_tile.cuh"
#ifdef SIGLIP2_CUDA_HOST
#include "tensor_map.h"
#endif

namespace siglip2::cuda {
namespace {

using bf16 = __nv_bfloat16;

class CaseStream final : public Stream {
 public:
  void* scratch_allocate(size_t) override {
    throw std::bad_alloc();
  }  // none of these kernels has workspace
  void scratch_release(void*, size_t) override {}
};

// The same values on both sides: a small generator, then a scale.
class Values {
 public:
  explicit Values(uint32_t seed) : x_(seed * 2654435761u + 1) {}
  float next() {
    x_ = x_ * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(x_)) / 2147483648.0f;
  }

 private:
  uint32_t x_;
};

// Memory of the device under test.
template <class T> class Array {
 public:
  explicit Array(int n, uint32_t seed = 0) : host_(static_cast<size_t>(n)) {
    if (seed) {
      Values v(seed);
      // Integers from 0 to half of the greatest.
      constexpr float scale = std::is_integral_v<T>
                                  ? static_cast<float>(1ull << (std::numeric_limits<T>::digits - 2))
                                  : 1;
      for (T& e : host_) e = static_cast<T>((v.next() + std::is_integral_v<T>)*scale);
    }
#ifdef SIGLIP2_CUDA_HOST
    data_ = host_.data();
#else
    check(cudaMalloc(&data_, bytes()), "cudaMalloc");
    check(cudaMemcpy(data_, host_.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
#endif
  }
  T* data() const { return data_; }
  void print(const char* name) {
#ifndef SIGLIP2_CUDA_HOST
    check(cudaMemcpy(host_.data(), data_, bytes(), cudaMemcpyDeviceToHost), name);
#endif
    std::printf("%s\t%zu\t", name, host_.size());
    for (const T& e : host_) std::printf(" %.9g", static_cast<double>(e));
    std::printf("\n");
  }

 private:
  size_t bytes() const { return host_.size() * sizeof(T); }
  std::vector<T> host_;
  T* data_ = nullptr;
};

#ifdef SIGLIP2_CUDA_HOST
template <class T> TensorMap map_of(const T* data, int columns, int rows, unsigned box_columns,
                                    unsigned box_rows, int swizzle) {
  return test::tensor_map(data, columns, rows, box_columns, box_rows,
                          static_cast<uint8_t>(swizzle));
}
#else
// Through the driver's entry point, so that nothing links to libcuda.
template <class T> TensorMap map_of(const T* data, int columns, int rows, unsigned box_columns,
                                    unsigned box_rows, int swizzle) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found),
        "cudaGetDriverEntryPointByVersion");
  CUtensorMap map;
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(columns) * sizeof(T)};
  const cuuint32_t box[2] = {box_columns, box_rows}, steps[2] = {1, 1};
  const CUresult status = reinterpret_cast<Encode>(entry)(
      &map, sizeof(T) == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2,
      const_cast<T*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      static_cast<CUtensorMapSwizzle>(swizzle), CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(status));
  return map;
}
#endif

CaseStream stream;

template <bool kTransposeB> void mma_case(const char* name, int M, int N, int K) {
  const Array<bf16> a(M * K, 1), b(N * K, 2);
  Array<float> c(M * N);
  const dim3 grid(static_cast<unsigned>((N + 63) / 64), static_cast<unsigned>((M + 63) / 64));
  launch(mma_gemm_kernel<kTransposeB>, grid, 128, kMmaGemmSmem, stream, c.data(), a.data(),
         b.data(), M, N, K);
  c.print(name);
}

template <bool kTransposeB, bool kRegisters>
void hopper_case(const char* name, int M, int N, int K) {
  const Array<bf16> a(M * K, 3), b(N * K, 4);
  Array<float> c(M * N);
  const auto a_map = map_of(a.data(), K, M, 64, 64, 3);
  const auto b_map =
      kTransposeB ? map_of(b.data(), N, K, 64, 64, 3) : map_of(b.data(), K, N, 64, 64, 3);
  const dim3 grid(static_cast<unsigned>(N / 64), static_cast<unsigned>(M / 64));
  launch(hopper_gemm_kernel<kTransposeB, kRegisters>, grid, 256, kHopperGemmSmem, stream, a_map,
         b_map, c.data(), N, K);
  c.print(name);
}

void sm80_cases() {
  mma_case<false>("mma 1×1×16", 1, 1, 16);
  mma_case<false>("mma 70×63×48", 70, 63, 48);
  mma_case<false>("mma 64×64×128", 64, 64, 128);
  mma_case<true>("mma transposed 65×72×32", 65, 72, 32);
  mma_case<true>("mma transposed 64×64×16", 64, 64, 16);
  Array<float> barriers(64);
  launch(named_barriers_kernel, 1, 128, kNamedBarriersSmem, stream, barriers.data(), 5);
  barriers.print("named barriers");
  Array<float> lanes(32 * 8);
  Array<uint32_t> bits(2);
  launch(intrinsics_kernel, 1, 32, 0, stream, lanes.data(), bits.data());
  lanes.print("shuffles, ex2, rsqrt");
  bits.print("ballot, bf16 pack");
  Array<int> counter(1);
  Array<float> total(1);
  launch(count_kernel, dim3(3, 2, 2), dim3(8, 4), 0, stream, counter.data(), total.data());
  counter.print("integer atomics");
  total.print("float atomics");
  const Array<uint32_t> bytes(128, 11);
  Array<uint32_t> copied(128);
  launch(short_copy_kernel, 1, 32, kShortCopySmem, stream, bytes.data(), copied.data());
  copied.print("cp.async of 0 to 16 bytes");
  const Array<float> numbers(32, 12);
  Array<float> rounded(32);
  launch(round_kernel, 1, 32, 0, stream, numbers.data(), rounded.data());
  rounded.print("rounding to bf16");
  Array<unsigned long long> least(1, 16);
  Array<int> most(1), taken(2);
  launch(extremes_kernel, 1, 64, 0, stream, least.data(), most.data(), taken.data());
  least.print("atomic minimum");
  most.print("atomic maximum");
  taken.print("atomic exchange and compare");
}

void sm90_cases() {
  hopper_case<false, false>("wgmma shared, K-major", 64, 64, 512);
  hopper_case<false, false>("wgmma shared, K-major, more tiles", 128, 128, 64);
  hopper_case<true, false>("wgmma shared, MN-major", 128, 128, 128);
  hopper_case<false, true>("wgmma registers, K-major", 64, 128, 64);
  hopper_case<true, true>("wgmma registers, MN-major", 64, 64, 256);
  const Array<bf16> q(64 * 72, 5), k(64 * 72, 6), v(64 * 72, 7);
  Array<float> o(64 * 72);
  launch(depth_72_kernel, 1, 128, kDepth72Smem, stream, q.data(), k.data(), v.data(), o.data());
  o.print("wgmma depth 80 and width 72, no swizzle");
  const Array<bf16> a(64 * 16, 8), b(72 * 16, 9);
  Array<float> c(64 * 72);
  launch(single_72_kernel, 1, 128, kSingleSmem, stream, a.data(), b.data(), c.data());
  c.print("wgmma width 72");
  const Array<float> from(11 * 20, 10);
  Array<float> to(11 * 20);
  launch(tma_copy_kernel, dim3(2, 2), 32, kTmaSmem, stream,
         map_of(from.data(), 20, 11, kTmaColumns, kTmaRows, 0),
         map_of(to.data(), 20, 11, kTmaColumns, kTmaRows, 0));
  to.print("TMA load and store over the bounds");
  each_wgmma_case([](const char* name, auto k) {
    using Tile = typename decltype(k)::Tile;
    const Array<bf16> left(64 * kTileDepth, 13), right(k.kN * kTileDepth, 14);
    Array<float> product(64 * k.kN);
    launch(k.kKernel, 1, 128, Tile::kSmem, stream, Tile::A::map(left.data()),
           Tile::B::map(right.data()), static_cast<const bf16*>(left.data()), product.data());
    product.print(name);
  });
  const Array<bf16> heads(72 * 3 * 5, 15);
  Array<bf16> box(kBoxRows * kBoxColumns);
  launch(tma_box_kernel, 1, 32, kBoxSmem, stream,
         tensor_map_of<3>(heads.data(), {72, 3, 5}, {72, 72 * 3}, {kBoxColumns, 1, kBoxRows},
                          Swizzle::bytes64),
         64, 1, 2, box.data());
  box.print("TMA box of three dimensions over the bounds, 64-byte swizzle");
  const Array<float> boxes(5 * kTmaRows * kTmaColumns, 17);
  Array<float> shared(4 * 32);
  launch_clusters(cluster_kernel<>, 2, 4, 32, kClusterSmem, stream,
                  map_of(boxes.data(), kTmaColumns, 5 * kTmaRows, kTmaColumns, kTmaRows, 0), 5,
                  shared.data());
  shared.print("copies for both blocks of a cluster");
  const Array<float> terms(32, 18);
  Array<uint32_t> sums(32);
  launch(bf16_sums_kernel, 1, 32, 0, stream, terms.data(), sums.data());
  sums.print("sums of bf16 pairs");
  Array<int> phases(32);
  launch(mbarrier_phases_kernel, 1, 64, kPhasesSmem, stream, 5, phases.data());
  phases.print("mbarrier phases");
}

}  // namespace
}  // namespace siglip2::cuda

int main() {
  try {
    siglip2::cuda::sm80_cases();
#ifndef SIGLIP2_CUDA_HOST
    cudaDeviceProp properties{};
    siglip2::cuda::check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    if (properties.major != 9) return 0;
#endif
    siglip2::cuda::sm90_cases();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "conformance: %s\n", e.what());
    return 1;
  }
}
