// Loading and calling cuBLASLt (cublaslt.h). Its matrices are column-major: a row-major C (M, N) is
// there a C (N, M), so the product is asked for as Cᵀ = Bᵀ·Aᵀ, with our B in the place of its A.
#include "cublaslt.h"
#include <dlfcn.h>
#include <glob.h>
#include <algorithm>
#include <cstdlib>
#include "../common.cuh"

namespace siglip2::cuda {

// Structures of cublasLt.h, with names of our own.
struct LtAlgorithm {
  uint64_t data[8];
};
struct LtHeuristic {
  LtAlgorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(LtHeuristic) == 96);

namespace {

// Values of cublasLt.h and library_types.h.
constexpr int kSuccess = 0, kNotSupported = 15;
constexpr int kReal32 = 0, kBfloat16 = 14;
constexpr int kCompute32 = 68;  // float products; no TF32
constexpr int kNotTransposed = 0, kTransposed = 1;
constexpr int kDescTransA = 3, kDescTransB = 4, kDescEpilogue = 7, kDescBias = 8, kDescAux = 11,
              kDescAuxStride = 12, kDescBiasType = 26;
constexpr int kEpilogueNone = 1, kEpilogueBias = 4, kEpilogueGelu = 160, kEpilogueGeluBias = 164,
              kEpilogueGeluGradient = 192;  // with the input of GELU or its gradient in `aux`
constexpr int kPreferenceWorkspace = 1, kPreferenceAlignmentA = 5;  // B, C and D follow
constexpr uint64_t kWorkspace = 32 << 20;  // what NVIDIA recommends for Hopper

int type_of(DType d) { return d == DType::bf16 ? kBfloat16 : kReal32; }

int current_device() {
  int device = 0;
#ifndef SIGLIP2_CUDA_HOST
  check(cudaGetDevice(&device), "cudaGetDevice");
#endif
  return device;
}

// Bytes that the address is a multiple of, up to the 16 that make a difference; 0 for an absent one.
int64_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return address ? static_cast<int64_t>(std::min<uintptr_t>(address & (~address + 1), 16)) : 0;
}

const void* aux_of(const GemmDesc& d) { return d.pre ? d.pre : d.through_gelu; }

void must(int status, const char* call) {
  if (status != kSuccess)
    throw std::runtime_error(std::string("cuBLASLt: ") + call + " failed with status " +
                             std::to_string(status) + "; SIGLIP2_GEMM=own does without it");
}

}  // namespace

// Each member is the symbol cublasLt<its name>.
#define SIGLIP2_CUBLASLT_API(F)                                                                   \
  F(GetVersion, size_t, ())                                                                       \
  F(Create, int, (void**))                                                                        \
  F(Destroy, int, (void*))                                                                        \
  F(MatmulDescCreate, int, (void**, int compute, int scale))                                      \
  F(MatmulDescDestroy, int, (void*))                                                              \
  F(MatmulDescSetAttribute, int, (void*, int, const void*, size_t))                               \
  F(MatrixLayoutCreate, int, (void**, int type, uint64_t rows, uint64_t columns, int64_t stride)) \
  F(MatrixLayoutDestroy, int, (void*))                                                            \
  F(MatmulPreferenceCreate, int, (void**))                                                        \
  F(MatmulPreferenceDestroy, int, (void*))                                                        \
  F(MatmulPreferenceSetAttribute, int, (void*, int, const void*, size_t))                         \
  F(MatmulAlgoGetHeuristic, int,                                                                  \
    (void*, void*, void*, void*, void*, void*, void*, int, LtHeuristic*, int*))                   \
  F(Matmul, int,                                                                                  \
    (void*, void*, const void* alpha, const void* a, void*, const void* b, void*,                 \
     const void* beta, const void* c, void*, void* d, void*, const LtAlgorithm*, void* workspace, \
     size_t, void* stream))

struct CublasLt::Api {
#define SIGLIP2_MEMBER(name, result, arguments) result(*name) arguments = nullptr;
  SIGLIP2_CUBLASLT_API(SIGLIP2_MEMBER)
#undef SIGLIP2_MEMBER

  // The first symbol that is not there, or null.
  const char* load(void* library) {
#define SIGLIP2_LOAD(name, result, arguments)                                \
  name = reinterpret_cast<decltype(name)>(dlsym(library, "cublasLt" #name)); \
  if (!name) return "cublasLt" #name;
    SIGLIP2_CUBLASLT_API(SIGLIP2_LOAD)
#undef SIGLIP2_LOAD
    return nullptr;
  }
};
#undef SIGLIP2_CUBLASLT_API

// What is kept of a kind of product.
struct CublasLt::Plan {
  void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr;
  LtAlgorithm algorithm{};
  size_t workspace = 0;
  bool possible = false;
};

std::vector<std::string> CublasLt::usual_names() {
  const std::string files[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  std::vector<std::string> names;
  const auto add_folder = [&](const std::string& folder) {
    for (const std::string& file : files) names.push_back(folder + "/" + file);
  };
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  const auto add_pattern = [&](const std::string& pattern) {
    glob_t found{};
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
      for (size_t i = 0; i < found.gl_pathc; ++i) add_folder(found.gl_pathv[i]);
    globfree(&found);
  };
  const std::string path = variable("SIGLIP2_CUDA_LIB_PATH");
  for (size_t at = 0; at < path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    if (end > at) add_folder(path.substr(at, end - at));
    at = end + 1;
  }
  names.insert(names.end(), std::begin(files), std::end(files));
  add_folder("/usr/local/cuda/lib64");
  if (const std::string conda = variable("CONDA_PREFIX"); !conda.empty())
    add_folder(conda + "/lib");
  std::vector<std::string> roots;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (!variable(name).empty()) roots.push_back(variable(name) + "/lib");
  if (!variable("HOME").empty()) roots.push_back(variable("HOME") + "/.local/lib");
  roots.insert(roots.end(), {"/usr/local/lib", "/usr/lib"});
  for (const std::string& root : roots)
    for (const char* packages : {"site-packages", "dist-packages"})
      for (const char* wheel : {"cu13", "cublas"})
        add_pattern(root + "/python3*/" + packages + "/nvidia/" + wheel + "/lib");
  return names;
}

CublasLt::CublasLt(const std::vector<std::string>& names) {
  std::string unfit;  // of a library that is there and will not do
  for (const std::string& name : names) {
    void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) continue;
    auto* const api = new Api;
    const char* const missing = api->load(library);
    if (!missing) {
      library_ = library;
      api_ = api;
      name_ = name;
      return;
    }
    unfit = name + " lacks " + missing;
    delete api;
    dlclose(library);
  }
  why_not_ = unfit.empty()
                 ? "libcublasLt was not found; name its directory in SIGLIP2_CUDA_LIB_PATH"
                 : unfit;
}

CublasLt::~CublasLt() {
  if (!loaded()) return;
  for (const auto& [key, plan] : plans_) {
    if (plan->desc) api_->MatmulDescDestroy(plan->desc);
    for (void* layout : {plan->a, plan->b, plan->c})
      if (layout) api_->MatrixLayoutDestroy(layout);
  }
  for (auto& [device, handle] : handles_) api_->Destroy(handle);
  delete api_;
  dlclose(library_);
}

std::string CublasLt::version() const {
  // 13.1.0 is 130100; before version 13 there was a digit less for the major.
  const size_t v = api_->GetVersion(), major = v >= 100000 ? v / 10000 : v / 1000;
  const size_t rest = v >= 100000 ? v % 10000 : v % 1000;
  return std::to_string(major) + "." + std::to_string(rest / 100) + "." +
         std::to_string(rest % 100);
}

void CublasLt::make_plan(Plan& plan, const GemmDesc& d) {
  const auto layout = [&](void** made, DType type, int64_t rows, int64_t columns, int64_t stride) {
    must(api_->MatrixLayoutCreate(made, type_of(type), static_cast<uint64_t>(rows),
                                  static_cast<uint64_t>(columns), stride),
         "cublasLtMatrixLayoutCreate");
  };
  // Lines in memory are its columns.
  layout(&plan.a, d.dtype, d.b.transposed ? d.K : d.N, d.b.transposed ? d.N : d.K, d.b.stride);
  layout(&plan.b, d.dtype, d.a.transposed ? d.M : d.K, d.a.transposed ? d.K : d.M, d.a.stride);
  layout(&plan.c, d.c_dtype, d.N, d.M, d.c_stride);

  must(api_->MatmulDescCreate(&plan.desc, kCompute32, kReal32), "cublasLtMatmulDescCreate");
  const auto set = [&](int attribute, const auto& value) {
    must(api_->MatmulDescSetAttribute(plan.desc, attribute, &value, sizeof value),
         "cublasLtMatmulDescSetAttribute");
  };
  set(kDescTransA, d.b.transposed ? kTransposed : kNotTransposed);
  set(kDescTransB, d.a.transposed ? kTransposed : kNotTransposed);
  set(kDescEpilogue, d.pre            ? (d.bias ? kEpilogueGeluBias : kEpilogueGelu)
                     : d.through_gelu ? kEpilogueGeluGradient
                     : d.bias         ? kEpilogueBias
                                      : kEpilogueNone);
  if (d.bias) {
    set(kDescBias, d.bias);
    set(kDescBiasType, kReal32);
  }
  if (const void* const aux = aux_of(d)) {
    set(kDescAux, aux);
    set(kDescAuxStride, d.c_stride);
  }

  void* preference = nullptr;
  must(api_->MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](int attribute, const auto& value) {
    must(api_->MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
         "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(kPreferenceWorkspace, kWorkspace);
  int attribute = kPreferenceAlignmentA;
  for (const void* p :
       {d.b.data, d.a.data, static_cast<const void*>(d.c), static_cast<const void*>(d.c)})
    prefer(attribute++, static_cast<uint32_t>(alignment_of(p)));
  LtHeuristic best{};
  int found = 0;
  const int status =
      api_->MatmulAlgoGetHeuristic(handles_[current_device()], plan.desc, plan.a, plan.b, plan.c,
                                   plan.c, preference, 1, &best, &found);
  api_->MatmulPreferenceDestroy(preference);
  plan.possible = status == kSuccess && found > 0 && best.state == kSuccess;
  if (!plan.possible && status != kSuccess && status != kNotSupported)
    must(status, "cublasLtMatmulAlgoGetHeuristic");
  plan.algorithm = best.algorithm;
  plan.workspace = best.workspace;
}

CublasLt::Plan& CublasLt::plan_of(const Key& key, const GemmDesc& d) {
  void*& handle = handles_[current_device()];
  if (!handle) must(api_->Create(&handle), "cublasLtCreate");
  std::unique_ptr<Plan>& plan = plans_[key];
  if (!plan) {
    plan = std::make_unique<Plan>();
    make_plan(*plan, d);
  }
  return *plan;
}

bool CublasLt::multiply(Stream& s, const GemmDesc& d) {
  const Key key = {current_device(),
                   d.M,
                   d.N,
                   d.K,
                   static_cast<int64_t>(d.dtype),
                   static_cast<int64_t>(d.c_dtype),
                   d.a.transposed,
                   d.b.transposed,
                   d.a.stride,
                   d.b.stride,
                   d.c_stride,
                   d.accumulate,
                   alignment_of(d.a.data),
                   alignment_of(d.b.data),
                   alignment_of(d.c),
                   alignment_of(d.bias),
                   alignment_of(d.pre),
                   alignment_of(d.through_gelu)};
  Plan& plan = plan_of(key, d);
  if (!plan.possible) return false;
  if (d.bias)
    must(api_->MatmulDescSetAttribute(plan.desc, kDescBias, &d.bias, sizeof d.bias), "bias");
  if (const void* const aux = aux_of(d))
    must(api_->MatmulDescSetAttribute(plan.desc, kDescAux, &aux, sizeof aux), "aux");
  const Scratch<char> workspace(s, static_cast<int64_t>(plan.workspace));
  const float alpha = 1, beta = d.accumulate ? 1 : 0;
  must(api_->Matmul(handles_[current_device()], plan.desc, &alpha, d.b.data, plan.a, d.a.data,
                    plan.b, &beta, d.c, plan.c, d.c, plan.c, &plan.algorithm, workspace.data(),
                    plan.workspace, s.native()),
       "cublasLtMatmul");
  return true;
}

}  // namespace siglip2::cuda
