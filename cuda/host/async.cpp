// mbarrier, cp.async and TMA. Each copy takes effect at issue or as late as its wait allows
// (Config::timing).
#include <cstring>
#include "block.h"
#include "sanitizer.h"

namespace cuda_host {
namespace {

// An mbarrier lives in its eight bytes of shared memory, so that a stray write breaks it visibly:
// phase: 1 | expected arrivals: 20 | pending arrivals: 20 | signed pending bytes: 21 | zero: 2.
struct Mbarrier {
  uint32_t phase, expected, pending;
  int bytes;
};

Mbarrier read_mbarrier(const uint64_t* barrier) {
  const uint64_t v = *barrier;
  if (v >> 62) throw Error("an mbarrier is used that was not initialised, or was written over");
  const auto signed_bytes = static_cast<int>(static_cast<int64_t>(v << 2) >> 43);
  return {static_cast<uint32_t>(v & 1), static_cast<uint32_t>(v >> 1 & 0xfffff),
          static_cast<uint32_t>(v >> 21 & 0xfffff), signed_bytes};
}

void write_mbarrier(uint64_t* barrier, const Mbarrier& m) {
  const uint64_t bytes = static_cast<uint32_t>(m.bytes) & 0x1fffffu;
  *barrier = m.phase | uint64_t{m.expected} << 1 | uint64_t{m.pending} << 21 | bytes << 41;
}

// One token for each parity, as for the other barriers.
void* mbarrier_token(uint64_t* barrier, uint32_t parity) {
  return reinterpret_cast<char*>(barrier) + (parity & 1);
}

void check_mbarrier(const uint64_t* barrier) {
  if (reinterpret_cast<uintptr_t>(barrier) & 7) throw Error("an mbarrier is not 8-byte aligned");
  shared_pointer(shared_address(barrier), 8, "an mbarrier");
}

void update_mbarrier(uint64_t* barrier, Mbarrier m) {
  sanitizer::release(mbarrier_token(barrier, m.phase));
  const bool complete = m.pending == 0 && m.bytes == 0;
  if (complete) {
    m.phase ^= 1;
    m.pending = m.expected;
  }
  write_mbarrier(barrier, m);
  if (!complete) return;
  for (Thread* t = block->threads; t < block->threads + block->threads_count; ++t)
    if (*t->state == State::waiting_mbarrier && t->mbarrier == barrier && t->parity != m.phase)
      wake(*t);
}

// Shared memory of a block is gone when its threads are.
void must_run(const Block& b, const char* what) {
  if (b.done == b.threads_count) throw Error(std::string(what) + " a block that has exited");
}

void copy_now(const Copy& c) {
  const size_t bytes = static_cast<size_t>(c.bytes), source = static_cast<size_t>(c.source_bytes);
  sanitizer::writes(c.dst, bytes);
  std::memset(c.dst, 0, bytes);
  if (!source) return;
  sanitizer::reads(c.src, source);
  std::memcpy(c.dst, c.src, source);
}

// XORs the 16-byte column with the 128-byte row, within the swizzle span; the hardware does so on
// absolute addresses.
uint32_t swizzled(uint32_t address, int mode) {
  return mode ? address ^ ((address >> 7 & ((1u << mode) - 1)) << 4) : address;
}

size_t copy_element(const TensorCopy& t, const int (&at)[5], size_t packed_offset, bool load) {
  const TensorMap& m = t.map;
  uint64_t offset = 0;
  bool inside = true;
  for (int d = 0; d < m.rank; ++d) {
    const int64_t x = int64_t{t.coordinates[d]} + at[d];
    if (x < 0 || x >= static_cast<int64_t>(m.dim[d])) inside = false;
    else offset += static_cast<uint64_t>(x) * m.stride[d];
  }
  const uint32_t address = swizzled(t.at + static_cast<uint32_t>(packed_offset), m.swizzle);
  void* shared = shared_pointer(address, m.element_bytes, "TMA");
  auto global = const_cast<uint8_t*>(m.base) + offset;
  void* to = load ? shared : global;
  const void* from = load ? global : shared;
  if (inside) sanitizer::reads(from, m.element_bytes);
  if (inside || load) sanitizer::writes(to, m.element_bytes);
  if (inside) std::memcpy(to, from, m.element_bytes);
  else if (load) std::memset(to, 0, m.element_bytes);
  return m.element_bytes;
}

size_t copy_box(const TensorCopy& t, bool load) {
  const TensorMap& m = t.map;
  int extent[5];
  for (int d = 0; d < 5; ++d) extent[d] = d < m.rank ? static_cast<int>(m.box[d]) : 1;
  size_t bytes = 0;
  for (int e = 0; e < extent[4]; ++e)
    for (int d = 0; d < extent[3]; ++d)
      for (int c = 0; c < extent[2]; ++c)
        for (int b = 0; b < extent[1]; ++b)
          for (int a = 0; a < extent[0]; ++a)
            bytes += copy_element(t, {a, b, c, d, e}, bytes, load);
  return bytes;
}

TensorCopy make_copy(const TensorMap* map, const int* coordinates, const void* shared) {
  if (shared_address(shared) & 127) throw Error("TMA: the shared address is not 128-byte aligned");
  if (map->swizzle && map->box[0] * map->element_bytes > (16u << map->swizzle))
    throw Error("TMA: the inner box is wider than the swizzle span");
  if (reinterpret_cast<uintptr_t>(map->base) & 15)
    throw Error("TMA: the global address is not 16-byte aligned");
  for (int d = 0; d < map->rank; ++d) {
    if (map->box[d] == 0 || map->box[d] > 256) throw Error("TMA: a box dimension is not 1 to 256");
    if (d && map->stride[d] % 16) throw Error("TMA: a global stride is not a multiple of 16 bytes");
  }
  // The map by value: the kernel's parameters may be gone when the copy lands.
  TensorCopy t{*map, {}, block, block, shared_address(shared), 0};
  for (int d = 0; d < map->rank; ++d) t.coordinates[d] = coordinates[d];
  return t;
}

}  // namespace

void mbarrier_init(uint64_t* barrier, uint32_t count) {
  check_mbarrier(barrier);
  write_mbarrier(barrier, {0, count, count, 0});
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expect_bytes) {
  check_mbarrier(barrier);
  Mbarrier m = read_mbarrier(barrier);
  if (m.pending == 0 || m.pending > m.expected)
    throw Error("mbarrier: more arrivals than it was set up for");
  m.bytes += static_cast<int>(expect_bytes);
  --m.pending;
  update_mbarrier(barrier, m);
}

void mbarrier_arrive_in(uint64_t* barrier, uint32_t rank) {
  check_mbarrier(barrier);
  if (rank >= cluster->blocks.size())
    throw Error("mbarrier: the cluster has no block of that rank");
  Block& other = cluster->blocks[rank];
  const uint32_t address = shared_address(barrier);
  must_run(other, "an arrival is at an mbarrier of");
  const Inside inside(other);
  mbarrier_arrive(static_cast<uint64_t*>(shared_pointer(address, 8, "an mbarrier")), 0);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity, Where where) {
  check_mbarrier(barrier);
  while (read_mbarrier(barrier).phase == parity) {
    current->mbarrier = barrier;
    current->parity = parity;
    park(State::waiting_mbarrier, "mbarrier wait", where);
  }
  sanitizer::acquire(mbarrier_token(barrier, parity));
}

void cp_async(void* dst, const void* src, int bytes, int source_bytes) {
  shared_pointer(shared_address(dst), static_cast<size_t>(bytes), "cp.async");
  const auto alignment = static_cast<uintptr_t>(bytes - 1);
  const uintptr_t source = source_bytes ? reinterpret_cast<uintptr_t>(src) : 0;
  if ((reinterpret_cast<uintptr_t>(dst) | source) & alignment)
    throw Error("cp.async: misaligned address");
  const Copy c{dst, src, bytes, source_bytes};
  if (lands_now()) return copy_now(c);
  const sanitizer::Quiet quiet;
  current->copies.open.push_back(c);
}

void cp_async_commit() {
  const sanitizer::Quiet quiet;
  current->copies.commit();
}

void cp_async_wait(int groups_left) {
  auto& groups = current->copies.committed;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const Copy& c : groups.front()) copy_now(c);
    const sanitizer::Quiet quiet;
    groups.pop_front();
  }
}

bool land_one_load() {
  auto& loads = cluster->loads;
  if (loads.empty()) return false;
  const size_t i = config().order == Order::ascending ? 0 : random_bits() % loads.size();
  TensorCopy load;
  {
    const sanitizer::Quiet quiet;
    load = loads[i];
    loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(i));
  }
  void* me = sanitizer::current_fiber();
  sanitizer::become(cluster->engine);
  sanitizer::acquire(&cluster->load_token);
  try {
    if (load.to != load.from) must_run(*load.to, "a multicast copy lands in");
    const Inside inside(*load.to);
    const size_t bytes = copy_box(load, true);
    const auto barrier = static_cast<uint64_t*>(shared_pointer(load.barrier, 8, "an mbarrier"));
    Mbarrier m = read_mbarrier(barrier);
    m.bytes -= static_cast<int>(bytes);
    update_mbarrier(barrier, m);
  } catch (const std::exception& e) {
    fail(e.what());
  }
  sanitizer::become(me);
  return true;
}

void tma_load(void* dst, const TensorMap* map, const int* coordinates, uint64_t* barrier,
              uint32_t blocks) {
  check_mbarrier(barrier);
  if (blocks >> cluster->blocks.size())
    throw Error("TMA: a copy goes to a block that the cluster does not have");
  sanitizer::release(&cluster->load_token);
  TensorCopy load = make_copy(map, coordinates, dst);
  load.barrier = shared_address(barrier);
  const auto issue = [&](Block& to) {
    load.to = &to;
    const sanitizer::Quiet quiet;
    cluster->loads.push_back(load);
  };
  if (!blocks) issue(*block);
  for (uint32_t rest = blocks; rest; rest &= rest - 1)
    issue(cluster->blocks[static_cast<size_t>(__builtin_ctz(rest))]);
  if (config().timing == Timing::early)
    while (land_one_load()) {}
}

void tma_store(const TensorMap* map, const int* coordinates, const void* src) {
  const TensorCopy store = make_copy(map, coordinates, src);
  if (lands_now()) {
    copy_box(store, false);
    return;
  }
  const sanitizer::Quiet quiet;
  current->stores.open.push_back(store);
}

void bulk_commit() {
  const sanitizer::Quiet quiet;
  current->stores.commit();
}

void bulk_wait(int groups_left) {
  auto& groups = current->stores.committed;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const TensorCopy& store : groups.front()) copy_box(store, false);
    const sanitizer::Quiet quiet;
    groups.pop_front();
  }
}

void finish_stores(
    Thread& thread) {  // a thread may exit with stores under way; they still complete
  if (!thread.stores.open.empty()) bulk_commit();
  bulk_wait(0);
}

}  // namespace cuda_host
