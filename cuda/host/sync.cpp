// Barriers of a block, collectives of a warp and of a warpgroup.
#include <cstring>
#include "block.h"
#include "sanitizer.h"

namespace cuda_host {
namespace {

void hit_barrier(int id, int threads, bool waits, Where where) {
  if (id < 0 || id > 15) trap("a block has barriers 0 to 15", where);
  if (threads == 0) threads = block->threads_count;
  else if (threads % 32)
    trap("the thread count of a named barrier must be a multiple of 32", where);
  Barrier& b = block->barriers[id];
  if (b.arrived && b.expected != threads)
    trap("barrier used with two different thread counts", where);
  char* token = b.gathering.token();
  b.expected = threads;
  sanitizer::release(token);
  if (++b.arrived == b.expected) {
    for (int i : b.waiting) wake(block->threads[i]);
    b.waiting.clear();
    b.arrived = 0;
    ++b.gathering.uses;
  } else if (waits) {
    {
      const sanitizer::Quiet quiet;
      b.waiting.push_back(current->index);
    }
    park(State::waiting, "bar.sync", where);
  }
  if (waits) sanitizer::acquire(token);
}

struct Lane {
  uint64_t in, out;
  int source;
};

// The collective that other lanes have opened for this lane, or a new one. Two lanes that wait for
// each other in different collectives have diverged; lanes may wait in one while others still have
// another to do among themselves.
int join_collective(Warp& warp, uint32_t mask, unsigned lane, const char* what, Where where) {
  for (uint32_t rest = warp.open; rest; rest &= rest - 1) {
    const int slot = __builtin_ctz(rest);
    const WarpCollective& c = warp.collectives[slot];
    if (c.mask == mask && !std::strcmp(c.what, what) && c.where.line() == where.line()) return slot;
    if (!(c.mask >> lane & 1) || !(c.arrived & mask)) continue;
    const std::string message = std::string("warp diverged: this lane is in ") + what +
                                ", another lane is in " + c.what + " at line " +
                                std::to_string(c.where.line());
    trap(message.c_str(), where);
  }
  const int slot = __builtin_ctz(~warp.open);  // each open one holds a lane, so one of 32 is free
  WarpCollective& c = warp.collectives[slot];
  c.mask = mask;
  c.what = what;
  c.where = where;
  warp.open |= 1u << slot;
  return slot;
}

}  // namespace

void barrier_sync(int id, int threads, Where where) { hit_barrier(id, threads, true, where); }
void barrier_arrive(int id, int threads, Where where) { hit_barrier(id, threads, false, where); }

void warp_collective(uint32_t mask, void* argument, WarpFunction run, bool orders_memory,
                     const char* what, Where where) {
  const unsigned lane = current->view.lane, warp = current->view.warp;
  if (!(mask >> lane & 1))
    trap("a lane calls a *_sync function whose mask does not name it", where);
  const int slot = join_collective(block->warps[warp], mask, lane, what, where);
  WarpCollective& c = block->warps[warp].collectives[slot];
  char* token = c.gathering.token();
  if (orders_memory) sanitizer::release(token);
  c.lanes[lane] = argument;
  c.arrived |= 1u << lane;
  if (c.arrived == mask) {
    run(c.lanes, mask);
    c.arrived = 0;
    block->warps[warp].open &= ~(1u << slot);
    ++c.gathering.uses;
    for (uint32_t rest = mask & ~(1u << lane); rest; rest &= rest - 1)
      wake(block->threads[warp * 32 + static_cast<unsigned>(__builtin_ctz(rest))]);
  } else {
    park(State::waiting, what, where);
  }
  if (orders_memory) sanitizer::acquire(token);
}

void warpgroup_collective(void* argument, WarpgroupFunction run, const char* what, Where where) {
  const int base = current->index / 128 * 128, rank = current->index % 128;
  if (base + 128 > block->threads_count) trap("wgmma needs whole warpgroups of 128 threads", where);
  Warpgroup& g = block->warpgroups[static_cast<size_t>(base / 128)];
  if (!g.arrived) {
    g.what = what;
    g.where = where;
  } else if (std::strcmp(g.what, what) || g.where.line() != where.line()) {
    const std::string message = std::string("warpgroup diverged: this thread is in ") + what +
                                ", another is in " + g.what + " at line " +
                                std::to_string(g.where.line());
    trap(message.c_str(), where);
  }
  g.threads[rank] = argument;
  if (++g.arrived < 128) return park(State::waiting, what, where);
  g.arrived = 0;
  run(g, g.threads);
  for (int i = 0; i < 128; ++i)
    if (i != rank) wake(block->threads[base + i]);
}

void cluster_sync(Where where) {
  Cluster& c = *cluster;
  char* token = c.gathering.token();
  sanitizer::release(token);
  if (++c.arrived == static_cast<int>(c.threads.size())) {
    c.arrived = 0;
    ++c.gathering.uses;
    for (Thread& t : c.threads)
      if (*t.state == State::waiting_cluster) wake(t);
  } else {
    park(State::waiting_cluster, "barrier.cluster", where);
  }
  sanitizer::acquire(token);
}

void set_registers(int registers, bool takes, Where where) {
  struct Change {
    int registers;
    bool takes;
  } change{registers, takes};
  const auto run = [](Warpgroup& group, void** threads) {
    const auto& wanted = *static_cast<const Change*>(threads[0]);
    if (wanted.takes ? wanted.registers < group.registers : wanted.registers > group.registers)
      throw Error("setmaxnreg: a warpgroup of " + std::to_string(group.registers) +
                  " registers a thread cannot " + (wanted.takes ? "take up to " : "give down to ") +
                  std::to_string(wanted.registers));
    group.registers = wanted.registers;
  };
  warpgroup_collective(&change, run, "setmaxnreg", where);
}

void sync_warp(uint32_t mask, Where where) {
  warp_collective(
      mask, nullptr, [](void**, uint32_t) {}, true, "__syncwarp", where);
}

uint64_t shuffle(uint32_t mask, uint64_t bits, int source_lane, Where where) {
  Lane lane{bits, bits, source_lane};
  const auto run = [](void** lanes, uint32_t present) {
    for (uint32_t rest = present; rest; rest &= rest - 1) {
      auto me = static_cast<Lane*>(lanes[__builtin_ctz(rest)]);
      if (me->source < 0) continue;
      if (!(present >> me->source & 1))
        throw Error("a shuffle reads a lane that is not in the mask");
      me->out = static_cast<Lane*>(lanes[me->source])->in;
    }
  };
  warp_collective(mask, &lane, run, false, "shuffle", where);
  return lane.out;
}

uint32_t ballot(uint32_t mask, bool predicate, Where where) {
  Lane lane{predicate, 0, 0};
  const auto run = [](void** lanes, uint32_t present) {
    uint32_t votes = 0;
    for (uint32_t rest = present; rest; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      if (static_cast<Lane*>(lanes[l])->in) votes |= 1u << l;
    }
    for (uint32_t rest = present; rest; rest &= rest - 1)
      static_cast<Lane*>(lanes[__builtin_ctz(rest)])->out = votes;
  };
  warp_collective(mask, &lane, run, false, "ballot", where);
  return static_cast<uint32_t>(lane.out);
}

}  // namespace cuda_host
