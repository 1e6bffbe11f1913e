// Antialiased bilinear resizing (native/ops/resize_bilinear.h): one axis after the other, as Pillow does it. Bound by
// the filter's taps. A first kernel makes each axis' weights in double precision, with no multiply-add fused, so that
// the uint8 path rounds as Pillow does; then a thread makes one output element, neighbours along the channels.
#include "../native/ops/resize_bilinear.h"
#include <algorithm>
#include <cmath>
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 256;

unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(ceil_div<int64_t>(items, kThreads));
}

// The input positions that make each output position, and for backward the other way round.
struct Axis {
  double* weight;         // (out, taps)
  int32_t *first, *last;  // (out) inputs [first, last)
  int32_t *from, *to;     // (in) outputs [from, to)
  int64_t in, out, taps;
};

__global__ void __launch_bounds__(kThreads)
    resize_weights_kernel(Axis a, double scale, double support) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.out) return;
  const double center = __dmul_rn(static_cast<double>(i) + 0.5, scale);
  const int64_t low = static_cast<int64_t>(__dadd_rn(__dadd_rn(center, -support), 0.5));
  const int64_t high = static_cast<int64_t>(__dadd_rn(__dadd_rn(center, support), 0.5));
  const int64_t first = low > 0 ? low : 0, last = high < a.in ? high : a.in;
  double* const w = a.weight + i * a.taps;
  double sum = 0;
  for (int64_t j = first; j < last; ++j) {
    const double d = __dadd_rn(__dadd_rn(static_cast<double>(j), -center), 0.5) / support;
    const double v = fmax(0.0, 1.0 - fabs(d));
    w[j - first] = v;
    sum = __dadd_rn(sum, v);
  }
  for (int64_t j = first; j < last; ++j)
    if (sum != 0) w[j - first] /= sum;
  a.first[i] = static_cast<int32_t>(first);
  a.last[i] = static_cast<int32_t>(last);
}

// first and last ascend, so the outputs that an input reaches are neighbours.
__global__ void __launch_bounds__(kThreads) resize_ranges_kernel(Axis a) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= a.in) return;
  const auto lowest = [&](auto reached) {  // the first output for which it holds
    int64_t low = 0, high = a.out;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (reached(middle)) high = middle;
      else low = middle + 1;
    }
    return static_cast<int32_t>(low);
  };
  a.from[j] = lowest([&](int64_t i) { return a.last[i] > j; });
  a.to[j] = lowest([&](int64_t i) { return a.first[i] > j; });
}

// y (n, out, inner) = weights · x (n, in, inner). uint8: 22-bit fixed point, rounded and clipped.
template <class T> __global__ void __launch_bounds__(kThreads)
    resize_axis_kernel(T* y, const T* x, Axis a, int64_t n, int64_t inner) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= n * a.out * inner) return;
  const int64_t c = at % inner, i = at / inner % a.out, b = at / inner / a.out;
  const int64_t first = a.first[i], last = a.last[i];
  const double* const w = a.weight + i * a.taps;
  const T* const from = x + b * a.in * inner + c;
  if constexpr (sizeof(T) == 1) {
    int32_t sum = 1 << 21;
    for (int64_t j = first; j < last; ++j)
      sum +=
          from[j * inner] * static_cast<int32_t>(__dadd_rn(__dmul_rn(w[j - first], 1 << 22), 0.5));
    const int32_t grey = sum >> 22;
    y[at] = static_cast<T>(grey < 0 ? 0 : grey > 255 ? 255 : grey);
  } else {
    float sum = 0;
    for (int64_t j = first; j < last; ++j)
      sum += static_cast<float>(w[j - first]) * from[j * inner];
    y[at] = sum;
  }
}

// dx (n, in, inner) = weightsᵀ · dy (n, out, inner).
__global__ void __launch_bounds__(kThreads)
    resize_axis_backward_kernel(float* dx, const float* dy, Axis a, int64_t n, int64_t inner) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= n * a.in * inner) return;
  const int64_t c = at % inner, j = at / inner % a.in, b = at / inner / a.in;
  float sum = 0;
  for (int64_t i = a.from[j]; i < a.to[j]; ++i)
    sum +=
        static_cast<float>(a.weight[i * a.taps + j - a.first[i]]) * dy[(b * a.out + i) * inner + c];
  dx[at] = sum;
}

// An axis with its weights made on the device.
class AxisTable {
 public:
  AxisTable(Stream& s, int64_t in, int64_t out, bool backward)
      : scale_(static_cast<double>(in) / static_cast<double>(out)),
        support_(std::max(scale_, 1.0)),
        taps_(static_cast<int64_t>(support_) * 2 + 3),
        weight_(s, out * taps_),
        bounds_(s, 2 * out + 2 * in) {
    int32_t* const b = bounds_.data();
    axis = {weight_.data(), b, b + out, b + 2 * out, b + 2 * out + in, in, out, taps_};
    launch(resize_weights_kernel, blocks_for(out), kThreads, 0, s, axis, scale_, support_);
    if (backward) launch(resize_ranges_kernel, blocks_for(in), kThreads, 0, s, axis);
  }
  Axis axis;

 private:
  double scale_, support_;
  int64_t taps_;
  Scratch<double> weight_;
  Scratch<int32_t> bounds_;
};

// Columns first. An axis whose size does not change is the identity.
template <class T> void resize(Stream& s, T* y, const T* x, int64_t B, int64_t H, int64_t W,
                               int64_t C, int64_t OH, int64_t OW) {
  const AxisTable columns(s, W, OW, false), rows(s, H, OH, false);
  Scratch<T> middle(s, B * H * OW * C);
  launch(resize_axis_kernel<T>, blocks_for(B * H * OW * C), kThreads, 0, s, middle.data(), x,
         columns.axis, B * H, C);
  launch(resize_axis_kernel<T>, blocks_for(B * OH * OW * C), kThreads, 0, s, y, middle.data(),
         rows.axis, B, OW * C);
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void resize_bilinear_forward(Stream& s, Tensor y, Tensor x, int64_t B, int64_t H, int64_t W,
                             int64_t C, int64_t OH, int64_t OW) {
  if (B == 0 || C == 0) return;
  const int64_t to = B * OH * OW * C, from = B * H * W * C;
  if (x.dtype == DType::u8)
    resize(s, y.as<uint8_t>(to), x.as<const uint8_t>(from), B, H, W, C, OH, OW);
  else resize(s, y.as<float>(to), x.as<const float>(from), B, H, W, C, OH, OW);
}

void resize_bilinear_backward(Stream& s, Tensor dx, Tensor dy, int64_t B, int64_t H, int64_t W,
                              int64_t C, int64_t OH, int64_t OW) {
  if (B == 0 || C == 0) return;
  float* const out = dx.as<float>(B * H * W * C);
  const float* const g = dy.as<const float>(B * OH * OW * C);
  const AxisTable columns(s, W, OW, true), rows(s, H, OH, true);
  Scratch<float> middle(s, B * H * OW * C);
  launch(resize_axis_backward_kernel, blocks_for(B * H * OW * C), kThreads, 0, s, middle.data(), g,
         rows.axis, B, OW * C);
  launch(resize_axis_backward_kernel, blocks_for(B * H * W * C), kThreads, 0, s, out, middle.data(),
         columns.axis, B * H, C);
}

}  // namespace siglip2::cuda
