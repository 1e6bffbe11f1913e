// Position embeddings of packed NaFlex images (formula in native/ops/position_resize.h). Bound by memory: the grid stays
// in the L2 cache and the (T, D) result moves once. Forward gives a block to each token: its threads first make the two
// rows of weights in shared memory, then each sums its channels over the few cells with a weight. Backward gathers: a
// block owns one cell of the grid and 128 channels, and walks over the tokens near that cell, image after image, so
// there are no atomics and sums have a fixed order. Weights are computed where they are used, in double precision like
// the CPU's; for an enlarged grid a token has 4 of them.
#include "../native/ops/position_resize.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kThreads = 128;
constexpr int64_t kMostGrid = 2048;  // cells along a side; two rows of weights in shared memory

// The filter of one axis from G cells to n outputs.
struct Axis {
  double scale, support;
  int G;

  __device__ __forceinline__ Axis(int G, int n)
      : scale(static_cast<double>(G) / n), support(fmax(scale, 1.0)), G(G) {}

  __device__ __forceinline__ double center(int i) const { return (i + 0.5) * scale - 0.5; }
  // Not normalised; zero outside of the support.
  __device__ __forceinline__ double raw(int i, int a) const {
    return fmax(0.0, 1.0 - fabs(a - center(i)) / support);
  }
  // Cells [begin, end) hold every weight of output i.
  __device__ __forceinline__ int begin(int i) const {
    return max(0, static_cast<int>(ceil(center(i) - support)));
  }
  __device__ __forceinline__ int end(int i) const {
    return min(G, static_cast<int>(floor(center(i) + support)) + 1);
  }
  __device__ __forceinline__ double sum(int i) const {
    double total = 0;
    for (int a = begin(i); a < end(i); ++a) total += raw(i, a);
    return total;
  }
  // Outputs [first, last) hold every one that has a weight on cell a.
  __device__ __forceinline__ int first(int a) const {
    return max(0, static_cast<int>(ceil((a + 0.5 - support) / scale - 0.5)));
  }
  __device__ __forceinline__ int last(int a, int n) const {
    return min(n, static_cast<int>(floor((a + 0.5 + support) / scale - 0.5)) + 1);
  }
};

// The image that has a token.
__device__ __forceinline__ int image_of(const int32_t* offsets, int S, int64_t token) {
  int low = 0, high = S;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (offsets[middle] <= token) low = middle;
    else high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    position_resize_forward_kernel(float* y,                // (T, D)
                                   const float* position,   // (G·G, D)
                                   const int32_t* shapes,   // (S, 2)
                                   const int32_t* offsets,  // (S + 1)
                                   int S, int G, int64_t D) {
  DYN_SMEM(smem);
  float* const weights = reinterpret_cast<float*>(smem);  // (2, G): down, across
  const int64_t token = blockIdx.x;
  const int s = image_of(offsets, S, token);
  const int columns = shapes[2 * s + 1];
  const int cell = static_cast<int>(token - offsets[s]), i = cell / columns, j = cell % columns;
  const Axis down(G, shapes[2 * s]), across(G, columns);
  const double down_sum = down.sum(i), across_sum = across.sum(j);
  for (int a = static_cast<int>(threadIdx.x); a < G; a += static_cast<int>(kThreads)) {
    weights[a] = static_cast<float>(down.raw(i, a) / down_sum);
    weights[G + a] = static_cast<float>(across.raw(j, a) / across_sum);
  }
  __syncthreads();
  const int a0 = down.begin(i), a1 = down.end(i), b0 = across.begin(j), b1 = across.end(j);
  for (int64_t c = threadIdx.x; c < D; c += kThreads) {
    float total = 0;
    for (int a = a0; a < a1; ++a) {
      float row = 0;
      for (int b = b0; b < b1; ++b)
        row += weights[G + b] * position[(static_cast<int64_t>(a) * G + b) * D + c];
      total += weights[a] * row;
    }
    y[token * D + c] = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    position_resize_backward_kernel(float* dposition,        // (G·G, D)
                                    const float* dy,         // (T, D)
                                    const int32_t* shapes,   // (S, 2)
                                    const int32_t* offsets,  // (S + 1)
                                    int S, int G, int64_t D) {
  const int64_t cell = blockIdx.x;
  const int a = static_cast<int>(cell) / G, b = static_cast<int>(cell) % G;
  const int64_t c = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (c >= D) return;
  float total = 0;
  for (int s = 0; s < S; ++s) {
    const int rows = shapes[2 * s], columns = shapes[2 * s + 1];
    const Axis down(G, rows), across(G, columns);
    for (int i = down.first(a); i < down.last(a, rows); ++i) {
      float row = 0;
      for (int j = across.first(b); j < across.last(b, columns); ++j) {
        const auto w = static_cast<float>(across.raw(j, b) / across.sum(j));
        row += w * dy[(offsets[s] + static_cast<int64_t>(i) * columns + j) * D + c];
      }
      total += static_cast<float>(down.raw(i, a) / down.sum(i)) * row;
    }
  }
  dposition[cell * D + c] += total;
}

void check_grid(int64_t G) {
  if (G < 1 || G > kMostGrid)
    throw std::invalid_argument("a grid of positions must have 1 to 2048 cells along a side");
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void position_resize_forward(Stream& s, Tensor y, Tensor position, Tensor shapes, Tensor offsets,
                             int64_t S, int64_t T, int64_t G, int64_t D) {
  check_grid(G);
  if (T == 0 || D == 0) return;
  launch(position_resize_forward_kernel, static_cast<unsigned>(T), kThreads,
         2 * static_cast<size_t>(G) * sizeof(float), s, y.as<float>(T * D),
         position.as<const float>(G * G * D), shapes.as<const int32_t>(2 * S),
         offsets.as<const int32_t>(S + 1), static_cast<int>(S), static_cast<int>(G), D);
}

void position_resize_backward(Stream& s, Tensor dposition, Tensor dy, Tensor shapes, Tensor offsets,
                              int64_t S, int64_t T, int64_t G, int64_t D) {
  check_grid(G);
  float* const to = dposition.as_or_null<float>(G * G * D);
  if (!to || T == 0 || D == 0) return;
  const dim3 grid(static_cast<unsigned>(G * G),
                  static_cast<unsigned>(ceil_div<int64_t>(D, kThreads)));
  launch(position_resize_backward_kernel, grid, kThreads, 0, s, to, dy.as<const float>(T * D),
         shapes.as<const int32_t>(2 * S), offsets.as<const int32_t>(S + 1), static_cast<int>(S),
         static_cast<int>(G), D);
}

}  // namespace siglip2::cuda
