// cuBLASLt, the user's own copy, loaded at run time without its headers. The binary interface written
// down in cublaslt.cu is the same from version 11.0.3 to 13.1.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include "gemm.h"

namespace siglip2::cuda {

class CublasLt {
 public:
  // Tries the names in order; when none will do, loaded() is false and why_not() one sentence.
  explicit CublasLt(const std::vector<std::string>& names);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Where to look: the directories of SIGLIP2_CUDA_LIB_PATH, the dynamic loader's own path, the CUDA
  // toolkit, a Conda environment, Python's wheels.
  static std::vector<std::string> usual_names();

  bool loaded() const { return library_ != nullptr; }
  const std::string& why_not() const { return why_not_; }
  const std::string& name() const { return name_; }  // of the library
  std::string version() const;

  // Computes the product, or returns false when the library has no algorithm for it (with bias or
  // GELU, say). Throws when the library fails.
  bool multiply(Stream& s, const GemmDesc& d);

 private:
  struct Api;
  struct Plan;
  using Key = std::vector<int64_t>;  // everything that the choice of an algorithm depends on

  Plan& plan_of(const Key& key, const GemmDesc& d);
  void make_plan(Plan& plan, const GemmDesc& d);

  void* library_ = nullptr;
  Api* api_ = nullptr;
  std::string name_, why_not_;
  std::map<int, void*> handles_;  // by device
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace siglip2::cuda
