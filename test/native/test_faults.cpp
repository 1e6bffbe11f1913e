// Kernels with a mistake each, and the proof that the host runtime or a sanitizer notices it. A
// sanitizer ends the process, so each runs in a child, under several schedules; the words expected
// must appear in what one of them says.
#include <sys/wait.h>
#include <unistd.h>
#define TEST_OWN_MAIN
#include "check.h"
#include "kernels/hopper_gemm.cuh"
#include "kernels/small.cuh"
#include "tensor_map.h"

namespace {

using namespace siglip2::cuda;
using cuda_host::Config;
using cuda_host::Order;
using cuda_host::Timing;
using test::Buffer;

void run(void (*kernel)(float*), unsigned threads, size_t smem, int64_t count,
         unsigned blocks = 1) {
  test::HostStream stream;
  const Buffer<float> p(count);
  launch(kernel, blocks, threads, smem, stream, p.data());
  for (int64_t i = 0; i < count; ++i)
    if (!(std::fabs(p[i]) < 1e30f)) throw std::runtime_error("wrong result");
}

// ---- kernels with faults ------------------------------------------------------------------------

float* floats(unsigned char* smem) { return reinterpret_cast<float*>(smem); }

__global__ void missing_barrier(float* p) {
  DYN_SMEM(smem);
  floats(smem)[threadIdx.x] = static_cast<float>(threadIdx.x);
  p[threadIdx.x] = floats(smem)[threadIdx.x ^ 33];
}
__global__ void missing_second_barrier(
    float* p) {  // the buffer is filled again while others still read it
  DYN_SMEM(smem);
  float total = 0;
  for (int round = 0; round < 2; ++round) {
    floats(smem)[threadIdx.x] = static_cast<float>(round);
    __syncthreads();
    total += floats(smem)[threadIdx.x ^ 33];
  }
  __syncthreads();
  p[threadIdx.x] = total == 1 ? 0 : NAN;
}
__global__ void missing_copy_wait(float* p) {
  DYN_SMEM(smem);
  cp_async_16(smem + 16 * threadIdx.x, p, true);
  cp_async_commit();
  const float seen = floats(smem)[4 * threadIdx.x];
  cp_async_wait<0>();
  if (!(seen == seen)) p[threadIdx.x] = NAN;
}
__global__ void copy_outstanding(float* p) {
  DYN_SMEM(smem);
  cp_async_16(smem + 16 * threadIdx.x, p, true);
}
__global__ void two_blocks_add(float* p) { p[threadIdx.x] += 1; }
__global__ void past_global(float* p) { p[threadIdx.x + 1] = 1; }
__global__ void before_global(float* p) { p[-1 - static_cast<int>(threadIdx.x)] = 1; }
__global__ void past_dynamic_shared(float* p) {
  DYN_SMEM(smem);
  floats(smem)[threadIdx.x + 1] = 1;
  p[threadIdx.x] = 0;
}
__global__ void past_static_shared(float* p) {
  __shared__ float box[32];
  float* volatile const end = box + threadIdx.x;  // the compiler cannot see what the index is
  end[threadIdx.x == 31] = 1;
  p[threadIdx.x] = box[0];
}
__global__ void unaligned_vector(float* p) {
  *reinterpret_cast<float4*>(p + 1) = make_float4(1, 2, 3, 4);
}
__global__ void unaligned_copy(float* p) {
  DYN_SMEM(smem);
  cp_async_16(smem, p + 1, true);
}
__global__ void shift_too_far(float* p) {
  p[0] = static_cast<float>(1 << (32 + static_cast<int>(threadIdx.x)));
}
__global__ void divergence(float* p) {
  float v = 1;
  if (threadIdx.x < 16) v = __shfl_xor_sync(kAllLanes, v, 1);
  else __syncwarp();
  p[threadIdx.x] = v;
}
__global__ void lane_not_in_mask(float* p) { p[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }
__global__ void barrier_not_reached(float* p) {
  if (threadIdx.x < 31) __syncthreads();
  p[threadIdx.x] = 1;
}
__global__ void mbarrier_never_completes(float*) {
  DYN_SMEM(smem);
  const auto barrier = reinterpret_cast<uint64_t*>(smem);
  if (threadIdx.x == 0) mbarrier_init(barrier, 33);
  __syncthreads();
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
}
__global__ void mbarrier_not_initialised(float*) {
  DYN_SMEM(smem);
  mbarrier_arrive(reinterpret_cast<uint64_t*>(smem));
}
__global__ void wgmma_outstanding(float* p) {
  DYN_SMEM(smem);
  static_cast<void>(p);
  float d[32] = {};
  const uint64_t tile = matrix_descriptor<Swizzle::none>(smem, 1024, 128);
  wgmma_m64n64k16<false, false>(d, tile, tile, true);
  wgmma_commit();
}
__global__ void wgmma_past_shared(float*) {
  DYN_SMEM(smem);
  float d[32] = {};
  const uint64_t tile = matrix_descriptor<Swizzle::none>(smem, 1024, 256);
  wgmma_m64n64k16<false, false>(d, tile, tile, true);
  wgmma_commit();
  wgmma_wait<0>();
}
__global__ void wgmma_not_uniform(float*) {
  DYN_SMEM(smem);
  float d[32] = {};
  const uint64_t tile = matrix_descriptor<Swizzle::none>(smem + threadIdx.x / 32 * 16, 1024, 128);
  wgmma_m64n64k16<false, false>(d, tile, tile, true);
  wgmma_commit();
  wgmma_wait<0>();
}

__global__ void registers_nobody_gave(float*) {
  if (threadIdx.x < 128) give_registers<48>();  // 40 would do: 3 · 168 = 40 + 2 · 232
  else take_registers<232>();
}
__global__ void registers_given_that_were_not_there(float*) { give_registers<176>(); }

template <Fault kFault> void run_hopper() {
  constexpr int K = 512;
  test::HostStream stream;
  test::Random random(1);
  const auto a = random.buffer<__nv_bfloat16>(64 * K), b = random.buffer<__nv_bfloat16>(64 * K);
  const Buffer<float> c(64 * 64);
  launch(hopper_gemm_kernel<false, false, kFault>, 1, 256, kHopperGemmSmem, stream,
         test::tensor_map(a.data(), K, 64, 64, 64, 3), test::tensor_map(b.data(), K, 64, 64, 64, 3),
         c.data(), 64, K);
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 64; ++j) {
      double want = 0;
      for (int k = 0; k < K; ++k) want += a.at(i * K + k) * b.at(j * K + k);
      if (!(std::fabs(c.at(i * 64 + j) - want) < 1e-2)) throw std::runtime_error("wrong result");
    }
}
template <ClusterFault kFault> void run_cluster() {
  constexpr int kRounds = 4;
  test::HostStream stream;
  const Buffer<float> from(kRounds * kTmaRows * kTmaColumns), out(64);
  for (int64_t i = 0; i < from.size(); ++i)
    from[i] = static_cast<float>(i / (kTmaRows * kTmaColumns));
  launch_clusters(
      cluster_kernel<kFault>, 2, 2, 32, kClusterSmem, stream,
      test::tensor_map(from.data(), kTmaColumns, kRounds * kTmaRows, kTmaColumns, kTmaRows, 0),
      kRounds, out.data());
  for (int i = 0; i < 32; ++i)
    if (out[i] + 1 != out[32 + i]) throw std::runtime_error("wrong result");
}
template <int kBoxColumns, int kSwizzle> void run_tma() {
  test::HostStream stream;
  const Buffer<float> p(64 * 64);
  const auto map = test::tensor_map(p.data(), 64, 64, kBoxColumns, kTmaRows, kSwizzle);
  launch(tma_copy_kernel, 1, 32, kTmaSmem, stream, map, map);
}

// ---- the table ----------------------------------------------------------------------------------

struct Mistake {
  const char* name;
  const char* expected;
  void (*run)();
};

const Mistake mistakes_in_asan[] = {
    {"missing barrier", "wrong result", [] { run(missing_barrier, 64, 256, 64); }},
    {"missing second barrier", "wrong result", [] { run(missing_second_barrier, 64, 256, 64); }},
    {"missing wait for cp.async", "wrong result", [] { run(missing_copy_wait, 32, 512, 32); }},
    {"cp.async outstanding at exit", "cp.async outstanding",
     [] { run(copy_outstanding, 32, 512, 32); }},
    {"past the end of global memory", "heap-buffer-overflow", [] { run(past_global, 32, 0, 32); }},
    {"before global memory", "heap-buffer-overflow", [] { run(before_global, 1, 0, 32); }},
    {"past dynamic shared memory", "use-after-poison",
     [] { run(past_dynamic_shared, 32, 128, 32); }},
    {"past static shared memory", "global-buffer-overflow",
     [] { run(past_static_shared, 32, 0, 32); }},
    {"misaligned vector", "misaligned address", [] { run(unaligned_vector, 1, 0, 8); }},
    {"misaligned cp.async", "misaligned address", [] { run(unaligned_copy, 1, 16, 8); }},
    {"shift by 32", "shift exponent", [] { run(shift_too_far, 1, 0, 1); }},
    {"divergence at a collective", "warp diverged", [] { run(divergence, 32, 0, 32); }},
    {"lane outside its mask", "mask does not name it", [] { run(lane_not_in_mask, 32, 0, 32); }},
    {"barrier that one thread skips", "waiting in bar.sync",
     [] { run(barrier_not_reached, 32, 0, 32); }},
    {"mbarrier that never completes", "waiting in mbarrier",
     [] { run(mbarrier_never_completes, 32, 8, 1); }},
    {"mbarrier without init", "was not initialised",
     [] { run(mbarrier_not_initialised, 1, 8, 1); }},
    {"wgmma outstanding at the end", "wgmma outstanding",
     [] { run(wgmma_outstanding, 128, 2048, 1); }},
    {"wgmma past shared memory", "past the block's shared",
     [] { run(wgmma_past_shared, 128, 2048, 1); }},
    {"registers that nobody gave", "wait for ever", [] { run(registers_nobody_gave, 384, 0, 1); }},
    {"registers given that were not there", "cannot give down to 176",
     [] { run(registers_given_that_were_not_there, 384, 0, 1); }},
    {"block that leaves its cluster", "a block that has exited",
     [] { run_cluster<ClusterFault::exits_early>(); }},
    {"block that the cluster does not have", "the cluster does not have",
     [] { run_cluster<ClusterFault::third_block>(); }},
    {"copy for both blocks, one of which still reads", "wrong result",
     [] { run_cluster<ClusterFault::not_awaited>(); }},
    {"wgmma with two descriptors", "differs between", [] { run(wgmma_not_uniform, 128, 4096, 1); }},
    {"stage handed back too early", "wrong result", run_hopper<Fault::stage_back_too_early>},
    {"full barrier not awaited", "wrong result", run_hopper<Fault::full_not_awaited>},
    {"accumulators not awaited", "wrong result", run_hopper<Fault::accumulators_not_awaited>},
    {"descriptor offset", "wrong result", run_hopper<Fault::wrong_offset>},
    {"TMA box wider than the swizzle", "wider than the swizzle span", run_tma<64, 3>},
    {"TMA box beyond shared memory", "past the block's shared", run_tma<32, 0>},
    {"too much shared memory", "227 KiB", [] { run(two_blocks_add, 32, 300000, 32); }},
    {"too many threads", "1 to 1024 threads", [] { run(two_blocks_add, 1056, 0, 2000); }},
};
const Mistake mistakes_in_tsan[] = {
    {"missing barrier", "data race", [] { run(missing_barrier, 64, 256, 64); }},
    {"missing second barrier", "data race", [] { run(missing_second_barrier, 64, 256, 64); }},
    {"two blocks add to the same place", "data race", [] { run(two_blocks_add, 32, 0, 32, 2); }},
    {"full barrier not awaited", "data race", run_hopper<Fault::full_not_awaited>},
    {"copy for both blocks, one of which still reads", "data race",
     [] { run_cluster<ClusterFault::not_awaited>(); }},
};

// What the child says, on stderr or by an exception, and how it ends.
struct Outcome {
  std::string text;
  bool failed;
};
Outcome in_child(const Mistake& mistake) {
  int ends[2];
  if (pipe(ends)) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    try {
      mistake.run();
    } catch (const std::exception& e) {
      std::fprintf(stderr, "%s\n", e.what());
      _exit(1);
    }
    std::exit(0);  // TSan sets its exit status here
  }
  close(ends[1]);
  Outcome outcome;
  char chunk[4096];
  for (ssize_t n; (n = read(ends[0], chunk, sizeof chunk)) > 0;)
    outcome.text.append(chunk, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  outcome.failed = status != 0;
  return outcome;
}

bool noticed(const Mistake& mistake) {
  std::string said;
  for (const Order order : {Order::ascending, Order::descending, Order::random})
    for (const Timing timing : {Timing::late, Timing::early}) {
      cuda_host::config().order = order;
      cuda_host::config().timing = timing;
      const Outcome outcome = in_child(mistake);
      if (outcome.failed && outcome.text.find(mistake.expected) != std::string::npos) return true;
      said += outcome.text.substr(0, 600);
    }
  std::fprintf(stderr, "%s: expected \"%s\", but was told:\n%s\n", mistake.name, mistake.expected,
               said.c_str());
  return false;
}

template <size_t kCount> int missed_of(const Mistake (&mistakes)[kCount]) {
  int missed = 0;
  for (const Mistake& m : mistakes) {
    const bool seen = noticed(m);
    missed += !seen;
    std::printf("%s %s\n", seen ? "ok  " : "FAIL", m.name);
  }
  return missed;
}

}  // namespace

int main() {
  setvbuf(stdout, nullptr, _IONBF, 0);
  const int missed = test::under_tsan ? missed_of(mistakes_in_tsan) : missed_of(mistakes_in_asan);
  Outcome clean =
      in_child({"a right kernel", "", run_hopper<Fault::none>});  // nothing is reported for nothing
  std::printf("%s a kernel without a mistake\n", clean.failed ? "FAIL" : "ok  ");
  if (clean.failed) std::fprintf(stderr, "%s\n", clean.text.c_str());
  return missed || clean.failed;
}
