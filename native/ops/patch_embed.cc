// CPU patch embedding (patch_embed.h). Bound by oneDNN's product. Patches are gathered in byte order (row, column,
// channel), which is a run of contiguous bytes per patch row; the weight, which is far smaller than the patches, is
// brought into that order instead. So many images go at a time that the gathered rows stay within a few MiB.
// A byte minus 127.5 is exact in bf16, so the operand is that and the division comes behind the product, whose f32
// result is rounded once, after bias and position.
#include "patch_embed.h"
#include <algorithm>
#include <bit>
#include "../cpu/matmul.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kGatherBytes = 8 << 20;
constexpr float kCentre = 127.5f, kScale = 1.0f / 127.5f;

struct Shape {
  int64_t B, H, W, P, D;
  bool flat;
  int64_t columns() const { return W / P; }
  int64_t patches() const { return H / P * columns(); }
  int64_t values() const { return 3 * P * P; }
  int64_t images_at_once(int64_t element) const {
    return std::clamp<int64_t>(kGatherBytes / (patches() * values() * element), 1, B);
  }
};

// rows (n·N, P·P·3) of the patches of n images, pixels minus 127.5.
template <class T, class Pixel>
void gather(T* rows, const Pixel* images, int64_t n, const Shape& s) {
  const int64_t N = s.patches(), run = 3 * s.P;
  parallel_ranges(n * N, 1 + 16384 / s.values(), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t b = r / N, py = r % N / s.columns(), px = r % N % s.columns();
      const Pixel* corner = images + ((b * s.H + py * s.P) * s.W + px * s.P) * 3;
      for (int64_t y = 0; y < s.P; ++y) {
        const Pixel* line = corner + y * s.W * 3;
        T* out = rows + r * s.values() + y * run;
        if constexpr (std::is_same_v<T, bf16> && std::is_same_v<Pixel, uint8_t>) {
          // Exact, so the lower half of the float is zero and nothing needs rounding.
          for (int64_t i = 0; i < run; ++i)
            out[i].bits = static_cast<uint16_t>(
                std::bit_cast<uint32_t>(static_cast<float>(line[i]) - kCentre) >> 16);
        } else {
          for (int64_t i = 0; i < run; ++i) out[i] = static_cast<float>(line[i]) - kCentre;
        }
      }
    }
  });
}

// The same for `n` images from the `first` on, whichever type their pixels have.
template <class T>
void gather_images(T* rows, const Tensor& images, int64_t first, int64_t n, const Shape& s) {
  const int64_t image = s.H * s.W * 3, all = s.B * image;
  if (images.dtype == DType::f32) gather(rows, images.as<const float>(all) + first * image, n, s);
  else gather(rows, images.as<const uint8_t>(all) + first * image, n, s);
}

// Column of the convolution layout (channel, row, column) for each column in byte order.
int64_t convolution_column(int64_t i, int64_t P) {
  return (i % 3 * P + i / (3 * P)) * P + i / 3 % P;
}

void check_images(const Shape& s) {
  if (s.P <= 0 || s.H < s.P || s.W < s.P)
    throw std::invalid_argument("an image is smaller than one patch");
}

}  // namespace

void patch_embed_forward(Stream& stream, Tensor y, Tensor images, Tensor weight, Tensor bias,
                         Tensor position, int64_t B, int64_t H, int64_t W, int64_t P, int64_t D,
                         bool flat) {
  const Shape s{B, H, W, P, D, flat};
  check_images(s);
  const int64_t N = s.patches(), K = s.values();
  const auto *b = bias.as<const float>(D), *pos = position.as<const float>(N * D);
  dispatch_float(y.dtype, [&](auto t) {
    using T = decltype(t);
    T* out = y.as<T>(B * N * D);
    const T* w = weight.as<const T>(D * K);
    Scratch<T> ordered(stream, flat ? 0 : D * K);
    if (!flat && !stream.is_dry()) {
      parallel_ranges(D, 8, [&](int64_t d0, int64_t d1) {
        for (int64_t i = 0; i < K; ++i) {
          const int64_t from = convolution_column(i, P);
          for (int64_t d = d0; d < d1; ++d) ordered.data()[d * K + i] = w[d * K + from];
        }
      });
      w = ordered.data();
    }
    const int64_t most = s.images_at_once(sizeof(T));
    Scratch<T> rows(stream, most * N * K);
    constexpr bool kWiden = !std::is_same_v<T, float>;
    Scratch<float> wide(stream, kWiden ? most * N * D : 0);
    if (stream.is_dry()) return;
    for (int64_t first = 0; first < B; first += most) {
      const int64_t n = std::min(most, B - first);
      T* part = out + first * N * D;
      float* product = wide.data();
      if constexpr (!kWiden) product = part;
      gather_images(rows.data(), images, first, n, s);
      matmul(stream, n * N, D, K, kScale, {rows.data(), y.dtype, K}, {w, y.dtype, K, true}, 0.0f,
             product, DType::f32, D);
      parallel_ranges(n * N, 1 + 16384 / D, [&](int64_t r0, int64_t r1) {
        for (int64_t r = r0; r < r1; ++r) {
          const float* p = pos + r % N * D;
          for (int64_t d = 0; d < D; ++d) part[r * D + d] = product[r * D + d] + b[d] + p[d];
        }
      });
    }
  });
}

void patch_embed_backward(Stream& stream, Tensor dweight, Tensor dbias, Tensor dposition, Tensor dy,
                          Tensor images, int64_t B, int64_t H, int64_t W, int64_t P, int64_t D,
                          bool flat) {
  const Shape s{B, H, W, P, D, flat};
  check_images(s);
  const int64_t N = s.patches(), K = s.values();
  dispatch_float(dy.dtype, [&](auto t) {
    using T = decltype(t);
    const T* g = dy.as<const T>(B * N * D);
    if ((dbias || dposition) && !stream.is_dry()) {
      // Over the samples first: the bias gradient is then the sum over positions of what the positions get.
      Scratch<float> sums(stream, N * D);
      parallel_ranges(N, 1, [&](int64_t n0, int64_t n1) {
        for (int64_t n = n0; n < n1; ++n) {
          float* sum = sums.data() + n * D;
          std::fill(sum, sum + D, 0.0f);
          for (int64_t b = 0; b < B; ++b)
            for (int64_t d = 0; d < D; ++d) sum[d] += static_cast<float>(g[(b * N + n) * D + d]);
        }
      });
      if (float* p = dposition.as_or_null<float>(N * D))
        for (int64_t i = 0; i < N * D; ++i) p[i] += sums.data()[i];
      if (float* p = dbias.as_or_null<float>(D))
        for (int64_t n = 0; n < N; ++n)
          for (int64_t d = 0; d < D; ++d) p[d] += sums.data()[n * D + d];
    }
    float* dw = dweight.as_or_null<float>(D * K);
    if (!dw) return;
    Scratch<float> ordered(stream, flat ? 0 : D * K);
    float* sum = flat ? dw : ordered.data();
    const int64_t most = s.images_at_once(sizeof(T));
    Scratch<T> rows(stream, most * N * K);
    if (stream.is_dry()) return;
    if (!flat) std::fill(sum, sum + D * K, 0.0f);
    for (int64_t first = 0; first < B; first += most) {
      const int64_t n = std::min(most, B - first);
      gather_images(rows.data(), images, first, n, s);
      matmul(stream, D, K, n * N, kScale, {g + first * N * D, dy.dtype, D, true},
             {rows.data(), dy.dtype, K}, 1.0f, sum, DType::f32, K);
    }
    if (flat) return;
    parallel_ranges(D, 8, [&](int64_t d0, int64_t d1) {
      for (int64_t i = 0; i < K; ++i) {
        const int64_t to = convolution_column(i, P);
        for (int64_t d = d0; d < d1; ++d) dw[d * K + to] += sum[d * K + i];
      }
    });
  });
}

}  // namespace siglip2::cpu::ISA

OP_SIZED(patch_embed_forward);
OP_SIZED(patch_embed_backward);
