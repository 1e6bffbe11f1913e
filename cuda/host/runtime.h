// Runs CUDA kernels on the CPU: one fiber per CUDA thread, one block or cluster at a time, one OS
// thread per grid. Speed is not the aim; finding faults is. Threads are scheduled in a chosen order,
// asynchronous work takes effect as early or as late as the programming model allows, and shared
// memory is filled with NaN before each block, so that a kernel that only works by luck gives a
// wrong result here. ASan, UBSan and TSan see every access with the kernel's own line.
//
// A fault that the runtime finds itself (divergence, deadlock, misuse of a barrier, …) is thrown as
// cuda_host::Error by run_grid. Grids may run on several OS threads at once only if their kernels
// use no static __shared__ variables.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>
#include "types.h"

namespace cuda_host {

using Where = std::source_location;

enum class Order { ascending, descending, random };  // which thread, and which block, runs next
enum class Timing {
  early,
  late,
  random
};  // when a copy or a wgmma takes effect: at issue or at its wait
struct Config {
  Order order = Order::ascending;
  Timing timing = Timing::late;
  uint64_t seed = 1;
  size_t stack_bytes = 256 << 10;
  // Only TSan sees this. False: two blocks of one grid that touch the same memory are reported as a
  // race, which is what they are on a GPU. Kernels with static __shared__ variables need true, as
  // all blocks share those here.
  bool ordered_blocks = false;
  bool wgmma = true;  // what the device says that it has; false chooses the kernels of older GPUs
};
Config& config();  // of the calling OS thread

// SIGLIP2_CUDA_DRY=1: kernels, fills and copies do nothing and memory is reserved but never touched. What is left is the
// work of enqueuing, which a benchmark can then time at any model size.
bool dry();

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ThreadView {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane, warp;
};
extern constinit thread_local const ThreadView* view;  // the CUDA thread that is running

// `cluster` blocks that are neighbours along x run at the same time; those of a cluster see each other's shared memory.
void run_grid(dim3 grid, dim3 block, size_t smem, unsigned cluster,
              const std::function<void()>& thread);

template <class... P, class... A> void run_kernel(void (*kernel)(P...), dim3 grid, dim3 block,
                                                  size_t smem, unsigned cluster, A&&... a) {
  const std::tuple<std::decay_t<P>...> args(std::forward<A>(a)...);
  run_grid(grid, block, smem, cluster, [&] { std::apply(kernel, args); });
}

// ---- synchronisation (sync.cpp) -----------------------------------------------------------------

void barrier_sync(int id, int threads, Where where);  // threads == 0: the whole block
void barrier_arrive(int id, int threads, Where where);
void sync_warp(uint32_t mask, Where where);
uint64_t shuffle(uint32_t mask, uint64_t bits, int source_lane,
                 Where where);  // source_lane < 0: own value
uint32_t ballot(uint32_t mask, bool predicate, Where where);
// All threads of the cluster, of which none may have exited.
void cluster_sync(Where where);
uint32_t cluster_rank();
void yield_thread();
[[noreturn]] void trap(const char* message, Where where);

// ---- warp-level matrix instructions (mma.cpp) ---------------------------------------------------

void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row, Where where);
void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, Where where);

// ---- shared memory ------------------------------------------------------------------------------

void* dynamic_shared();
uint32_t shared_address(
    const void* p);  // address in the 32-bit shared window; p must be dynamic shared memory
void* shared_pointer(uint32_t address, size_t bytes, const char* what);

// ---- mbarrier and asynchronous copies (async.cpp) -----------------------------------------------

void mbarrier_init(uint64_t* barrier, uint32_t count);
void mbarrier_arrive(uint64_t* barrier, uint32_t expect_bytes);
void mbarrier_arrive_in(uint64_t* barrier,
                        uint32_t rank);  // at the same place in another block of the cluster
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Where where);

void cp_async(void* dst, const void* src, int bytes,
              int source_bytes);  // the rest is filled with zeros
void cp_async_commit();
void cp_async_wait(int groups_left);

// Stands where CUtensorMap stands.
struct alignas(64) TensorMap {
  const uint8_t* base;
  uint64_t dim[5];     // elements, innermost first
  uint64_t stride[5];  // bytes
  uint32_t box[5];     // elements
  uint8_t rank, element_bytes;
  uint8_t swizzle;  // 0 none, 1 32 B, 2 64 B, 3 128 B, as CU_TENSOR_MAP_SWIZZLE_*
};
// `blocks`: ranks in the cluster that get a copy each, at the same addresses; 0: this block.
void tma_load(void* dst, const TensorMap* map, const int* coordinates, uint64_t* barrier,
              uint32_t blocks = 0);
void tma_store(const TensorMap* map, const int* coordinates, const void* src);
void bulk_commit();
void bulk_wait(int groups_left);

// ---- wgmma (wgmma.cpp) --------------------------------------------------------------------------

// d (64, n) of the warpgroup; a_registers null: A comes from descriptor_a. transpose_*: the operand
// is MN-major.
struct Wgmma {
  float* d;
  const uint32_t* a_registers;
  uint64_t descriptor_a, descriptor_b;
  int n;
  bool accumulate, transpose_a, transpose_b;
};
void wgmma_issue(const Wgmma& op, Where where);
void wgmma_commit(Where where);
void wgmma_wait(int groups_left, Where where);
// setmaxnreg. Where warpgroups take more than the launch gave the block, hardware would wait for ever; here it is an error.
void set_registers(int registers, bool takes, Where where);

}  // namespace cuda_host
