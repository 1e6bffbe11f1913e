// Tiles of attention on tensor cores (mma.sync m16n8k16, bf16 operands, float sums). A tile is rows
// of one head in shared memory. As A operand or as Kᵀ it is read along the columns, which are padded
// with zeros to a multiple of 16 (72 columns: 80); as V its columns are the width of the result, in
// steps of 8 (72 columns: 72).
#pragma once
#include "attention.cuh"

namespace siglip2::cuda::attention {

using bf16 = __nv_bfloat16;

template <int kD> constexpr int kDepth = (kD + 15) / 16 * 16;  // columns as a contraction
template <int kD> constexpr int kSteps = kDepth<kD> / 16;      // instructions along it
template <int kD> constexpr int kWidth = kD / 8;               // instructions across it
// Row of a tile. The 16 bytes beyond the depth put the eight rows that ldmatrix reads into
// different banks, for each of 64, 72, 96 and 128 columns.
template <int kD> constexpr int kRow = kDepth<kD> + 8;

// Fragments of a (16·kM, 8·kN) product: lane l has rows l / 4 and l / 4 + 8, columns l % 4 · 2 and
// the next, of each 16 x 8 tile.
template <int kM, int kN> struct Fragments {
  float x[kM][kN][4];
  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) x[m][n][e] = 0;
  }
};

// The same rounded to bf16: word w of x[m][k] holds rows (w % 2)·8, columns 16·k + w / 2 · 8 of the
// 16 x 16 tile, which is how a product's result becomes the A operand of the next one.
template <int kM, int kN> struct Operands {
  uint32_t x[kM][kN / 2][4];
  __device__ __forceinline__ explicit Operands(const Fragments<kM, kN>& f) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          x[m][n / 2][n % 2 * 2 + half] = pack_bf16(f.x[m][n][2 * half], f.x[m][n][2 * half + 1]);
  }
  // Element e of tile (m, n), counted as in Fragments.
  __device__ __forceinline__ float at(int m, int n, int e) const {
    const uint32_t pair = x[m][n / 2][n % 2 * 2 + e / 2];
    return __uint_as_float(e % 2 ? pair & 0xffff0000u : pair << 16);
  }
};

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / 32; }

// Of one query: delta = Σ dO∘O over up to kColumns columns, by eight lanes of a warp; all of them have the sum.
template <int kColumns> __device__ __forceinline__ float query_delta(const Problem<bf16>& p,
                                                                     const Head<bf16>& head,
                                                                     int query, int part) {
  const bool there = query < head.sample.Nq;
  float sum = 0;
#pragma unroll
  for (int d = part * 8; d < kColumns; d += 64) {
    if (!there || d >= p.D) break;
    const int64_t at = head.o_at + static_cast<int64_t>(query) * (p.H * p.D) + d;
    float a[8], b[8];
    Pack<bf16>::load(p.d_o + at).unpack(a);
    Pack<bf16>::load(p.o + at).unpack(b);
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += a[e] * b[e];
  }
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

// Starts the copy of rows begin … begin + kRows − 1 of a head to a tile; zeros from row `end` and
// column D on, since a padded NaN would survive a product with zero.
template <int kRows, int kD, int kThreads>
__device__ __forceinline__ void copy_rows(bf16* tile, const bf16* from, int64_t row, int begin,
                                          int end, int D) {
  constexpr int kPacks = kDepth<kD> / 8;
  const int thread = opaque(static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i0 = 0; i0 < kRows * kPacks; i0 += kThreads) {
    const int i = i0 + thread, r = i / kPacks, c = i % kPacks * 8;
    if (kRows * kPacks % kThreads != 0 && i >= kRows * kPacks) break;
    const bool there = begin + r < end && c < D;
    cp_async_16(tile + r * kRow<kD> + c, there ? from + (begin + r) * row + c : from, there);
  }
}

// a (16, 16): rows r … r + 15 of a tile, columns 16·k … 16·k + 15.
template <int kD>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16* tile, int r, int k) {
  const int lane = lane_id();
  ldmatrix_x4(a, tile + (r + lane % 16) * kRow<kD> + k * 16 + lane / 16 * 8);
}

// s (16·kM, 8·kN) += A·tileᵀ over all columns; a(k, m) gives the A operand of row tile m.
template <int kD, int kM, int kN, class A>
__device__ __forceinline__ void multiply_transposed(Fragments<kM, kN>& s, const bf16* tile, A&& a) {
  const int lane = lane_id();
  const bf16* const row = tile + (lane % 8 + lane / 16 * 8) * kRow<kD> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kSteps<kD>; ++k) {
    uint32_t am[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) a(am[m], k, m);
#pragma unroll
    for (int n = 0; n < kN / 2; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, row + n * 16 * kRow<kD> + k * 16);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_m16n8k16(s.x[m][2 * n], am[m], b[0], b[1]);
        mma_m16n8k16(s.x[m][2 * n + 1], am[m], b[2], b[3]);
      }
    }
  }
}

// o (16·kM, kD) += p (16·kM, 8·kN) · tile (8·kN, kD).
template <int kD, int kM, int kN>
__device__ __forceinline__ void multiply(Fragments<kM, kWidth<kD>>& o, const Operands<kM, kN>& p,
                                         const bf16* tile) {
  const int lane = lane_id();
  const bf16* const row = tile + lane % 16 * kRow<kD> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
    for (int n = 0; n < kWidth<kD>; n += 2) {  // the second half of the last pair may not exist
      uint32_t b[4];
      ldmatrix_x4_transposed(b, row + k * 16 * kRow<kD> + n * 8);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        constexpr int kLast = kWidth<kD> - 1;
        mma_m16n8k16(o.x[m][n], p.x[m][k], b[0], b[1]);
        if (n < kLast) mma_m16n8k16(o.x[m][n < kLast ? n + 1 : 0], p.x[m][k], b[2], b[3]);
      }
    }
  }
}

// A warp's rows times factor(m, half) to global memory in 16-byte packs, by way of `staging`, 16·kM
// rows of shared memory that no other warp uses any more. Rows from `rows` and columns from D on
// are left out.
template <int kD, int kM, class F>
__device__ __forceinline__ void store_rows(bf16* to, int64_t row, int rows, int D,
                                           const Fragments<kM, kWidth<kD>>& c, bf16* staging,
                                           F&& factor) {
  const int lane = lane_id();
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float f = factor(m, half);
      bf16* const at = staging + (m * 16 + half * 8 + lane / 4) * kRow<kD> + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kWidth<kD>; ++n) {
        const uint32_t pair = pack_bf16(c.x[m][n][2 * half] * f, c.x[m][n][2 * half + 1] * f);
        *reinterpret_cast<uint32_t*>(at + n * 8) = pair;
      }
    }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * kM * kWidth<kD>; i += 32) {
    const int r = i / kWidth<kD>, d = i % kWidth<kD> * 8;
    if (r < rows && d < D) Pack<bf16>::load(staging + r * kRow<kD> + d).store(to + r * row + d);
  }
}

// The same in float, straight from the fragments: partial sums of dQ.
template <int kD, int kM>
__device__ __forceinline__ void store_rows(float* to, int64_t row, int rows, int D,
                                           const Fragments<kM, kWidth<kD>>& c, float factor) {
  const int lane = lane_id();
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int n = 0; n < kWidth<kD>; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = m * 16 + e / 2 * 8 + lane / 4, d = n * 8 + lane % 4 * 2 + e % 2;
        if (r < rows && d < D) to[r * row + d] = c.x[m][n][e] * factor;
      }
}

// f(the least of the compiled widths that D columns fit into).
template <class F> void dispatch_columns(int D, F&& f) {
  if (D <= 64) f(std::integral_constant<int, 64>{});
  else if (D <= 72) f(std::integral_constant<int, 72>{});
  else if (D <= 96) f(std::integral_constant<int, 96>{});
  else f(std::integral_constant<int, kMmaColumns>{});
}

// Shared memory of one block: on sm_90, and on the least of the others (sm_86, sm_89). What must run
// everywhere keeps to the latter.
constexpr size_t kSharedMemory90 = 232448, kSharedMemoryAll = 101376;
inline size_t shared_memory_limit() {  // of the current device
#ifdef SIGLIP2_CUDA_HOST
  return kSharedMemory90;
#else
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  return static_cast<size_t>(bytes);
#endif
}

}  // namespace siglip2::cuda::attention
