// LayerNorm with the residual addition before it:
//   h = x + residual,  y = (h − mean)·rstd·weight + bias
// Bound by memory: each of the (R, C) tensors should move once. So one warp holds one row in
// registers and passes over it twice (mean, then variance about the mean) without reading it again.
//
// Backward needs two sums over each row and, for dweight and dbias, two sums over all rows. A block
// walks over many rows and adds into its own float copy of both in shared memory, each lane only at
// its own columns; the blocks' copies go to scratch and a second kernel adds them in order. No
// atomics, so the result does not vary.
//
// Rows that do not divide into 16-byte packs, unaligned views and C > 2048 take the looped kernels,
// which read a row several times (from cache) and hold nothing.
#include "../native/ops/layer_norm.h"
#include "common.cuh"

namespace siglip2::cuda {

namespace {

constexpr unsigned kForwardWarps = 8;
// Shared memory of the backward pass is 4 warps × 2 × C floats: 64 KiB at 2048 columns.
constexpr unsigned kBackwardWarps = 4;
constexpr int kMaxInRegisters = 2048;  // columns: 64 floats of h and 64 of dy for each lane
// Two for each SM of an H100; a constant, so that every GPU adds in the same order.
constexpr int64_t kMaxBackwardBlocks = 264;

// Packs of a row that one lane holds when rows have up to kColumns columns.
template <class T, int kColumns> constexpr int kPacks =
    kColumns / (Pack<T>::size * static_cast<int>(kWarp));

// ---- forward ------------------------------------------------------------------------------------

// kBias is known at compile time: a choice for each element would spill a register.
template <class T, int kColumns, bool kBias> __global__ void __launch_bounds__(kForwardWarps* kWarp)
    layer_norm_forward_kernel(T* y,                 // (R, C)
                              T* sum,               // (R, C) or null
                              float* mean,          // (R)
                              float* rstd,          // (R)
                              const T* x,           // (R, C)
                              const T* residual,    // (R, C) or null
                              const float* weight,  // (C)
                              const float* bias,    // (C) or null
                              int64_t R, int C, float eps) {
  constexpr int V = Pack<T>::size, P = kPacks<T, kColumns>;
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kForwardWarps + threadIdx.x / kWarp;
  if (row >= R) return;  // whole warps, and no barrier follows
  float h[P][V];
  float total = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int c = (p * static_cast<int>(kWarp) + lane) * V;
    if (c >= C) continue;
    Pack<T>::load(x + row * C + c).unpack(h[p]);
    if (residual) {
      float r[V];
      Pack<T>::load(residual + row * C + c).unpack(r);
#pragma unroll
      for (int i = 0; i < V; ++i) h[p][i] += r[i];
      // Backward sees the stored h, so normalise that one.
      const Pack<T> rounded = Pack<T>::from(h[p]);
      rounded.unpack(h[p]);
      if (sum) rounded.store(sum + row * C + c);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) total += h[p][i];
  }
  const float m = warp_sum(total) / static_cast<float>(C);
  float squares = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if ((p * static_cast<int>(kWarp) + lane) * V >= C) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) squares += (h[p][i] - m) * (h[p][i] - m);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int c = (p * static_cast<int>(kWarp) + lane) * V;
    if (c >= C) continue;
#pragma unroll
    for (int i = 0; i < V; ++i)
      h[p][i] = (h[p][i] - m) * r * weight[c + i] + (kBias ? bias[c + i] : 0.0f);
    Pack<T>::from(h[p]).store(y + row * C + c);
  }
  if (lane == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

template <class T> __global__ void __launch_bounds__(kForwardWarps* kWarp)
    layer_norm_forward_looped_kernel(T* y, T* sum, float* mean, float* rstd, const T* x,
                                     const T* residual, const float* weight, const float* bias,
                                     int64_t R, int64_t C, float eps) {
  const int64_t lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kForwardWarps + threadIdx.x / kWarp;
  if (row >= R) return;
  const auto h = [&](int64_t c) {
    const float v = static_cast<float>(x[row * C + c]);
    return residual
               ? static_cast<float>(static_cast<T>(v + static_cast<float>(residual[row * C + c])))
               : v;
  };
  float total = 0;
  for (int64_t c = lane; c < C; c += kWarp) total += h(c);
  const float m = warp_sum(total) / static_cast<float>(C);
  float squares = 0;
  for (int64_t c = lane; c < C; c += kWarp) squares += (h(c) - m) * (h(c) - m);
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
  for (int64_t c = lane; c < C; c += kWarp) {
    const float v = h(c);
    if (sum) sum[row * C + c] = static_cast<T>(v);
    y[row * C + c] = static_cast<T>((v - m) * r * weight[c] + (bias ? bias[c] : 0.0f));
  }
  if (lane == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

// ---- backward -----------------------------------------------------------------------------------
// With g = dy·weight and n = (h − mean)·rstd:  dh = rstd·(g − mean(g) − n·mean(g·n)) + dsum.

template <class T, int kColumns> __global__ void __launch_bounds__(kBackwardWarps* kWarp)
    layer_norm_backward_kernel(T* dx,           // (R, C)
                               float* partial,  // (blocks, 2, C) sums of dy·n and of dy, or null
                               const T* dy,     // (R, C)
                               const T* dsum,   // (R, C) or null
                               const T* h,      // (R, C)
                               const float* weight,  // (C)
                               const float* mean,    // (R)
                               const float* rstd,    // (R)
                               int64_t R, int C) {
  constexpr int V = Pack<T>::size, P = kPacks<T, kColumns>;
  DYN_SMEM(smem);
  float* const copies = reinterpret_cast<float*>(smem);  // (warps, 2, C)
  const int lane = static_cast<int>(threadIdx.x % kWarp),
            warp = static_cast<int>(threadIdx.x / kWarp);
  float* const dweight = copies + warp * 2 * C;
  float* const dbias = dweight + C;
  if (partial)
    for (int c = static_cast<int>(threadIdx.x); c < static_cast<int>(kBackwardWarps) * 2 * C;
         c += kBackwardWarps * kWarp)
      copies[c] = 0;
  __syncthreads();

  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBackwardWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kBackwardWarps + warp; row < R;
       row += stride) {
    Pack<T> dy_packs[P], h_packs[P];
    const float m = mean[row], r = rstd[row];
    float sum_g = 0, sum_gn = 0;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int c = (p * static_cast<int>(kWarp) + lane) * V;
      if (c >= C) continue;
      dy_packs[p] = Pack<T>::load(dy + row * C + c);
      h_packs[p] = Pack<T>::load(h + row * C + c);
      float d[V], n[V];
      dy_packs[p].unpack(d);
      h_packs[p].unpack(n);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float g = d[i] * weight[c + i];
        sum_g += g;
        sum_gn += g * ((n[i] - m) * r);
      }
    }
    const float mean_g = warp_sum(sum_g) / static_cast<float>(C);
    const float mean_gn = warp_sum(sum_gn) / static_cast<float>(C);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int c = (p * static_cast<int>(kWarp) + lane) * V;
      if (c >= C) continue;
      float d[V], n[V], out[V] = {};
      dy_packs[p].unpack(d);
      h_packs[p].unpack(n);
      if (dsum) Pack<T>::load(dsum + row * C + c).unpack(out);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        n[i] = (n[i] - m) * r;
        out[i] += r * (d[i] * weight[c + i] - mean_g - n[i] * mean_gn);
        if (partial) {
          dweight[c + i] += d[i] * n[i];
          dbias[c + i] += d[i];
        }
      }
      Pack<T>::from(out).store(dx + row * C + c);
    }
  }
  __syncthreads();
  if (!partial) return;
  for (int c = static_cast<int>(threadIdx.x); c < 2 * C; c += kBackwardWarps * kWarp) {
    float total = 0;
    for (int w = 0; w < static_cast<int>(kBackwardWarps); ++w) total += copies[w * 2 * C + c];
    partial[static_cast<int64_t>(blockIdx.x) * 2 * C + c] = total;
  }
}

template <class T> __global__ void __launch_bounds__(kBackwardWarps* kWarp)
    layer_norm_backward_looped_kernel(T* dx, const T* dy, const T* dsum, const T* h,
                                      const float* weight, const float* mean, const float* rstd,
                                      int64_t R, int64_t C) {
  const int64_t lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kBackwardWarps + threadIdx.x / kWarp;
  if (row >= R) return;
  const float m = mean[row], r = rstd[row];
  const auto g = [&](int64_t c) { return static_cast<float>(dy[row * C + c]) * weight[c]; };
  const auto n = [&](int64_t c) { return (static_cast<float>(h[row * C + c]) - m) * r; };
  float sum_g = 0, sum_gn = 0;
  for (int64_t c = lane; c < C; c += kWarp) {
    sum_g += g(c);
    sum_gn += g(c) * n(c);
  }
  const float mean_g = warp_sum(sum_g) / static_cast<float>(C),
              mean_gn = warp_sum(sum_gn) / static_cast<float>(C);
  for (int64_t c = lane; c < C; c += kWarp) {
    const float direct = dsum ? static_cast<float>(dsum[row * C + c]) : 0.0f;
    dx[row * C + c] = static_cast<T>(direct + r * (g(c) - mean_g - n(c) * mean_gn));
  }
}

// A block of (32 columns, 8 row groups) for sums down the columns.
constexpr unsigned kRowGroups = 8;

// The column sums of one slice of rows, for the looped path.
template <class T> __global__ void __launch_bounds__(kWarp* kRowGroups)
    layer_norm_backward_columns_kernel(float* partial,     // (slices, 2, C)
                                       const T* dy,        // (R, C)
                                       const T* h,         // (R, C)
                                       const float* mean,  // (R)
                                       const float* rstd,  // (R)
                                       int64_t R, int64_t C) {
  DYN_SMEM(smem);
  float* const sums = reinterpret_cast<float*>(smem);  // (2, row groups, 32)
  const unsigned lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float dweight = 0, dbias = 0;
  if (c < C)
    for (int64_t row = blockIdx.y * kRowGroups + group; row < R;
         row += static_cast<int64_t>(gridDim.y) * kRowGroups) {
      const float d = static_cast<float>(dy[row * C + c]);
      dweight += d * (static_cast<float>(h[row * C + c]) - mean[row]) * rstd[row];
      dbias += d;
    }
  sums[threadIdx.x] = dweight;
  sums[kWarp * kRowGroups + threadIdx.x] = dbias;
  __syncthreads();
  if (group >= 2 || c >= C) return;
  float total = 0;
  for (unsigned i = 0; i < kRowGroups; ++i) total += sums[(group * kRowGroups + i) * kWarp + lane];
  partial[(static_cast<int64_t>(blockIdx.y) * 2 + group) * C + c] = total;
}

// Adds the (blocks, 2, C) partial sums to dweight and dbias; blockIdx.y says which of the two.
__global__ void __launch_bounds__(kWarp* kRowGroups)
    layer_norm_backward_reduce_kernel(float* dweight,        // (C) or null
                                      float* dbias,          // (C) or null
                                      const float* partial,  // (blocks, 2, C)
                                      int64_t blocks, int64_t C) {
  DYN_SMEM(smem);
  float* const sums = reinterpret_cast<float*>(smem);  // (row groups, 32)
  const unsigned lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  float* const out = blockIdx.y == 0 ? dweight : dbias;
  float total = 0;
  if (c < C)
    for (int64_t b = group; b < blocks; b += kRowGroups)
      total += partial[(b * 2 + blockIdx.y) * C + c];
  sums[threadIdx.x] = total;
  __syncthreads();
  if (group != 0 || c >= C || !out) return;
  for (unsigned i = 1; i < kRowGroups; ++i) total += sums[i * kWarp + lane];
  out[c] += total;
}

}  // namespace

// ---- launchers ----------------------------------------------------------------------------------

void layer_norm_forward(Stream& s, Tensor y, Tensor sum, Tensor mean, Tensor rstd, Tensor x,
                        Tensor residual, Tensor weight, Tensor bias, int64_t R, int64_t C,
                        float eps) {
  if (R == 0 || C == 0) return;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(R, kForwardWarps));
  dispatch_element(x.dtype, [&](auto t) {
    using T = decltype(t);
    T* const to = y.as<T>(R * C);
    T* const h = sum.as_or_null<T>(R * C);
    const T* const from = x.as<T>(R * C);
    const T* const add = residual.as_or_null<T>(R * C);
    const float* const w = weight.as<float>(C);
    const float* const b = bias.as_or_null<float>(C);
    float* const m = mean.as<float>(R);
    float* const r = rstd.as<float>(R);
    const bool packs =
        C % Pack<T>::size == 0 && C <= kMaxInRegisters && aligned_16(to, h, from, add);
    const auto run = [&](auto kernel, auto columns) {
      launch(kernel, blocks, kForwardWarps * kWarp, 0, s, to, h, m, r, from, add, w, b, R, columns,
             eps);
    };
    if (!packs) run(layer_norm_forward_looped_kernel<T>, C);
    else if (C <= kMaxInRegisters / 2)
      run(b ? layer_norm_forward_kernel<T, kMaxInRegisters / 2, true>
            : layer_norm_forward_kernel<T, kMaxInRegisters / 2, false>,
          static_cast<int>(C));
    else
      run(b ? layer_norm_forward_kernel<T, kMaxInRegisters, true>
            : layer_norm_forward_kernel<T, kMaxInRegisters, false>,
          static_cast<int>(C));
  });
}

void layer_norm_backward(Stream& s, Tensor dx, Tensor dweight, Tensor dbias, Tensor dy, Tensor dsum,
                         Tensor h, Tensor weight, Tensor mean, Tensor rstd, int64_t R, int64_t C) {
  if (R == 0 || C == 0) return;
  dispatch_element(h.dtype, [&](auto t) {
    using T = decltype(t);
    T* const to = dx.as<T>(R * C);
    const T* const d = dy.as<T>(R * C);
    const T* const direct = dsum.as_or_null<T>(R * C);
    const T* const saved = h.as<T>(R * C);
    const float* const w = weight.as<float>(C);
    const float* const m = mean.as<float>(R);
    const float* const r = rstd.as<float>(R);
    float* const dw = dweight.as_or_null<float>(C);
    float* const db = dbias.as_or_null<float>(C);
    const bool sums = dw || db;
    const int64_t row_blocks = ceil_div<int64_t>(R, kBackwardWarps);
    const int64_t blocks = row_blocks < kMaxBackwardBlocks ? row_blocks : kMaxBackwardBlocks;
    const unsigned column_blocks = static_cast<unsigned>(ceil_div<int64_t>(C, kWarp));
    Scratch<float> partial(s, sums ? blocks * 2 * C : 0);

    if (C % Pack<T>::size == 0 && C <= kMaxInRegisters && aligned_16(to, d, direct, saved)) {
      const size_t smem = sums ? kBackwardWarps * 2 * static_cast<size_t>(C) * sizeof(float) : 0;
      const auto run = [&](auto kernel) {
        launch(kernel, static_cast<unsigned>(blocks), kBackwardWarps * kWarp, smem, s, to,
               partial.data(), d, direct, saved, w, m, r, R, static_cast<int>(C));
      };
      if (C <= kMaxInRegisters / 2) run(layer_norm_backward_kernel<T, kMaxInRegisters / 2>);
      else run(layer_norm_backward_kernel<T, kMaxInRegisters>);
    } else {
      launch(layer_norm_backward_looped_kernel<T>, static_cast<unsigned>(row_blocks),
             kBackwardWarps * kWarp, 0, s, to, d, direct, saved, w, m, r, R, C);
      if (sums)
        launch(layer_norm_backward_columns_kernel<T>,
               dim3(column_blocks, static_cast<unsigned>(blocks)), kWarp * kRowGroups,
               2 * kWarp * kRowGroups * sizeof(float), s, partial.data(), d, saved, m, r, R, C);
    }
    if (sums)
      launch(layer_norm_backward_reduce_kernel, dim3(column_blocks, 2), kWarp * kRowGroups,
             kWarp * kRowGroups * sizeof(float), s, dw, db, partial.data(), blocks, C);
  });
}

}  // namespace siglip2::cuda
