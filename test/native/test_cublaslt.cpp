// Loading cuBLASLt and what gemm() asks of it, against a stand-in that really multiplies
// (stub/cublaslt.cpp). Its path and SIGLIP2_GEMM=cublaslt come from the environment (CMakeLists.txt).
#include <cstdlib>
#include "../../cuda/gemm/cublaslt.cu"
#include "../../cuda/gemm/gemm.cu"
#include "../../cuda/linear.cu"
#include "check.h"
#include "stub/cublaslt_stub.h"

namespace {

using namespace siglip2::cuda;
using siglip2::DType;
using test::Buffer;
using test::Random;
using bf16 = __nv_bfloat16;

std::string folder() { return std::getenv("SIGLIP2_CUDA_LIB_PATH"); }
CublasLtStub& stub() {
  static void* const library = dlopen((folder() + "/libcublasLt.so.13").c_str(), RTLD_NOW);
  return *static_cast<CublasLtStub*>(dlsym(library, "cublaslt_stub"));
}

double gelu_of(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

template <class T, class C> void run(int64_t M, int64_t N, int64_t K, bool at, bool bt,
                                     bool accumulate, bool biased, bool gelued = false) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(M + N + K));
  const int64_t pad = 3, lda = (at ? M : K) + pad, ldb = (bt ? K : N) + pad, ldc = N + pad;
  const auto a = random.buffer<T>((at ? K : M) * lda), b = random.buffer<T>((bt ? N : K) * ldb);
  const auto bias = biased ? random.buffer<float>(N) : Buffer<float>();
  const auto c = random.buffer<C>(M * ldc);
  const auto pre = gelued ? random.buffer<C>(M * ldc) : Buffer<C>();
  std::vector<double> want, want_pre;
  for (int64_t i = 0; i < M * ldc; ++i) {
    want.push_back(c.at(i));
    want_pre.push_back(gelued ? pre.at(i) : 0);
    if (i % ldc >= N) continue;  // what lies between the rows stays
    double sum = accumulate ? c.at(i) : 0;
    if (biased) sum += bias.at(i % ldc);
    for (int64_t k = 0; k < K; ++k)
      sum += a.at(at ? k * lda + i / ldc : i / ldc * lda + k) *
             b.at(bt ? i % ldc * ldb + k : k * ldb + i % ldc);
    want_pre.back() = sum;
    want.back() = gelued ? gelu_of(sum) : sum;
  }
  GemmDesc d{M,
             N,
             K,
             siglip2::dtype_of<T>,
             {a.data(), lda, at},
             {b.data(), ldb, bt},
             c.data(),
             siglip2::dtype_of<C>,
             ldc};
  d.accumulate = accumulate;
  d.bias = bias.data();
  d.pre = pre.data();
  gemm(stream, d);
  CHECK_CLOSE(c, want, 2 * test::tolerance<C>, "product");
  if (gelued) CHECK_CLOSE(pre, want_pre, 2 * test::tolerance<C>, "pre");
}

TEST(cublaslt_is_found_and_named) {
  const std::string text = gemm_library();
  CHECK(text.find("cuBLASLt 13.1.0") != std::string::npos &&
        text.find(folder()) != std::string::npos);
}

TEST(cublaslt_multiplies_every_layout) {
  const int before = stub().products;
  for (const bool at : {false, true})
    for (const bool bt : {false, true}) {
      run<float, float>(5, 7, 11, at, bt, false, false);
      run<bf16, float>(6, 4, 9, at, bt, true, false);
      run<bf16, bf16>(3, 8, 10, at, bt, false, true);
    }
  CHECK(stub().products == before + 12);
  CHECK(stub().workspace_limit == 32 << 20);
}

TEST(cublaslt_heuristics_are_asked_once_for_a_shape) {
  run<bf16, bf16>(9, 16, 24, false, true, false, true);
  const int asked = stub().heuristics, multiplied = stub().products;
  run<bf16, bf16>(9, 16, 24, false, true, false, true);
  CHECK(stub().heuristics == asked && stub().products == multiplied + 1);
  run<bf16, bf16>(10, 16, 24, false, true, false, true);
  CHECK(stub().heuristics == asked + 1);
}

TEST(cublaslt_fuses_gelu_of_the_tanh_form) {
  run<bf16, bf16>(12, 20, 16, false, true, false, true, true);
  CHECK(stub().last_epilogue == 164);
  run<float, float>(12, 20, 16, false, true, false, false, true);
  CHECK(stub().last_epilogue == 160);
}

// dx = dy·W ∘ GELU'(pre), by the library, by its product and a pass of ours, and by us alone.
template <class T> void run_through_gelu(int64_t M, int64_t N, int64_t K, int64_t pad) {
  test::HostStream stream;
  Random random(static_cast<unsigned>(M + N + K));
  const int64_t ldc = N + pad;
  const auto a = random.buffer<T>(M * K), b = random.buffer<T>(K * N),
             c = random.buffer<T>(M * ldc), pre = random.buffer<T>(M * ldc);
  std::vector<double> want;
  for (int64_t i = 0; i < M * ldc; ++i) {
    want.push_back(c.at(i));
    if (i % ldc >= N) continue;
    double sum = 0;
    for (int64_t k = 0; k < K; ++k) sum += a.at(i / ldc * K + k) * b.at(k * N + i % ldc);
    want.back() = sum * (gelu_of(pre.at(i) + 1e-5) - gelu_of(pre.at(i) - 1e-5)) / 2e-5;
  }
  GemmDesc d{
      M,  N, K, siglip2::dtype_of<T>, {a.data(), K}, {b.data(), N}, c.data(), siglip2::dtype_of<T>,
      ldc};
  d.through_gelu = pre.data();
  gemm(stream, d);
  CHECK_CLOSE(c, want, 2 * test::tolerance<T>, "through GELU");
}
TEST(cublaslt_fuses_the_gradient_of_gelu) {
  run_through_gelu<bf16>(12, 24, 16, 8);
  CHECK(stub().last_epilogue == 192);
  run_through_gelu<float>(5, 7, 9, 2);
  CHECK(stub().last_epilogue == 192);
  stub().refuse = 2;
  run_through_gelu<bf16>(11, 24, 16, 8);
  run_through_gelu<float>(6, 7, 9, 1);
  CHECK(stub().last_epilogue == 1);
  stub().refuse = 4;
  run_through_gelu<bf16>(13, 24, 16, 0);
  run_through_gelu<float>(13, 9, 16, 3);
  stub().refuse = 0;
}

// The other form is noticed; then the library multiplies and a kernel of ours does the rest.
TEST(cublaslt_other_gelu_is_not_used) {
  test::HostStream stream;
  CublasLt library({folder() + "/libcublasLt.so.13"});
  for (const bool gradient : {false, true}) {
    CHECK(has_gelu(stream, library, gradient, false) && !has_gelu(stream, library, gradient, true));
    stub().erf_gelu = 1;
    CHECK(!has_gelu(stream, library, gradient, false) && has_gelu(stream, library, gradient, true));
    stub().erf_gelu = 0;
  }
}

TEST(cublaslt_what_it_does_not_support_is_done_here) {
  stub().refuse = 1;  // bias: its product, then a pass of our own
  int before = stub().products;
  run<bf16, bf16>(7, 24, 8, false, true, false, true);
  run<float, float>(7, 24, 8, false, true, false, true, true);
  CHECK(stub().products == before + 2 && stub().last_epilogue == 1);
  stub().refuse = 4;  // all: our own product
  before = stub().products;
  run<bf16, bf16>(8, 24, 8, false, true, false, true);
  run<float, float>(8, 24, 8, true, false, true, false);
  CHECK(stub().products == before);
  stub().refuse = 0;
}

TEST(cublaslt_gives_back_what_it_made) {
  const int handles = stub().handles, plans = stub().plans;
  {
    test::HostStream stream;
    CublasLt library({folder() + "/libcublasLt.so.13"});
    const Buffer<float> a(4), c(4);
    CHECK(library.multiply(
        stream, {2, 2, 2, DType::f32, {a.data(), 2}, {a.data(), 2}, c.data(), DType::f32, 2}));
    CHECK(stub().handles == handles + 1 && stub().plans == plans + 1);
  }
  CHECK(stub().handles == handles && stub().plans == plans);
}

TEST(cublaslt_missing_or_unfit_is_one_sentence) {
  const CublasLt missing({folder() + "/libno.so", "libnowhere.so.1"});
  CHECK(!missing.loaded());
  CHECK(missing.why_not() ==
        "libcublasLt was not found; name its directory in SIGLIP2_CUDA_LIB_PATH");
  const CublasLt unfit({folder() + "/libcublasLt_unfit.so"});
  CHECK(!unfit.loaded() && unfit.why_not().find("lacks cublasLtGetVersion") != std::string::npos);
}

TEST(cublaslt_search_begins_with_the_variable) {
  const auto names = CublasLt::usual_names();
  CHECK(names.size() >= 9 && names[0] == folder() + "/libcublasLt.so.13");
  CHECK(names[3] == "libcublasLt.so.13");
}

}  // namespace
