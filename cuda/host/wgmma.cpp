// wgmma: operands from shared-memory descriptors or registers, accumulators written at issue or at
// the wait. Descriptor fields: start >> 4 in bits 0-13, leading offset >> 4 in 16-29, stride offset
// >> 4 in 32-45, base offset in 49-51, swizzle type in 62-63. Layouts are the canonical ones of the
// PTX manual's "matrix descriptor" section.
#include <cstring>
#include "block.h"
#include "sanitizer.h"

namespace cuda_host {
namespace {

// Element (mn, k) of a 16-deep operand.
float operand(uint64_t descriptor, int mn, int k, bool mn_major) {
  const auto field = [&](int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4;
  };
  const uint32_t start = field(0), leading = field(16), stride = field(32);
  if (descriptor >> 49 & 7) throw Error("wgmma: a descriptor with a base offset is not supported");
  const int type = static_cast<int>(descriptor >> 62);
  const int swizzle_bits = type == 0 ? 0 : 4 - type;  // type 1: 128 B, 2: 64 B, 3: 32 B
  const uint32_t span = 1u << swizzle_bits;           // in units of 16 bytes
  const auto row = static_cast<uint32_t>(mn % 8), chunk = static_cast<uint32_t>(mn / 8);
  const auto k_low = static_cast<uint32_t>(k % 8), k_high = static_cast<uint32_t>(k / 8);
  uint32_t offset;
  if (!mn_major)
    offset = row * span * 16 + chunk * stride + k_low * 2 + k_high * (swizzle_bits ? 16 : leading);
  else if (swizzle_bits)
    offset =
        row * 2 + chunk % span * 16 + chunk / span * leading + k_low * span * 16 + k_high * stride;
  else offset = row * 2 + chunk * stride + k_low * 16 + k_high * leading;
  uint32_t address = start + offset;
  if (swizzle_bits) address ^= (address >> 7 & (span - 1)) << 4;
  const void* p = shared_pointer(address, 2, "wgmma");
  sanitizer::reads(p, 2);
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

float register_operand(const Warpgroup::Op& op, int m, int k) {
  const int warp = m / 16, row = m % 16, lane = row % 8 * 4 + k % 8 / 2;
  const uint32_t pair = op.a[warp * 32 + lane][row / 8 + 2 * (k / 8)];
  return __uint_as_float(k & 1 ? pair & 0xffff0000u : pair << 16);
}

void execute(const Warpgroup::Op& op) {
  static thread_local float a[64][16], b[16][256], c[64][256];
  const Wgmma& common = op.common;
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < 16; ++k)
      a[m][k] = op.a[0] ? register_operand(op, m, k)
                        : operand(common.descriptor_a, m, k, common.transpose_a);
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < common.n; ++n)
      b[k][n] = operand(common.descriptor_b, n, k, common.transpose_b);
  const auto each_accumulator = [&](auto visit) {
    for (int t = 0; t < 128; ++t)
      for (int i = 0; i < common.n / 2; ++i)
        visit(op.d[t][i],
              c[t / 32 * 16 + t % 32 / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * (t % 4) + i % 2]);
  };
  each_accumulator([&](float& d, float& element) { element = common.accumulate ? d : 0.0f; });
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < common.n; ++n) c[m][n] += a[m][k] * b[k][n];
  each_accumulator([](float& d, float& element) { d = element; });
}

void gather(Warpgroup& group, void** threads) {
  const auto& first = *static_cast<const Wgmma*>(threads[0]);
  Warpgroup::Op op;
  op.common = first;
  for (int i = 0; i < 128; ++i) {
    const auto& mine = *static_cast<const Wgmma*>(threads[i]);
    op.d[i] = mine.d;
    op.a[i] = mine.a_registers;
    const bool same_a = mine.a_registers || mine.descriptor_a == first.descriptor_a;
    if (!same_a || mine.descriptor_b != first.descriptor_b || mine.accumulate != first.accumulate)
      throw Error("wgmma: a descriptor or scale-d differs between the threads of the warpgroup");
  }
  // wgmma of one warpgroup complete in order, so one may land early only when none is before it.
  if (config().timing == Timing::early || (group.ops.empty() && lands_now())) return execute(op);
  const sanitizer::Quiet quiet;
  group.ops.open.push_back(op);
}

}  // namespace

void wgmma_issue(const Wgmma& op, Where where) {
  warpgroup_collective(const_cast<Wgmma*>(&op), gather, "wgmma", where);
}

void wgmma_commit(Where where) {
  const auto run = [](Warpgroup& group, void**) {
    const sanitizer::Quiet quiet;
    group.ops.commit();
  };
  warpgroup_collective(nullptr, run, "wgmma.commit_group", where);
}

void wgmma_wait(int groups_left, Where where) {
  const auto run = [](Warpgroup& group, void** threads) {
    const int left = *static_cast<int*>(threads[0]);
    while (static_cast<int>(group.ops.committed.size()) > left) {
      for (const Warpgroup::Op& op : group.ops.committed.front()) execute(op);
      const sanitizer::Quiet quiet;
      group.ops.committed.pop_front();
    }
  };
  warpgroup_collective(&groups_left, run, "wgmma.wait_group", where);
}

}  // namespace cuda_host
