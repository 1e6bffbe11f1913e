// What the stand-in for cuBLASLt counts and obeys.
#pragma once
#include <cstdint>

extern "C" {
struct CublasLtStub {
  int handles, plans;        // made and not destroyed
  int heuristics, products;  // calls
  int refuse;                // bit 0: products with bias, 1: with GELU, 2: all
  int erf_gelu;              // not 0: the other form of GELU
  int last_epilogue;         // of a product
  uint64_t workspace_limit;  // that the caller allows
};
}
