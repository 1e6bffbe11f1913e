// Kernels of a few lines, each for one wrapper or intrinsic.
#pragma once
#include "../../../cuda/common.cuh"

namespace siglip2::cuda {

// Tiles of 8 × 16 floats through shared memory and back, with bounds kept by the tensor maps.
constexpr int kTmaRows = 8, kTmaColumns = 16;
constexpr size_t kTmaSmem = kTmaRows * kTmaColumns * sizeof(float) + sizeof(uint64_t);
__global__ void __launch_bounds__(32)
    tma_copy_kernel(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to) {
  DYN_SMEM(smem);
  uint64_t* const landed =
      reinterpret_cast<uint64_t*>(smem + kTmaRows * kTmaColumns * sizeof(float));
  float* const tile = reinterpret_cast<float*>(smem);
  const int x = static_cast<int>(blockIdx.x) * kTmaColumns,
            y = static_cast<int>(blockIdx.y) * kTmaRows;
  if (threadIdx.x == 0) {
    mbarrier_init(landed, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(landed, kTmaRows * kTmaColumns * sizeof(float));
    tma_load_2d(smem, &from, x, y, landed);
  }
  __syncwarp();
  mbarrier_wait(landed, 0);
  for (int i = static_cast<int>(threadIdx.x); i < kTmaRows * kTmaColumns; i += 32) tile[i] *= 2;
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    tma_store_2d(&to, x, y, smem);
    bulk_commit();
    bulk_wait<0>();
  }
}

// Two warps fill, two warps read, through named barriers, for several rounds.
constexpr size_t kNamedBarriersSmem = 64 * sizeof(float);
__global__ void __launch_bounds__(128) named_barriers_kernel(float* out, int rounds) {  // (64)
  DYN_SMEM(smem);
  float* const box = reinterpret_cast<float*>(smem);
  const int t = static_cast<int>(threadIdx.x);
  float total = 0;
  for (int r = 0; r < rounds; ++r) {
    if (t < 64) {
      if (r > 0) barrier_sync(2, 128);  // taken out
      box[t] = static_cast<float>(t + r);
      barrier_arrive(1, 128);  // filled
    } else {
      barrier_sync(1, 128);
      total += box[127 - t];
      if (r + 1 < rounds) barrier_arrive(2, 128);
    }
  }
  if (t >= 64) out[127 - t] = total;
}

__global__ void __launch_bounds__(32)
    intrinsics_kernel(float* out, uint32_t* bits) {  // (32, 8), (2)
  const int lane = static_cast<int>(threadIdx.x);
  const float v = static_cast<float>(lane);
  float* const row = out + lane * 8;
  row[0] = __shfl_xor_sync(kAllLanes, v, 5);
  row[1] = __shfl_down_sync(kAllLanes, v, 3, 8);
  row[2] = __shfl_up_sync(kAllLanes, v, 3, 8);
  row[3] = __shfl_sync(kAllLanes, v, 9, 8);
  row[4] = warp_sum(v);
  row[5] = ex2(v - 16);
  row[6] = lane % 2 ? __shfl_sync(0xaaaaaaaau, v, 31) : __shfl_sync(0x55555555u, v, 30);
  row[7] = rsqrtf(v + 1);
  const uint32_t votes = __ballot_sync(kAllLanes, lane % 3 == 0);
  if (lane == 0) {
    bits[0] = votes;
    bits[1] = pack_bf16(1.0f, -2.5f);
  }
}

// A box of three dimensions over the bounds of two of them, swizzled by 64 bytes; out gets it line by line.
constexpr int kBoxColumns = 32, kBoxRows = 8;
constexpr size_t kBoxSmem = kBoxColumns * kBoxRows * 2 + sizeof(uint64_t);
__global__ void __launch_bounds__(32)
    tma_box_kernel(const __grid_constant__ TensorMap map, int x, int y, int z,
                   __nv_bfloat16* out) {  // (8, 32)
  DYN_SMEM(smem);
  uint64_t* const landed = reinterpret_cast<uint64_t*>(smem + kBoxColumns * kBoxRows * 2);
  if (threadIdx.x == 0) {
    mbarrier_init(landed, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(landed, kBoxColumns * kBoxRows * 2);
    tma_load_3d(smem, &map, x, y, z, landed);
  }
  __syncwarp();
  mbarrier_wait(landed, 0);
  for (int i = static_cast<int>(threadIdx.x); i < kBoxColumns * kBoxRows / 8; i += 32) {
    const int row = i / 4,
              chunk = i % 4;  // the swizzle: 16-byte chunk xor bits 7 and 8 of the address
    *reinterpret_cast<uint4*>(out + i * 8) =
        *reinterpret_cast<const uint4*>(smem + row * 64 + (chunk ^ row / 2 % 4) * 16);
  }
}

// Copies of 0 to 16 bytes, the rest zeros: lane l asks for l / 2.
constexpr size_t kShortCopySmem = 32 * 16;
__global__ void __launch_bounds__(32)
    short_copy_kernel(const uint32_t* from, uint32_t* out) {  // (32, 4) both
  DYN_SMEM(smem);
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16_of(smem + lane * 16, from + lane * 4, lane / 2);
  cp_async_commit();
  cp_async_wait<0>();
  for (int i = 0; i < 4; ++i)
    out[lane * 4 + i] = reinterpret_cast<const uint32_t*>(smem)[lane * 4 + i];
}

// A ring of one stage between two warps over several phases: 32 arrivals fill it, one empties it.
constexpr size_t kPhasesSmem = 32 * sizeof(int) + 2 * sizeof(uint64_t);
__global__ void __launch_bounds__(64) mbarrier_phases_kernel(int rounds, int* out) {  // (32)
  DYN_SMEM(smem);
  int* const box = reinterpret_cast<int*>(smem + 2 * sizeof(uint64_t));
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem);
  uint64_t* const empty = full + 1;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    mbarrier_init(full, 32);
    mbarrier_init(empty, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  int total = 0;
  for (int r = 0; r < rounds; ++r) {
    const uint32_t parity = r % 2;
    if (threadIdx.x < 32) {
      mbarrier_wait(empty, parity ^ 1);
      box[lane] = lane * (r + 1);
      mbarrier_arrive(full);
    } else {
      mbarrier_wait(full, parity);
      total += box[31 - lane];
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty);
    }
  }
  if (threadIdx.x >= 32) out[lane] = total;
}

// Two blocks of a cluster take turns at fetching a box for both; whoever is next waits until both have used the last one.
// The mistakes are for the test of faults.
enum class ClusterFault { none, exits_early, not_awaited, third_block };
constexpr size_t kClusterSmem = kTmaRows * kTmaColumns * sizeof(float) + 2 * sizeof(uint64_t);
template <ClusterFault kFault = ClusterFault::none> __global__ void __launch_bounds__(32)
    cluster_kernel(const __grid_constant__ TensorMap from, int rounds,
                   float* out) {  // (blocks, 32)
  DYN_SMEM(smem);
  const float* const box = reinterpret_cast<const float*>(smem);
  uint64_t* const full = reinterpret_cast<uint64_t*>(smem + kTmaRows * kTmaColumns * sizeof(float));
  uint64_t* const empty = full + 1;
  const uint32_t rank = cluster_rank();
  const int lane = static_cast<int>(threadIdx.x);
  if (lane == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(empty, 2);
    fence_mbarrier_init();
  }
  cluster_sync();
  float total = static_cast<float>(rank);
  for (int r = 0; r < rounds; ++r) {
    if (lane == 0) {
      mbarrier_arrive_expect(full, kTmaRows * kTmaColumns * sizeof(float));
      if (r % 2 == static_cast<int>(rank)) {
        if (r > 0 && kFault != ClusterFault::not_awaited) mbarrier_wait(empty, (r - 1) / 2 % 2);
        tma_load_2d_for(smem, &from, 0, r * kTmaRows, full,
                        kFault == ClusterFault::third_block ? 7 : 3);
      }
    }
    __syncwarp();
    mbarrier_wait(full, r % 2);
    for (int i = lane; i < kTmaRows * kTmaColumns; i += 32)
      total += box[i] * static_cast<float>(i + 1);
    __syncwarp();
    const bool last = r + 1 == rounds;
    if (lane == 0 && (!last || kFault == ClusterFault::exits_early))
      mbarrier_arrive_in(empty, (r + 1) % 2);
  }
  out[blockIdx.x * 32 + threadIdx.x] = total;
  if (kFault != ClusterFault::exits_early) cluster_sync();
}

// Rounding to bf16, to the nearest and to even between two, of normal, subnormal and infinite numbers.
__global__ void __launch_bounds__(32) round_kernel(const float* x, float* out) {  // (32) both
  const int i = static_cast<int>(threadIdx.x);
  out[i] = static_cast<float>(static_cast<__nv_bfloat16>(x[i]));
}

// Sums of pairs of bf16: of two different lanes' numbers, and of a number and three times another.
__global__ void __launch_bounds__(32)
    bf16_sums_kernel(const float* x, uint32_t* out) {  // (32) both
  const int i = static_cast<int>(threadIdx.x);
  out[i] = add_bf16x2(pack_bf16(x[i], 3 * x[31 - i]), pack_bf16(x[i ^ 1], x[i]));
}

// The other atomics, by 64 threads on one word each: minimum, maximum, number of exchanges that saw another value.
__global__ void __launch_bounds__(64)
    extremes_kernel(unsigned long long* least, int* most, int* taken) {
  const int i = static_cast<int>(threadIdx.x);
  atomicMin(least, static_cast<unsigned long long>(i * 37 % 64 + 5) << 32);
  atomicMax(most, i * 29 % 64);
  if (atomicCAS(taken, 0, 1) == 0) atomicExch(taken + 1, 7);
}

__global__ void count_kernel(int* counter, float* total) {
  atomicAdd(counter, 1);
  atomicAdd(total, 0.5f);
}

}  // namespace siglip2::cuda
