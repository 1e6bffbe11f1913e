#include "op.h"
#include <cstdlib>

namespace siglip2 {

std::vector<OpEntry>& op_table() {
  static auto* table =
      new std::vector<OpEntry>;  // never destroyed: threads may outlive static destructors
  return *table;
}

bool has_avx512_kernels = false;

bool use_avx512() {
#if defined(__x86_64__)
  const char* wish = std::getenv("SIGLIP2_ISA");
  if (wish && std::string(wish) == "avx2") return false;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace siglip2
