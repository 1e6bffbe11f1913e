#include "allocator.h"

namespace siglip2 {

size_t Allocator::block_bytes(size_t bytes) const {
  const size_t rounded = (bytes + 63) / 64 * 64;
  return debug_ ? rounded + 2 * kGuard : rounded;
}

void* Allocator::allocate(size_t bytes) {
  const size_t block = block_bytes(bytes);
  if (live_ + block > limit)
    throw OutOfMemory("the memory limit of " + std::to_string(limit) + " bytes leaves " +
                      std::to_string(limit > live_ ? limit - live_ : 0) + ", but " +
                      std::to_string(bytes) +
                      " are needed; use a smaller batch, checkpoint: true, or raise the limit");
  void* p = nullptr;
  FreeLists& lists = private_ ? *private_ : cached_;
  auto it = lists.find(block);
  if (it != lists.end() && !it->second.empty()) {
    p = it->second.back();
    it->second.pop_back();
  } else {
    if (reserved_ + block > limit && !private_) flush();
    p = device_.allocate(block);
    if (!p && !private_) {  // flush() waits for the device, which a recording does not allow
      flush();
      p = device_.allocate(block);
    }
    if (!p)
      throw OutOfMemory(device_.name() + " cannot give " + std::to_string(bytes) +
                        " bytes beside the " + std::to_string(live_) +
                        " in use; use a smaller batch or checkpoint: true");
    reserved_ += block;
    if (private_) owners_[p] = last_set_;
  }
  live_ += block;
  if (live_ > peak_) peak_ = live_;
  if (!debug_) return p;
  auto* b = static_cast<uint8_t*>(p);
  device_.fill(b, kGuardByte, block);
  device_.fill(b + kGuard, kPoisonByte, bytes);
  return b + kGuard;
}

void Allocator::free(void* p, size_t bytes) {
  const size_t block = block_bytes(bytes);
  auto* b = static_cast<uint8_t*>(p);
  if (debug_) {
    b -= kGuard;
    if (!private_)
      check_guards(b, bytes);  // reads from the device, which a recording does not allow
  }
  const auto owner = owners_.empty() ? owners_.end() : owners_.find(b);
  (owner == owners_.end() ? cached_ : sets_[owner->second])[block].push_back(b);
  live_ -= block;
}

void Allocator::check_guards(uint8_t* block, size_t bytes) {
  // From the last byte of the tensor on: the padding up to 64 bytes is guarded too.
  const size_t tail = block_bytes(bytes) - kGuard - bytes;
  auto seen = std::make_shared<std::vector<uint8_t>>(kGuard + tail);
  device_.download(seen->data(), block, kGuard);
  device_.download(seen->data() + kGuard, block + kGuard + bytes, tail);
  device_.notify(
      [seen, violations = violations_](const std::string& error) {
        if (!error.empty()) return;  // then nothing was read
        for (uint8_t byte : *seen)
          if (byte != kGuardByte) {
            std::lock_guard lock(violations->mutex);
            ++violations->count;
            return;
          }
      },
      true);
}

void Allocator::flush() {
  if (cached_.empty()) return;
  device_.synchronize();
  for (auto& [block, list] : cached_)
    for (void* p : list) {
      device_.release(p, block);
      reserved_ -= block;
    }
  cached_.clear();
}

int64_t Allocator::begin_private() {
  flush();  // the set starts empty: make room for it
  private_ = &sets_[++last_set_];
  return last_set_;
}

void Allocator::give_up(int64_t set) {
  for (auto& [block, list] : sets_[set])
    cached_[block].insert(cached_[block].end(), list.begin(), list.end());
  sets_.erase(set);
  std::erase_if(owners_, [&](const auto& entry) { return entry.second == set; });
}

void Allocator::set_debug(bool on) {
  if (on == debug_) return;
  if (live_) throw std::logic_error("debug mode can change only while no tensor is live");
  if (!sets_.empty())
    throw std::logic_error("debug mode can change only while there is no recorded step");
  flush();
  debug_ = on;
}

int64_t Allocator::guard_violations() {
  std::lock_guard lock(violations_->mutex);
  return violations_->count;
}

}  // namespace siglip2
