// CPU LayerNorm (layer_norm.h). Bound by memory: a row is read once into cache, and its statistics, output and residual
// sum come from that one visit. Backward reduces dweight and dbias over a fixed number of row blocks, then over blocks.
#include "layer_norm.h"
#include "../cpu/row_sums.h"
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kBlocks =
    32;  // partial sums of dweight and dbias; independent of the number of threads

template <class T> void forward(T* y, T* sum, float* mean, float* rstd, const T* x,
                                const T* residual, const float* weight, const float* bias,
                                int64_t R, int64_t C, float eps) {
  parallel_ranges(R, 1 + 8192 / C, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const T* h = x + r * C;
      if (residual) {
        const T* a = x + r * C;
        const T* b = residual + r * C;
        T* s = sum + r * C;
        for (int64_t c = 0; c < C; ++c) s[c] = static_cast<float>(a[c]) + static_cast<float>(b[c]);
        h = s;
      }
      const float mu =
          row_sum(C, [h](int64_t c) { return static_cast<float>(h[c]); }) / static_cast<float>(C);
      const float square = row_sum(C, [h, mu](int64_t c) {
        const float d = static_cast<float>(h[c]) - mu;
        return d * d;
      });
      const float rs = 1.0f / __builtin_sqrtf(square / static_cast<float>(C) + eps);
      T* out = y + r * C;
      for (int64_t c = 0; c < C; ++c)
        out[c] = (static_cast<float>(h[c]) - mu) * rs * weight[c] + (bias ? bias[c] : 0.0f);
      mean[r] = mu;
      rstd[r] = rs;
    }
  });
}

// dh = rstd · (g − mean(g) − ĥ·mean(g·ĥ)) with g = dy·weight, ĥ = (h − mean)·rstd.
template <class T> void backward(T* dx, float* dweight, float* dbias, const T* dy, const T* dsum,
                                 const T* h, const float* weight, const float* mean,
                                 const float* rstd, float* partial, int64_t R, int64_t C) {
  parallel_ranges(kBlocks, 1, [&](int64_t b0, int64_t b1) {
    const float* const w =
        weight;  // captured by reference, it would be loaded anew for every element
    for (int64_t b = b0; b < b1; ++b) {
      float* dw = partial + b * 2 * C;
      float* db = dw + C;
      if (dweight) std::fill(dw, dw + 2 * C, 0.0f);
      for (int64_t r = R * b / kBlocks; r < R * (b + 1) / kBlocks; ++r) {
        const T* g = dy + r * C;
        const T* hr = h + r * C;
        const float mu = mean[r], rs = rstd[r];
        const float sum_g =
            row_sum(C, [g, w](int64_t c) { return static_cast<float>(g[c]) * w[c]; });
        const float sum_gh = row_sum(C, [g, w, hr, mu](int64_t c) {
          return static_cast<float>(g[c]) * w[c] * (static_cast<float>(hr[c]) - mu);
        });
        const float m1 = sum_g / static_cast<float>(C),
                    m2 = sum_gh * rs * rs / static_cast<float>(C);
        T* out = dx + r * C;
        if (dsum) {
          const T* ds = dsum + r * C;
          for (int64_t c = 0; c < C; ++c)
            out[c] = rs * (static_cast<float>(g[c]) * w[c] - m1 -
                           (static_cast<float>(hr[c]) - mu) * m2) +
                     static_cast<float>(ds[c]);
        } else {
          for (int64_t c = 0; c < C; ++c)
            out[c] =
                rs * (static_cast<float>(g[c]) * w[c] - m1 - (static_cast<float>(hr[c]) - mu) * m2);
        }
        if (dweight)
          for (int64_t c = 0; c < C; ++c) {
            dw[c] += static_cast<float>(g[c]) * (static_cast<float>(hr[c]) - mu) * rs;
            db[c] += static_cast<float>(g[c]);
          }
      }
    }
  });
  if (!dweight) return;
  for (int64_t b = 0; b < kBlocks; ++b) {
    const float* dw = partial + b * 2 * C;
    for (int64_t c = 0; c < C; ++c) {
      dweight[c] += dw[c];
      if (dbias) dbias[c] += dw[C + c];
    }
  }
}

}  // namespace

void layer_norm_forward(Stream&, Tensor y, Tensor sum, Tensor mean, Tensor rstd, Tensor x,
                        Tensor residual, Tensor weight, Tensor bias, int64_t R, int64_t C,
                        float eps) {
  dispatch_float(x.dtype, [&](auto t) {
    using T = decltype(t);
    forward<T>(y.as<T>(R * C), sum.as_or_null<T>(R * C), mean.as<float>(R), rstd.as<float>(R),
               x.as<const T>(R * C), residual.as_or_null<const T>(R * C), weight.as<const float>(C),
               bias.as_or_null<const float>(C), R, C, eps);
  });
}

void layer_norm_backward(Stream& s, Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor dsum,
                         Tensor h, Tensor weight, Tensor mean, Tensor rstd, int64_t R, int64_t C) {
  Scratch<float> partial(s, dweight ? kBlocks * 2 * C : 0);
  dispatch_float(dy.dtype, [&](auto t) {
    using T = decltype(t);
    backward<T>(dx.as<T>(R * C), dweight.as_or_null<float>(C), dbias.as_or_null<float>(C),
                dy.as<const T>(R * C), dsum.as_or_null<const T>(R * C), h.as<const T>(R * C),
                weight.as<const float>(C), mean.as<const float>(R), rstd.as<const float>(R),
                partial.data(), R, C);
  });
}

}  // namespace siglip2::cpu::ISA

OP(layer_norm_forward);
OP(layer_norm_backward);
