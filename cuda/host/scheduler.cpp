// Blocks, threads and whose turn it is.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include "block.h"
#include "sanitizer.h"

namespace cuda_host {

constinit thread_local const ThreadView* view = nullptr;
constinit thread_local Cluster* cluster = nullptr;
constinit thread_local Block* block = nullptr;
constinit thread_local Thread* current = nullptr;

bool dry() {
  static const bool on = [] {
    const char* wish = std::getenv("SIGLIP2_CUDA_DRY");
    return wish && std::strcmp(wish, "1") == 0;
  }();
  return on;
}

Config& config() {
  static thread_local Config c;
  return c;
}

namespace {

constexpr size_t kMaxSharedBytes = 232448;  // 227 KiB, the most a block can have on sm_90
constexpr size_t kSharedAlignment = 1024;
thread_local StackPool stacks;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Dynamic shared memory of the blocks of a cluster, with everything behind its exact size poisoned. TSan gets new
// buffers for each cluster and keeps the old ones until the grid ends, so that no block's accesses are ordered by a
// free().
class SharedBuffers {
 public:
  SharedBuffers(size_t bytes, size_t blocks)
      : bytes_(bytes), reserved_(round_up(bytes, kSharedAlignment)), blocks_(blocks) {}
  ~SharedBuffers() {
    for (uint8_t* p : buffers_) {
      sanitizer::unpoison(p, reserved_);
      std::free(p);
    }
  }
  uint8_t* for_block(size_t number) {
    if (!bytes_) return nullptr;
    const size_t slot = sanitizer::tsan ? number : number % blocks_;
    if (slot == buffers_.size()) {
      auto p = static_cast<uint8_t*>(std::aligned_alloc(kSharedAlignment, reserved_));
      if (!p) throw Error("no memory for the shared memory of a block");
      buffers_.push_back(p);
      sanitizer::poison(p + bytes_, reserved_ - bytes_);
    }
    std::memset(buffers_[slot], 0xff, bytes_);  // NaN in every float type
    return buffers_[slot];
  }

 private:
  size_t bytes_, reserved_, blocks_;
  std::vector<uint8_t*> buffers_;
};

// For TSan, clusters that follow each other use different fibers and stacks: a thread of this one must not
// look like the continuation of the thread with the same number in the one before. TSan's fibers
// are dear to make and are kept.
void give_fiber(Fiber& fiber, size_t cluster_number, size_t thread) {
  const size_t slot = sanitizer::tsan ? 2 * thread + (cluster_number & 1) : thread;
  stacks.give(fiber, slot, config().stack_bytes);
  if (!sanitizer::tsan) return;
  static thread_local std::vector<void*> fibers;
  while (fibers.size() <= slot) fibers.push_back(sanitizer::create_fiber());
  fiber.tsan_fiber = fibers[slot];
}
void* tsan_engine() {
  static thread_local void* engine = sanitizer::create_fiber();
  return engine;
}

Thread* ready_in(int begin, int end, bool from_the_end) {
  if (begin >= end) return nullptr;
  const State* states = cluster->states.data();
  const size_t count = static_cast<size_t>(end - begin);
  constexpr int ready = static_cast<int>(State::ready);
  const void* found = from_the_end ? memrchr(states + begin, ready, count)
                                   : std::memchr(states + begin, ready, count);
  return found ? &cluster->threads[static_cast<size_t>(static_cast<const State*>(found) - states)]
               : nullptr;
}

Thread* pick() {
  const sanitizer::Quiet quiet;
  const int n = static_cast<int>(cluster->threads.size());
  const bool descending = config().order == Order::descending;
  int here = current ? static_cast<int>(current - cluster->threads.data()) : descending ? n : -1;
  if (config().order == Order::random)
    here = static_cast<int>(random_bits() % static_cast<uint64_t>(n));
  if (descending) {
    Thread* below = ready_in(0, here, true);
    return below ? below : ready_in(here, n, true);
  }
  Thread* above = ready_in(here + 1, n, false);
  return above ? above : ready_in(0, here + 1, false);
}

void switch_to(Thread* next, bool ends) {  // null: the scheduler
  Fiber& from = current ? current->fiber : cluster->main;
  current = next;
  block = next ? next->block : nullptr;
  view = next ? &next->view : nullptr;
  switch_fiber(from, next ? next->fiber : cluster->main, ends);
}

std::string where_is(const Thread& t) {
  const uint3 b = t.view.block;
  return "block (" + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z) +
         ") thread " + std::to_string(t.index);
}

void run_thread() {
  entered_fiber();
  Thread& me = *current;
  sanitizer::acquire(&cluster->start_token);
  try {
    (*cluster->body)();
    if (!me.copies.empty()) throw Error("the thread exits with cp.async outstanding");
    finish_stores(me);
  } catch (const std::exception& e) {
    fail(where_is(me) + ": " + e.what());
  }
  sanitizer::release(&cluster->end_token);
  *me.state = State::done;
  ++block->done;
  ++cluster->done;
  switch_to(cluster->failed ? nullptr : pick(), true);
  std::abort();  // a thread that is done is never picked
}

std::string deadlock_report() {
  std::string report = "deadlock: no thread can run";
  const auto& threads = cluster->threads;
  const auto& states = cluster->states;
  const auto same = [&](size_t i, size_t j) {
    if (states[i] != states[j] || threads[i].block != threads[j].block) return false;
    if (states[i] == State::done) return true;
    return !std::strcmp(threads[i].waits_in, threads[j].waits_in) &&
           threads[i].where.line() == threads[j].where.line();
  };
  for (size_t i = 0, j; i < threads.size(); i = j) {
    for (j = i + 1; j < threads.size() && same(i, j);) ++j;
    report += "\n  threads " + std::to_string(threads[i].index) + ".." +
              std::to_string(threads[j - 1].index);
    if (cluster->blocks.size() > 1)
      report += " of block " + std::to_string(threads[i].view.block.x);
    if (states[i] == State::done) report += ": exited";
    else
      report += std::string(": waiting in ") + threads[i].waits_in + " at " +
                threads[i].where.file_name() + ":" + std::to_string(threads[i].where.line());
  }
  return report;
}

// Of each thread, with as many as 65,536 for a block allow; setmaxnreg moves them between warpgroups.
int launch_registers(size_t threads) {
  return std::min(256, static_cast<int>(65536 / threads / 8 * 8));
}

// `threads` and `states`: the block's own, of the cluster's.
void prepare_block(Block& b, Thread* threads, State* states, uint3 id, dim3 grid) {
  const size_t n = static_cast<size_t>(b.threads_count);
  const dim3 size = cluster->size;
  b.threads = threads;
  b.warps.assign((n + 31) / 32, {});
  b.warpgroups.assign((n + 127) / 128, {});
  for (Warpgroup& w : b.warpgroups) w.registers = launch_registers(n);
  for (Barrier& barrier : b.barriers) barrier = {};
  b.done = 0;
  for (size_t i = 0; i < n; ++i) {
    Thread& t = threads[i];
    const unsigned u = static_cast<unsigned>(i), x = size.x, y = size.y;
    t.block = &b;
    t.index = static_cast<int>(i);
    t.state = &states[i];
    t.view = {{u % x, u / x % y, u / (x * y)}, id, size, grid, u % 32, u / 32};
    states[i] = State::ready;
  }
}

void check_end(const Block& b) {
  for (const Warpgroup& w : b.warpgroups)
    if (!w.ops.empty()) fail("the block ends with wgmma outstanding");
  int registers = 0;
  for (const Warpgroup& w : b.warpgroups) registers += w.registers;
  const int launched = launch_registers(static_cast<size_t>(b.threads_count)) *
                       static_cast<int>(b.warpgroups.size());
  if (registers > launched)
    fail("setmaxnreg would wait for ever: warpgroups want " + std::to_string(registers) +
         " registers, the launch gave " + std::to_string(launched));
}

void run_cluster(Cluster& c) {
  current = nullptr;
  block = nullptr;
  sanitizer::release(&c.start_token);
  while (c.done < static_cast<int>(c.threads.size()) && !c.failed) {
    if (Thread* t = pick()) switch_to(t, false);
    else if (!land_one_load()) fail(deadlock_report());
  }
  while (!c.failed && land_one_load()) {}
  for (const Block& b : c.blocks) check_end(b);
  if (config().ordered_blocks) sanitizer::acquire(&c.end_token);
}

// Blocks or clusters run one after another, in an order that no kernel may rely on.
std::vector<uint64_t> cluster_order(uint64_t count) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (config().order == Order::descending)
    for (uint64_t i = 0; i < count; ++i) order[i] = count - 1 - i;
  if (config().order == Order::random)
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
  return order;
}

void check_launch(dim3 grid, dim3 size, size_t smem, unsigned blocks) {
  if (smem > kMaxSharedBytes) throw Error("more than 227 KiB of dynamic shared memory");
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > 1024) throw Error("a block needs 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) throw Error("a grid needs at least one block");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Error("the grid exceeds the hardware's limits");
  if (blocks == 0 || blocks > 8 || grid.x % blocks)
    throw Error("a cluster has 1 to 8 blocks, and the grid's width must be a multiple of that");
  if (cluster) throw Error("a kernel cannot launch a grid");
}

}  // namespace

uint64_t random_bits() {  // xorshift64
  uint64_t& x = cluster->random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

bool lands_now() {
  return config().timing == Timing::early ||
         (config().timing == Timing::random && (random_bits() & 1));
}

void park(State state, const char* waits_in, Where where) {
  Thread& me = *current;
  *me.state = state;
  me.waits_in = waits_in;
  me.where = where;
  if (config().timing == Timing::random && random_bits() % 8 == 0) land_one_load();
  Thread* next = cluster->failed ? nullptr : pick();
  if (next != &me) switch_to(next, false);
}

void wake(Thread& thread) { *thread.state = State::ready; }

void fail(const std::string& message) {
  if (cluster->failed) return;
  const sanitizer::Quiet quiet;
  cluster->failed = true;
  cluster->error = message;
}

void yield_thread() { park(State::ready, "yield", Where::current()); }

void trap(const char* message, Where where) {
  throw Error(std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " + message);
}

void run_grid(dim3 grid, dim3 size, size_t smem, unsigned blocks,
              const std::function<void()>& thread) {
  check_launch(grid, size, smem, blocks);
  SharedBuffers buffers(smem, blocks);
  const size_t threads = size_t{size.x} * size.y * size.z;
  Cluster c;
  c.size = size;
  c.blocks.resize(blocks);
  c.threads.resize(threads * blocks);
  c.states.resize(c.threads.size());
  c.body = &thread;
  c.random_state = config().seed * 0x9E3779B97F4A7C15ull | 1;
  c.engine = tsan_engine();
  adopt_os_thread(c.main);
  cluster = &c;
  struct Leave {
    ~Leave() {
      cluster = nullptr;
      block = nullptr;
      current = nullptr;
      view = nullptr;
    }
  } leave;
  size_t number = 0;
  for (const uint64_t i : cluster_order(uint64_t{grid.x} / blocks * grid.y * grid.z)) {
    c.done = 0;
    for (size_t rank = 0; rank < blocks; ++rank) {
      const uint64_t n = i * blocks + rank;
      const uint3 id = {static_cast<unsigned>(n % grid.x),
                        static_cast<unsigned>(n / grid.x % grid.y),
                        static_cast<unsigned>(n / grid.x / grid.y)};
      Block& b = c.blocks[rank];
      b.threads_count = static_cast<int>(threads);
      b.smem = buffers.for_block(number * blocks + rank);
      b.smem_bytes = smem;
      prepare_block(b, &c.threads[rank * threads], &c.states[rank * threads], id, grid);
    }
    for (size_t t = 0; t < c.threads.size(); ++t) {
      give_fiber(c.threads[t].fiber, number, t);
      prepare_fiber(c.threads[t].fiber, run_thread);
    }
    ++number;
    run_cluster(c);
    if (c.failed) break;
  }
  sanitizer::acquire(&c.end_token);
  if (c.failed) {
    stacks.scrub();
    throw Error(c.error);
  }
}

uint32_t cluster_rank() { return static_cast<uint32_t>(block - cluster->blocks.data()); }

void* dynamic_shared() { return block->smem; }

// The shared window starts at 1024, so that a descriptor or address of zero is never valid.
uint32_t shared_address(const void* p) {
  const auto offset = static_cast<const uint8_t*>(p) - block->smem;
  if (!block->smem || offset < 0 || static_cast<size_t>(offset) > block->smem_bytes)
    throw Error("an address that must be dynamic shared memory is not");
  return static_cast<uint32_t>(offset) + kSharedAlignment;
}

void* shared_pointer(uint32_t address, size_t bytes, const char* what) {
  if (address < kSharedAlignment || address - kSharedAlignment + bytes > block->smem_bytes)
    throw Error(std::string(what) + " reaches past the block's shared memory");
  return block->smem + (address - kSharedAlignment);
}

}  // namespace cuda_host
