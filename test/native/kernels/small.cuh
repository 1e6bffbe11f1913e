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

__global__ void count_kernel(int* counter, float* total) {
  atomicAdd(counter, 1);
  atomicAdd(total, 0.5f);
}

}  // namespace siglip2::cuda
