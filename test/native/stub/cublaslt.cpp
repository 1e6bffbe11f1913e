// A stand-in for cuBLASLt: it multiplies on the host, column by column as the real one defines it,
// counts its calls, and can be told what it does not support. Only the interface is NVIDIA's.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include "cublaslt_stub.h"

namespace {

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t stride;
};
struct Desc {
  int transposed_a = 0, transposed_b = 0, epilogue = 1, bias_type = -1;
  const void* bias = nullptr;
  void* aux = nullptr;
  int64_t aux_stride = 0;
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t alignment[4] = {};
};
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

constexpr int kSuccess = 0, kInvalid = 7, kNotSupported = 15;
constexpr uint64_t kMagic = 0x5167a190;  // that the caller hands back what the heuristic gave

double element(const void* data, int type, int64_t i) {
  if (type == 0) return static_cast<const float*>(data)[i];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[i]) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
void put(void* data, int type, int64_t i, double value) {
  const float f = static_cast<float>(value);
  if (type == 0) {
    static_cast<float*>(data)[i] = f;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

extern "C" {

CublasLtStub cublaslt_stub;

size_t cublasLtGetVersion() { return 130100; }
int cublasLtCreate(void** handle) {
  ++cublaslt_stub.handles;
  *handle = new int;
  return kSuccess;
}
int cublasLtDestroy(void* handle) {
  --cublaslt_stub.handles;
  delete static_cast<int*>(handle);
  return kSuccess;
}
int cublasLtMatmulDescCreate(void** made, int compute, int scale) {
  if (compute != 68 || scale != 0) return kInvalid;
  ++cublaslt_stub.plans;
  *made = new Desc;
  return kSuccess;
}
int cublasLtMatmulDescDestroy(void* desc) {
  --cublaslt_stub.plans;
  delete static_cast<Desc*>(desc);
  return kSuccess;
}
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  auto& d = *static_cast<Desc*>(desc);
  const auto set = [&](auto& field) {
    if (bytes != sizeof field) return kInvalid;
    std::memcpy(&field, value, bytes);
    return kSuccess;
  };
  switch (attribute) {
    case 3: return set(d.transposed_a);
    case 4: return set(d.transposed_b);
    case 7: return set(d.epilogue);
    case 8: return set(d.bias);
    case 11: return set(d.aux);
    case 12: return set(d.aux_stride);
    case 26: return set(d.bias_type);
    default: return kInvalid;
  }
}
int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns,
                               int64_t stride) {
  if (stride < static_cast<int64_t>(rows)) return kInvalid;
  *made = new Layout{type, rows, columns, stride};
  return kSuccess;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return kSuccess;
}
int cublasLtMatmulPreferenceCreate(void** made) {
  *made = new Preference;
  return kSuccess;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Preference*>(preference);
  return kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value,
                                         size_t bytes) {
  auto& p = *static_cast<Preference*>(preference);
  if (attribute == 1 && bytes == 8) std::memcpy(&p.workspace, value, 8);
  else if (attribute >= 5 && attribute <= 8 && bytes == 4)
    std::memcpy(&p.alignment[attribute - 5], value, 4);
  else return kInvalid;
  return kSuccess;
}
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d,
                                   void* preference, int requested, Heuristic* results,
                                   int* found) {
  if (!handle || !a || !b || !c || !d || requested < 1) return kInvalid;
  ++cublaslt_stub.heuristics;
  const auto& p = *static_cast<Preference*>(preference);
  cublaslt_stub.workspace_limit = p.workspace;
  const int epilogue = static_cast<Desc*>(desc)->epilogue;
  const bool bias = epilogue & 4, gelu = epilogue & (32 | 64);
  *found = 0;
  if ((cublaslt_stub.refuse & 1 && bias) || (cublaslt_stub.refuse & 2 && gelu) ||
      cublaslt_stub.refuse & 4)
    return kNotSupported;
  for (const uint32_t alignment : p.alignment)
    if (alignment < 2) return kInvalid;
  *found = 1;
  *results = {};
  results[0].algorithm.data[7] = kMagic;
  results[0].workspace = 1000;
  return kSuccess;
}
int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const void* beta, const void* c, void* c_layout,
                   void* d, void* d_layout, const Algorithm* algorithm, void* workspace,
                   size_t bytes, void*) {
  const auto& e = *static_cast<Desc*>(desc);
  const auto &la = *static_cast<Layout*>(a_layout), &lb = *static_cast<Layout*>(b_layout),
             &lc = *static_cast<Layout*>(c_layout), &ld = *static_cast<Layout*>(d_layout);
  const uint64_t m = ld.rows, n = ld.columns, k = e.transposed_a ? la.rows : la.columns;
  const bool fit = (e.transposed_a ? la.columns : la.rows) == m &&
                   (e.transposed_b ? lb.columns : lb.rows) == k &&
                   (e.transposed_b ? lb.rows : lb.columns) == n && lc.rows == m && lc.columns == n;
  if (!handle || !fit || algorithm->data[7] != kMagic || bytes != 1000) return kInvalid;
  std::memset(workspace, 0x5a, bytes);
  ++cublaslt_stub.products;
  cublaslt_stub.last_epilogue = e.epilogue;
  const double scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  for (uint64_t j = 0; j < n; ++j)
    for (uint64_t i = 0; i < m; ++i) {
      const auto at = [](const Layout& l, bool transposed, uint64_t row, uint64_t column) {
        return static_cast<int64_t>(transposed ? column + row * static_cast<uint64_t>(l.stride)
                                               : row + column * static_cast<uint64_t>(l.stride));
      };
      double sum = 0;
      for (uint64_t l = 0; l < k; ++l)
        sum += element(a, la.type, at(la, e.transposed_a, i, l)) *
               element(b, lb.type, at(lb, e.transposed_b, l, j));
      sum *= scale;
      if (keep != 0) sum += keep * element(c, lc.type, at(lc, false, i, j));
      if (e.epilogue & 4) {
        if (e.bias_type != 0) return kInvalid;
        sum += static_cast<const float*>(e.bias)[i];
      }
      if (e.epilogue & 32) {
        put(e.aux, ld.type, static_cast<int64_t>(i) + static_cast<int64_t>(j) * e.aux_stride, sum);
        const double u = std::sqrt(2 / M_PI) * (sum + 0.044715 * sum * sum * sum);
        sum = 0.5 * sum *
              (1 + (cublaslt_stub.erf_gelu ? std::erf(sum * std::sqrt(0.5)) : std::tanh(u)));
      }
      if (e.epilogue & 64) {
        const double x = element(e.aux, ld.type,
                                 static_cast<int64_t>(i) + static_cast<int64_t>(j) * e.aux_stride);
        const auto form = [&](double v) {
          const double u = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
          return 0.5 * v *
                 (1 + (cublaslt_stub.erf_gelu ? std::erf(v * std::sqrt(0.5)) : std::tanh(u)));
        };
        sum *= (form(x + 1e-5) - form(x - 1e-5)) / 2e-5;
      }
      put(d, ld.type, at(ld, false, i, j), sum);
    }
  return kSuccess;
}

}  // extern "C"
