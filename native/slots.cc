#include "slots.h"
#include <cstdio>
#include <functional>
#include <map>
#include <set>

namespace siglip2 {

namespace {
constexpr double kSlotRange = 1 << 24;
constexpr uint32_t kGenerations = 1u << 28;
}  // namespace

double Slots::insert(Slot slot) {
  uint32_t index;
  if (free_.empty()) {
    if (slots_.size() + 1 >= kSlotRange)
      throw std::length_error("more than 16 million tensors are live");
    index = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  slot.generation = (slots_[index].generation + 1) % kGenerations;
  slots_[index] = slot;
  ++live_;
  return slot.generation * kSlotRange + index + 1;
}

double Slots::allocate(int device, Allocator& allocator, int64_t bytes, DType dtype) {
  void* data = allocator.allocate(static_cast<size_t>(bytes));
  auto* storage = new Storage{allocator, data, static_cast<size_t>(bytes), 1};
  return insert({storage, {data, bytes, dtype}, 0, device});
}

double Slots::view(double handle, int64_t offset, int64_t bytes, DType dtype) {
  Slot& s = at(handle);
  if (offset < 0 || bytes < 0 || offset + bytes > s.view.bytes)
    throw std::out_of_range("a view of bytes " + std::to_string(offset) + "…" +
                            std::to_string(offset + bytes) + " leaves its tensor of " +
                            std::to_string(s.view.bytes) + " bytes");
  ++s.storage->references;
  return insert({s.storage, {static_cast<char*>(s.view.data) + offset, bytes, dtype}, 0, s.device});
}

Slots::Slot& Slots::at(double handle) {
  const auto whole = static_cast<int64_t>(handle);
  const int64_t index = whole % (1 << 24) - 1, generation = whole >> 24;
  if (index < 0 || index >= static_cast<int64_t>(slots_.size()))
    throw BadHandle("this is not a tensor handle");
  Slot& s = slots_[static_cast<size_t>(index)];
  if (!s.storage || s.generation != generation)
    throw BadHandle(
        "a tensor was used after it was disposed; hold() it, or return it from its scope()");
  return s;
}

void Slots::free(double handle) {
  Slot& s = at(handle);
  if (--s.storage->references == 0) {
    s.storage->allocator.free(s.storage->data, s.storage->bytes);
    delete s.storage;
  }
  s.storage = nullptr;
  free_.push_back(static_cast<uint32_t>(static_cast<int64_t>(handle) % (1 << 24) - 1));
  --live_;
}

std::string Slots::largest(int device) const {
  constexpr size_t kMost = 8;
  std::map<std::pair<size_t, DType>, int64_t, std::greater<>> groups;  // (bytes, type) → how many
  std::set<const Storage*> seen;  // several slots may view one storage; the first tells its type
  for (const Slot& s : slots_)
    if (s.storage && s.device == device && seen.insert(s.storage).second)
      ++groups[{s.storage->bytes, s.view.dtype}];
  std::string text;
  size_t rows = 0;
  for (const auto& [kind, count] : groups) {
    const double mebibytes = static_cast<double>(kind.first) / (1 << 20);
    const bool large = mebibytes >= 1024;
    char size[32];
    std::snprintf(size, sizeof size, "%.2f %s ", large ? mebibytes / 1024 : mebibytes,
                  large ? "GiB" : "MiB");
    text += (rows ? ", " : "") + std::to_string(count) + " × " + size + name_of(kind.second);
    if (++rows == kMost && groups.size() > kMost) return text + ", …";
  }
  return text;
}

Slots::~Slots() {
  for (Slot& s : slots_)
    if (s.storage && --s.storage->references == 0) {
      s.storage->allocator.free(s.storage->data, s.storage->bytes);
      delete s.storage;
    }
}

}  // namespace siglip2
