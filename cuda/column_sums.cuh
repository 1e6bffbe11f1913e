// out[c] += Σ_r x[r, c] in a fixed order: gradients of biases and positions. Bound by memory: x is read once. Rows are
// cut into slices so that the grid fills a GPU however few columns there are; a second kernel adds the slices in order.
#pragma once
#include <algorithm>
#include "common.cuh"

namespace siglip2::cuda {

namespace column_sums_detail {

constexpr unsigned kSumThreads = 128;
// Threads that keep an H100's memory busy. A constant, so that every GPU adds in the same order.
constexpr int64_t kSumWantedThreads = 132 * 1024;
constexpr int64_t kLeastRows = 16;  // of a slice: fewer would move more partial sums than rows

// x may end inside its last row: N elements in all.
template <class T, int V> __global__ void __launch_bounds__(kSumThreads)
    column_sums_kernel(float* partial,  // (slices, columns)
                       const T* x,      // (rows, columns), N elements
                       int64_t N, int64_t columns, int64_t slice_rows) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * V;
  if (c >= columns) return;
  const int64_t begin = blockIdx.y * slice_rows * columns + c, end = begin + slice_rows * columns;
  float total[V] = {};
  for (int64_t i = begin; i < end && i < N; i += columns) {
    float v[V];
    load_values(v, x + i);
#pragma unroll
    for (int k = 0; k < V; ++k) total[k] += v[k];
  }
  store_values(partial + blockIdx.y * columns + c, total);
}

template <bool kAdd> __global__ void __launch_bounds__(kSumThreads)
    column_sums_finish_kernel(float* out,            // (columns)
                              const float* partial,  // (slices, columns)
                              int64_t slices, int64_t columns) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (c >= columns) return;
  float total = 0;
  for (int64_t i = 0; i < slices; ++i) total += partial[i * columns + c];
  out[c] = kAdd ? out[c] + total : total;
}

}  // namespace column_sums_detail

// x has N elements in rows of `columns`; out is set, or with kAdd added to.
template <bool kAdd, class T>
void column_sums(Stream& s, float* out, const T* x, int64_t N, int64_t columns) {
  using namespace column_sums_detail;
  if (columns == 0) return;
  const int64_t rows = ceil_div(N, columns);
  dispatch_packs<T>(columns % Pack<T>::size == 0 && aligned_16(x), [&](auto V) {
    const int64_t threads = ceil_div<int64_t>(columns, V.value);
    const int64_t wanted = std::clamp<int64_t>(kSumWantedThreads / threads, 1,
                                               std::max<int64_t>(1, rows / kLeastRows));
    const int64_t slice_rows = ceil_div(rows, wanted),
                  slices = slice_rows ? ceil_div(rows, slice_rows) : 0;
    Scratch<float> partial(s, slices * columns);
    if (slices)
      launch(column_sums_kernel<T, V.value>,
             dim3(static_cast<unsigned>(ceil_div<int64_t>(threads, kSumThreads)),
                  static_cast<unsigned>(slices)),
             kSumThreads, 0, s, partial.data(), x, N, columns, slice_rows);
    launch(column_sums_finish_kernel<kAdd>,
           static_cast<unsigned>(ceil_div<int64_t>(columns, kSumThreads)), kSumThreads, 0, s, out,
           partial.data(), slices, columns);
  });
}

}  // namespace siglip2::cuda
