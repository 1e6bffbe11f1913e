// row_gemm.h. Bound by multiply-adds. A task packs a few columns of B, which then stay in the L2 cache while the rows
// of A pass by, tile after tile; what comes out of a tile is finished while it is in the L1 cache.
#include "row_gemm.h"
#include "../cpu/math.h"
#include "../cpu/threads.h"
#include "../cpu/tile_gemm.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kColumns = 4 * kLanes;  // of B in one task: two tiles
constexpr int64_t kMostRows = 1024;       // of A in one task

void finish_tile(const float* tile, int64_t rows, int64_t n, float alpha, const float* bias,
                 Gelu form, float* c, int64_t ldc) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = tile + r * kColumns;
    float* out = c + r * ldc;
    if (bias)
      for (int64_t i = 0; i < n; ++i) out[i] = in[i] * alpha + bias[i];
    else
      for (int64_t i = 0; i < n; ++i) out[i] = in[i] * alpha;
    if (form != Gelu::none)
      dispatch_gelu(form == Gelu::exact, [&](auto exact) {
        for (int64_t i = 0; i < n; ++i) out[i] = gelu<exact.value>(out[i]);
      });
  }
}

}  // namespace

void row_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const float* a, int64_t lda,
              const float* b, int64_t ldb, bool transposed, float* c, int64_t ldc, Finish finish) {
  const auto parts_of = [](int64_t n, int64_t part) { return (n + part - 1) / part; };
  const int64_t threads = thread_count(), columns = parts_of(N, kColumns), ld = leading(K);
  const int64_t panel_floats = round_up(K, kLanes) * kColumns;
  // Rows are divided too where there are many, for A's sake, or where the columns do not keep all threads busy.
  const int64_t wanted = std::max(parts_of(M, kMostRows), parts_of(2 * threads, columns));
  const int64_t rows =
      round_up(parts_of(M, std::min(wanted, parts_of(M, 4 * kTileRows))), kTileRows);
  Scratch<float> packed(s, threads * panel_floats), some(s, threads * kLanes * ld);
  parallel_items(parts_of(M, rows) * columns, [&](int64_t i) {
    const int64_t m0 = i / columns * rows, m1 = std::min(M, m0 + rows);
    const int64_t n0 = i % columns * kColumns, n = std::min(kColumns, N - n0),
                  thread = worker_index();
    float* panel = packed.data() + thread * panel_floats;
    if (transposed)
      pack_transposed(panel, kColumns, some.data() + thread * kLanes * ld, ld, b + n0 * ldb, ldb, n,
                      K);
    else pack_rows(panel, kColumns, b + n0, ldb, K, n, 1.0f);
    alignas(64) float tile[kTileRows * kColumns];
    for (int64_t m = m0; m < m1; m += kTileRows) {
      const int64_t most = std::min<int64_t>(kTileRows, m1 - m);
      tile_gemm<false>(most, n, K, a + m * lda, lda, panel, kColumns, tile, kColumns, false);
      finish_tile(tile, most, n, alpha, finish.bias ? finish.bias + n0 : nullptr, finish.gelu,
                  c + m * ldc + n0, ldc);
    }
  });
}

}  // namespace siglip2::cpu::ISA

#if defined(SIGLIP2_REGISTERS_OPS)
void siglip2::row_gemm(Stream& s, int64_t M, int64_t N, int64_t K, float alpha, const float* a,
                       int64_t lda, const float* b, int64_t ldb, bool transposed, float* c,
                       int64_t ldc, Finish finish) {
#if defined(SIGLIP2_HAS_AVX512)
  if (use_avx512())
    return cpu::avx512::row_gemm(s, M, N, K, alpha, a, lda, b, ldb, transposed, c, ldc, finish);
#endif
  cpu::avx2::row_gemm(s, M, N, K, alpha, a, lda, b, ldb, transposed, c, ldc, finish);
}
#endif
