// The horizontal pass of resize_u8 for CPUs with AVX-512 VNNI, whose instruction adds four products of a byte and a signed
// byte to a 32-bit sum. A fixed-point weight is 65536·a + 256·b + c with signed bytes a, b, c, so three such sums make
// the exact integer that PIL computes. Chosen at run time; run() carries its instruction set with it, for the files that
// include this are compiled for less.
#pragma once
#include <immintrin.h>
#include "../op.h"
#include "resize_axis.h"

namespace siglip2 {
namespace {

inline bool has_vnni() {
  static const bool found = use_avx512() && __builtin_cpu_supports("avx512vnni");
  return found;
}

// The three bytes of a weight, most significant first.
struct WeightBytes {
  int8_t part[3];
  explicit WeightBytes(int32_t w) {
    for (int i = 2; i >= 0; --i) {
      part[i] = static_cast<int8_t>(w & 255);
      w = (w - part[i]) >> 8;
    }
  }
};

// GCC 12 takes the registers that its own intrinsics leave undefined on purpose for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Rows of RGB pixels, four output pixels at a time and four taps of each: 128 bits hold one of them as the taps of red,
// of green, of blue, and four unused bytes.
class VnniRgbRows {
 public:
  VnniRgbRows(const ResizeAxis& axis, const int32_t* k, int64_t OW) : OW_(OW) {
    for (int64_t n : axis.count) groups_ = std::max(groups_, (n + 3) / 4);
    const int64_t padded = (OW + 3) / 4 * 4;
    weights_.assign(static_cast<size_t>(padded / 4 * groups_), {});
    for (int64_t x = 0; x < padded; ++x) {
      const auto from = static_cast<size_t>(std::min(x, OW - 1));
      first_.push_back(3 * axis.first[from]);
      for (int64_t j = 0; j < axis.count[from]; ++j) {
        const WeightBytes w(k[static_cast<int64_t>(from) * axis.taps + j]);
        Weights& to = weights_[static_cast<size_t>(x / 4 * groups_ + j / 4)];
        for (int i = 0; i < 3; ++i)
          for (int c = 0; c < 3; ++c) to.part[i][x % 4 * 16 + c * 4 + j % 4] = w.part[i];
      }
    }
  }
  // Bytes that run() may read after the end of a row. It may write 16 after the end of its result.
  int64_t overrun() const { return 12 * groups_ + 16; }

  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) void run(const uint8_t* row,
                                                                           uint8_t* out) const {
    const __m512i taps =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    const __m128i rgb = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    const auto load = [](const uint8_t* p) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    };
    const int64_t *at = first_.data(), OW = OW_, groups = groups_;
    const Weights* w = weights_.data();
    for (int64_t x = 0; x < OW; x += 4, at += 4) {
      __m512i a = _mm512_setzero_si512(), b = a, c = _mm512_set1_epi32(1 << 21);
      for (int64_t g = 0; g < groups; ++g, ++w) {
        const uint8_t* from = row + 12 * g;
        __m512i p = _mm512_castsi128_si512(load(from + at[0]));
        p = _mm512_inserti32x4(p, load(from + at[1]), 1);
        p = _mm512_inserti32x4(p, load(from + at[2]), 2);
        p = _mm512_shuffle_epi8(_mm512_inserti32x4(p, load(from + at[3]), 3), taps);
        a = _mm512_dpbusd_epi32(a, p, _mm512_load_si512(w->part[0]));
        b = _mm512_dpbusd_epi32(b, p, _mm512_load_si512(w->part[1]));
        c = _mm512_dpbusd_epi32(c, p, _mm512_load_si512(w->part[2]));
      }
      const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(a, 8), b);
      const __m512i sum = _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), c), 22);
      const __m512i clipped = _mm512_max_epi32(sum, _mm512_setzero_si512());
      const __m128i pixels = _mm_shuffle_epi8(_mm512_cvtusepi32_epi8(clipped), rgb);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * x), pixels);
    }
  }

 private:
  struct alignas(64) Weights {
    int8_t part[3][64] = {};
  };
  int64_t OW_, groups_ = 1;
  std::vector<Weights> weights_;  // (OW / 4, groups)
  std::vector<int64_t> first_;    // (OW), in bytes
};

#pragma GCC diagnostic pop

}  // namespace
}  // namespace siglip2
