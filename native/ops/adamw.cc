// CPU AdamW (adamw.h). Bound by memory: one pass reads and writes every array once.
#include "adamw.h"
#include <algorithm>
#include <cmath>
#include "../cpu/threads.h"
#include "../op.h"

namespace siglip2::cpu::ISA {

namespace {

constexpr int64_t kBlock =
    1 << 16;  // elements whose squares are summed in one go, whatever the number of threads
constexpr int64_t kRow = 512;

struct Rates {
  float lr, decay, beta1, beta2, eps, correction1, correction2, clip, ema;
};

// One run of elements with the same learning rate and decay.
void update(float* param, float* m, float* v, float* ema, bf16* copy, const float* grad, int64_t n,
            Rates r) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * r.clip;
    const float mi = r.beta1 * m[i] + (1.0f - r.beta1) * g;
    const float vi = r.beta2 * v[i] + (1.0f - r.beta2) * g * g;
    m[i] = mi;
    v[i] = vi;
    const float step = r.lr * (mi * r.correction1) / (__builtin_sqrtf(vi * r.correction2) + r.eps);
    param[i] -= step + r.decay * param[i];
  }
  if (ema)
    for (int64_t i = 0; i < n; ++i) ema[i] += (1.0f - r.ema) * (param[i] - ema[i]);
  if (copy)
    for (int64_t i = 0; i < n; ++i) copy[i] = param[i];
}

// In float: over a short row its rounding is far below that of the result.
float square_sum(const float* x, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

}  // namespace

void sum_of_squares(Stream& s, Tensor result, Tensor x, int64_t N) {
  const float* in = x.as<const float>(N);
  const int64_t blocks = (N + kBlock - 1) / kBlock;
  Scratch<double> partial(s, blocks);
  parallel_ranges(blocks, 1, [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      const int64_t end = std::min(N, (b + 1) * kBlock);
      double sum = 0;
      for (int64_t i = b * kBlock; i < end; i += kRow)
        sum += square_sum(in + i, std::min(kRow, end - i));
      partial.data()[b] = sum;
    }
  });
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) total += partial.data()[b];
  *result.as<float>(1) = static_cast<float>(total);
}

void adamw_step(Stream&, Tensor param, Tensor m, Tensor v, Tensor ema, Tensor copy, Tensor grad,
                Tensor norm2, Tensor segments, Tensor lr_scale, Tensor rates, int64_t N, int64_t S,
                int64_t step, float lr, float beta1, float beta2, float eps, float decay,
                float clip, float ema_decay) {
  float *p = param.as<float>(N), *pm = m.as<float>(N), *pv = v.as<float>(N),
        *pe = ema.as_or_null<float>(N);
  bf16* pc = copy.as_or_null<bf16>(N);
  const float *g = grad.as<const float>(N), *scale = lr_scale.as<const float>(S);
  const auto* segment = segments.as<const int32_t>(S * 2);
  const float* given = rates.as_or_null<const float>(4);
  if (!given && step < 1)
    throw std::invalid_argument("steps count from 1 but this is step " + std::to_string(step));
  if (const int64_t end = S > 0 ? segment[2 * S - 2] : 0; end != N)
    throw std::invalid_argument("the segments end at " + std::to_string(end) + " but there are " +
                                std::to_string(N) + " weights");
  const float norm = std::sqrt(*norm2.as<const float>(1));
  const auto correction = [&](float beta) {
    return static_cast<float>(1 /
                              (1 - std::pow(static_cast<double>(beta), static_cast<double>(step))));
  };
  if (given) {
    lr = given[0];
    decay = given[1];
  }
  const Rates base{0,
                   0,
                   beta1,
                   beta2,
                   eps,
                   given ? given[2] : correction(beta1),
                   given ? given[3] : correction(beta2),
                   norm > clip ? clip / norm : 1.0f,
                   ema_decay};
  parallel_ranges(N, 4096, [&](int64_t i0, int64_t i1) {
    // The first segment that ends behind i0; ends ascend.
    int64_t s = 0;
    while (s < S && segment[2 * s] <= i0) ++s;
    for (int64_t i = i0; i < i1 && s < S; ++s) {
      const int64_t end = std::min<int64_t>(i1, segment[2 * s]);
      Rates r = base;
      r.lr = lr * scale[s];
      r.decay = segment[2 * s + 1] & 1 ? decay : 0.0f;
      update(p + i, pm + i, pv + i, pe ? pe + i : nullptr, pc ? pc + i : nullptr, g + i, end - i,
             r);
      i = end;
    }
  });
}

}  // namespace siglip2::cpu::ISA

OP(sum_of_squares);
OP(adamw_step);
