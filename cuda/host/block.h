// State of the blocks that are running, shared by the runtime's own files.
#pragma once
#include <deque>
#include <string>
#include <vector>
#include "fiber.h"
#include "runtime.h"

namespace cuda_host {

enum class State : uint8_t { ready = 1, waiting, waiting_mbarrier, waiting_cluster, done };

struct Copy {  // cp.async
  void* dst;
  const void* src;
  int bytes, source_bytes;
};
struct Block;
struct TensorCopy {  // TMA, either direction
  TensorMap map;
  int coordinates[5];
  Block *from, *to;      // blocks whose thread issued it, and whose shared memory it is about
  uint32_t at, barrier;  // addresses there
};

// Asynchronous operations of one owner: those since the last commit, then the committed groups,
// oldest first.
template <class Op> struct Groups {
  std::vector<Op> open;
  std::deque<std::vector<Op>> committed;
  bool empty() const { return open.empty() && committed.empty(); }
  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  void clear() {
    open.clear();
    committed.clear();
  }
};

struct Thread {
  Fiber fiber;
  ThreadView view;
  Block* block = nullptr;
  int index = 0;  // in the block
  State* state = nullptr;
  const char* waits_in = "";  // what it is parked in, for the deadlock report
  Where where;
  uint64_t* mbarrier = nullptr;
  uint32_t parity = 0;
  Groups<Copy> copies;
  Groups<TensorCopy> stores;
};

// A collective or barrier gathers arrivals. Threads of one use acquire the token of that use: with
// a single token, a fast thread's next arrival would hide its race with a slow thread that has not
// left this one.
struct Gathering {
  uint32_t uses = 0;
  char tokens[2] = {};
  char* token() { return &tokens[uses & 1]; }
};
struct WarpCollective {
  uint32_t mask = 0, arrived = 0;
  void* lanes[32];
  const char* what = "";
  Where where;
  Gathering gathering;
};
struct Warp {
  WarpCollective collectives[32];  // lanes with disjoint masks may wait in several at once
  uint32_t open = 0;               // bit i: collectives[i] has arrivals
};
struct Warpgroup {
  int arrived = 0;
  void* threads[128];
  const char* what = "";
  Where where;
  struct Op {
    Wgmma common;
    float* d[128];
    const uint32_t* a[128];
  };
  Groups<Op> ops;
  int registers = 0;  // of each thread
};
struct Barrier {
  int arrived = 0, expected = 0;
  std::vector<int> waiting;
  Gathering gathering;
};

struct Block {
  Thread* threads = nullptr;
  int threads_count = 0, done = 0;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  Barrier barriers[16];
  uint8_t* smem = nullptr;
  size_t smem_bytes = 0;
};

// The blocks that run at the same time: a cluster, or a single block of a grid that has none.
struct Cluster {
  dim3 size;  // of a block
  std::vector<Block> blocks;
  std::vector<Thread> threads;  // of all blocks
  std::vector<State> states;
  int done = 0;
  Gathering gathering;  // of barrier.cluster
  int arrived = 0;
  std::deque<TensorCopy>
      loads;            // TMA loads that have not landed yet; hardware keeps no order between them
  char load_token = 0;  // orders an issued load after its issuer
  void* engine = nullptr;  // TSan's identity of the copy engine
  Fiber main;
  const std::function<void()>* body = nullptr;
  bool failed = false;
  std::string error;
  uint64_t random_state = 1;
  char start_token = 0, end_token = 0;
};

extern constinit thread_local Cluster* cluster;
extern constinit thread_local Block*
    block;  // that of the running thread; shared addresses are relative to it
extern constinit thread_local Thread* current;  // null while the scheduler itself runs

struct Inside {  // while the runtime acts on the shared memory of another block
  explicit Inside(Block& b) : before(block) { block = &b; }
  ~Inside() { block = before; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  Block* before;
};

uint64_t random_bits();
bool lands_now();                                           // by the configured timing
void park(State state, const char* waits_in, Where where);  // returns when the thread runs again
void wake(Thread& thread);
void fail(const std::string& message);
bool land_one_load();  // false: none was under way
void finish_stores(Thread& thread);

using WarpFunction = void (*)(void** lanes, uint32_t mask);
using WarpgroupFunction = void (*)(Warpgroup& group, void** threads);
// The last thread to arrive runs the function once for all.
void warp_collective(uint32_t mask, void* argument, WarpFunction run, bool orders_memory,
                     const char* what, Where where);
void warpgroup_collective(void* argument, WarpgroupFunction run, const char* what, Where where);

}  // namespace cuda_host
