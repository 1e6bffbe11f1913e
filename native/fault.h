// Bad values that only a kernel can see, such as a token id outside the table. A kernel on the CPU throws; one on a GPU
// cannot, so it works on as if the row were zero and notes the fault in a word that the host reads. Both say it in the
// words of text_of().
#pragma once
#include <cstdint>
#include <string>

namespace siglip2 {

enum class FaultKind { token_id, class_target };
constexpr int kFaultKinds = 2;

struct Fault {
  // Row in the high half, bad value in the low half; the lowest row wins, so the report does not depend on timing.
  unsigned long long first = kNone;
  unsigned long long limit = 0;  // values must be below it
  static constexpr unsigned long long kNone = ~0ull;
};

inline std::string text_of(FaultKind kind, int64_t row, int64_t value, int64_t limit) {
  const std::string v = std::to_string(value), r = std::to_string(row), n = std::to_string(limit);
  if (kind == FaultKind::token_id)
    return "token id " + v + " at position " + r + " is outside the table of " + n +
           " rows; check the tokenizer's vocabulary";
  return "target " + v + " of row " + r + " is neither a class in [0, " + n +
         ") nor -1, which ignores the row";
}

// The faults a device collects between two notifications.
struct Faults {
  Fault of[kFaultKinds];

  // The text of the first one, or nothing; clears them.
  std::string take() {
    std::string text;
    for (int k = 0; k < kFaultKinds; ++k) {
      const unsigned long long first = of[k].first;
      if (first == Fault::kNone) continue;
      if (text.empty())
        text =
            text_of(static_cast<FaultKind>(k), static_cast<int64_t>(first >> 32),
                    static_cast<int32_t>(first & 0xffffffffu), static_cast<int64_t>(of[k].limit));
      of[k].first = Fault::kNone;
    }
    return text;
  }
};

}  // namespace siglip2
