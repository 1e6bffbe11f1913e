// Work over the cores. Work is cut into parts whose number depends on its size and on thread_count() alone, never on how
// many threads are at work, and results of parts are added in order: the same run gives the same bits, however busy the
// machine is.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace siglip2 {

int thread_count();  // SIGLIP2_THREADS, else the cores this process may use: what work is cut for
int worker_index();  // of the calling thread in its team, below thread_count(); for workspace of its own

// The threads that help the one that made the team. A part belongs to whoever takes it first, so a thread that the system
// does not run holds up nobody unless it has taken one; where that costs much of the time, fewer threads take part until
// the machine is calmer. Threads without work spin for a moment and then sleep.
class Team {
 public:
  // `prepare` runs first on each helping thread.
  explicit Team(
      int threads, const std::function<void()>& prepare = [] {});
  ~Team();
  int active() const;      // threads at work now, the maker's included
  void hold(int threads);  // so many from now on; 0: as many as the machine lets run

  struct State;

 private:
  std::unique_ptr<State> state_;
};

using Part = void (*)(void* context, int64_t index);
// f(context, i) for every i in [0, n), by the calling thread and its team; without one, or inside a part, by the caller.
void run_parts(int64_t n, Part f, void* context);

// f(i) for every i, handed out one by one: for items of unequal cost. f must not throw.
template <class F> void parallel_items(int64_t n, F&& f) {
  run_parts(
      n, [](void* context, int64_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// f(begin, end) for consecutive ranges of at least `grain` items that cover [0, n). f must not throw.
template <class F> void parallel_ranges(int64_t n, int64_t grain, F&& f) {
  const int64_t parts = std::min<int64_t>(thread_count(), n / std::max<int64_t>(1, grain));
  if (parts <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  parallel_items(parts, [&](int64_t i) { f(n * i / parts, n * (i + 1) / parts); });
}

}  // namespace siglip2
