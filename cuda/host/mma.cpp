// ldmatrix and mma.sync: fragment layouts of the PTX manual, arithmetic in float.
#include <cstring>
#include "block.h"
#include "sanitizer.h"

namespace cuda_host {
namespace {

struct MatrixLane {
  const void* row;
  uint32_t* out;
  int matrices;
  bool transpose;
};

void load_matrices(void** lanes, uint32_t) {
  const auto lane = [&](int l) { return static_cast<MatrixLane*>(lanes[l]); };
  for (int m = 0; m < lane(0)->matrices; ++m) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; ++r) {
      const void* row = lane(m * 8 + r)->row;
      sanitizer::reads(row, 16);
      std::memcpy(tile[r], row, 16);
    }
    for (int l = 0; l < 32; ++l) {
      const int r = l / 4, c = l % 4 * 2;
      const bool t = lane(l)->transpose;
      const uint32_t low = t ? tile[c][r] : tile[r][c], high = t ? tile[c + 1][r] : tile[r][c + 1];
      lane(l)->out[m] = low | high << 16;
    }
  }
}

struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

float low_half(uint32_t u) { return __uint_as_float(u << 16); }
float high_half(uint32_t u) { return __uint_as_float(u & 0xffff0000u); }

void multiply(void** lanes, uint32_t) {
  float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto* x = static_cast<MmaLane*>(lanes[l]);
    const int row = l / 4, column = l % 4 * 2;
    for (int i = 0; i < 4;
         ++i) {  // a0 (row, column), a1 (row + 8, column), a2 (row, column + 8), a3 both
      const int r = row + (i & 1) * 8, k = column + (i >> 1) * 8;
      a[r][k] = low_half(x->a[i]);
      a[r][k + 1] = high_half(x->a[i]);
    }
    for (int i = 0; i < 2; ++i) {
      b[column + i * 8][row] = low_half(x->b[i]);
      b[column + i * 8 + 1][row] = high_half(x->b[i]);
    }
    for (int i = 0; i < 4; ++i) c[row + i / 2 * 8][column + i % 2] = x->d[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaLane*>(lanes[l])->d[i] = c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}

}  // namespace

void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row, Where where) {
  if (reinterpret_cast<uintptr_t>(row) & 15) trap("ldmatrix: a row is not 16-byte aligned", where);
  shared_pointer(shared_address(row), 16, "ldmatrix");
  MatrixLane lane{row, out, matrices, transpose};
  warp_collective(0xffffffffu, &lane, load_matrices, false, "ldmatrix", where);
}

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Where where) {
  MmaLane lane{d, a, b};
  warp_collective(0xffffffffu, &lane, multiply, false, "mma.sync", where);
}

}  // namespace cuda_host
