// The C library's heap, for what is allocated and freed all the time: decoded images above all.
#pragma once
#include <cstdlib>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace siglip2 {

// Freed blocks of up to 32 MiB stay with the process instead of going back to the system at once. The pages of every
// decoded image would otherwise be new ones, and mapping them takes as long as decoding a photo of 640×427 (2 ms
// beside 2 ms). Whoever sets glibc's own variable is left alone.
inline void keep_freed_blocks() {
#if defined(__GLIBC__)
  if (std::getenv("MALLOC_MMAP_THRESHOLD_")) return;
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
#endif
}

}  // namespace siglip2
