// amx_gemm.h on tiles.
#include "amx_gemm.h"
#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define SIGLIP2_AMX 1
#endif

namespace siglip2 {

#if defined(SIGLIP2_AMX)

bool has_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl of Linux
  static const bool has = __builtin_cpu_supports("amx-bf16") &&
                          __builtin_cpu_supports("amx-tile") &&
                          syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return has;
}

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile,amx-bf16"))) void block(const uint16_t* a, const uint16_t* b,
                                                        int64_t steps, float* c) {
  constexpr int64_t kTile = 512;  // elements of a tile of A or B
  constexpr int kRow = 64, kOut = tiles::kSide * sizeof(float);
  static const TileConfig config;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k, a += 2 * kTile, b += 2 * kTile) {
    _tile_loadd(4, a, kRow);
    _tile_loadd(6, b, kRow);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTile, kRow);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + kTile, kRow);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kOut);
  _tile_stored(1, c + 16, kOut);
  _tile_stored(2, c + 16 * tiles::kSide, kOut);
  _tile_stored(3, c + 16 * tiles::kSide + 16, kOut);
  _tile_release();
}

}  // namespace

void amx_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const Matrix& a,
              const Matrix& b, void* c, DType c_dtype, int64_t c_stride) {
  tiles::product(s, M, N, K, alpha, a, b, c, c_dtype, c_stride, block);
}

#else

bool has_amx() { return false; }
void amx_gemm(Stream&, int64_t, int64_t, int64_t, float, const Matrix&, const Matrix&, void*, DType,
              int64_t) {}

#endif

}  // namespace siglip2
