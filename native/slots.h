// Handles. A handle is a number in JavaScript: generation · 2^24 + slot index + 1, so that a handle that outlived its
// tensor is recognised. Several slots may view one storage; the storage is freed with the last of them.
#pragma once
#include <string>
#include <vector>
#include "allocator.h"
#include "tensor.h"

namespace siglip2 {

struct BadHandle : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Slots {
 public:
  struct Slot {
    struct Storage* storage = nullptr;  // null: free
    Tensor view;
    uint32_t generation = 0;
    int device = 0;
  };
  double allocate(int device, Allocator& allocator, int64_t bytes, DType dtype);
  double view(double handle, int64_t offset, int64_t bytes, DType dtype);
  void free(double handle);
  Slot& at(double handle);
  int64_t live() const { return live_; }
  // The largest tensors alive on a device, those of equal size in one line: "2 × 1.50 GiB f32, 24 × 96.0 MiB bf16, …".
  std::string largest(int device) const;
  ~Slots();

 private:
  double insert(Slot slot);
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  int64_t live_ = 0;
};

struct Storage {
  Allocator& allocator;
  void* data;
  size_t bytes;
  int references;
};

}  // namespace siglip2
