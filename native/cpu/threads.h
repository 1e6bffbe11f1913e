// Work over the cores. Reductions split their input into blocks whose number depends on the size alone, never on the
// number of threads, and add the blocks' results in order: the same run gives the same bits.
#pragma once
#include <omp.h>
#include <algorithm>
#include <cstdint>

namespace siglip2 {

int thread_count();  // SIGLIP2_THREADS, else the cores this process may use

// f(begin, end) for consecutive ranges of at least `grain` items that cover [0, n). f must not throw.
template <class F> void parallel_ranges(int64_t n, int64_t grain, F&& f) {
  const int64_t most = std::max<int64_t>(1, n / std::max<int64_t>(1, grain));
  const int team = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), most));
  if (team <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(team)
  {
    const int64_t t = omp_get_thread_num(), k = omp_get_num_threads();
    const int64_t begin = n * t / k, end = n * (t + 1) / k;
    if (begin < end) f(begin, end);
  }
}

// f(i) for every i, handed out one by one: for items of unequal cost. f must not throw.
template <class F> void parallel_items(int64_t n, F&& f) {
  if (n <= 1) {
    if (n == 1) f(int64_t{0});
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < n; ++i) f(i);
}

}  // namespace siglip2
