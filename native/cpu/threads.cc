#include "threads.h"
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>
#if defined(__linux__)
#include <pthread.h>
#include <time.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace siglip2 {

int thread_count() {
  static const int count = [] {
    const char* wish = std::getenv("SIGLIP2_THREADS");
    const int n = wish ? std::atoi(wish) : 0;
    return n > 0 ? n : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }();
  return count;
}

namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits up to `seconds` without giving the core away; says whether it was worth it.
template <class F> bool spin_until(double seconds, F&& ready) {
  const auto begin = Clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (since(begin) < seconds);
  return ready();
}

// Between the kernels of a small model lie tens of microseconds, and waking a thread takes as long.
constexpr double kSpin = 200e-6;
// Looked at once a window: where more was lost to threads that took a part and were not run than fewer threads would cost,
// there are fewer; and after a rest more again, after twice the rest each time that this is soon regretted.
constexpr double kWindow = 10e-3, kLeastRest = 50e-3, kMostRest = 2.0;

constexpr uint64_t kClosed = 0xffffffff;  // as index: nothing to be had

thread_local Team::State* team = nullptr;
thread_local int worker = 0;
thread_local bool in_part = false;

}  // namespace

struct Team::State {
  // Generation of the job above, index of its next part below. The job's fields may only change while it is closed; who
  // reads them late fails to take a part, for the generation is another by then.
  alignas(64) std::atomic<uint64_t> ticket{kClosed};
  std::atomic<Part> function{nullptr};
  std::atomic<void*> context{nullptr};
  std::atomic<int64_t> parts{0};
  alignas(64) std::atomic<int> done{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<int> wake{0};
  std::atomic<int> active{1};
  std::atomic<bool> stop{false};
  struct alignas(64) Slot {
    std::atomic<bool> busy{false};  // runs a part
  };
  std::vector<Slot> slots;
  std::vector<std::thread> helpers;

  // Of the maker's thread alone.
  int threads = 1;
  bool held = false;
  uint64_t generation = 0;
  Clock::time_point window = Clock::now(), resized = Clock::now();
  double lost = 0, rest = kLeastRest;

  // Takes parts of the job in `t`, and of any that follows it, until there are none.
  void work(uint64_t t, std::atomic<bool>& busy) {
    for (;;) {
      const Part f = function.load(std::memory_order_acquire);
      void* const c = context.load(std::memory_order_acquire);
      const int64_t n = parts.load(std::memory_order_acquire);
      const int64_t i = static_cast<int64_t>(t & kClosed);
      if (i >= n) return;
      if (!ticket.compare_exchange_weak(t, t + 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire))
        continue;
      in_part = true;
      busy.store(true, std::memory_order_relaxed);
      f(c, i);
      busy.store(false, std::memory_order_relaxed);
      in_part = false;
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == n) done.notify_one();
      ++t;
    }
  }

  void help(int index) {
    team = this;
    worker = index;
    uint64_t seen = kClosed;
    const auto news = [&] {
      const uint64_t t = ticket.load(std::memory_order_seq_cst);
      return stop.load(std::memory_order_relaxed) ||
             (takes_part(index) && (t & kClosed) != kClosed && t >> 32 != seen);
    };
    for (;;) {
      if (!takes_part(index) || !spin_until(kSpin, news)) {
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        for (int w = wake.load(std::memory_order_seq_cst); !news();
             w = wake.load(std::memory_order_seq_cst))
          wake.wait(w);
        sleepers.fetch_sub(1, std::memory_order_relaxed);
      }
      if (stop.load(std::memory_order_relaxed)) return;
      const uint64_t t = ticket.load(std::memory_order_acquire);
      if ((t & kClosed) == kClosed) continue;
      seen = t >> 32;
      work(t, slots[static_cast<size_t>(index)].busy);
    }
  }
  bool takes_part(int index) const { return index < active.load(std::memory_order_relaxed); }

  void rouse() {
    wake.fetch_add(1, std::memory_order_seq_cst);
    wake.notify_all();
  }

  void run(int64_t n, Part f, void* c) {
    ticket.store(++generation << 32 | kClosed, std::memory_order_seq_cst);
    function.store(f, std::memory_order_release);
    context.store(c, std::memory_order_release);
    parts.store(n, std::memory_order_release);
    done.store(0, std::memory_order_release);
    ticket.store(generation << 32, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > threads - active.load(std::memory_order_relaxed))
      rouse();
    work(generation << 32, slots[0].busy);
    const auto ready = [&] { return done.load(std::memory_order_acquire) == n; };
    if (!spin_until(kSpin, ready)) lost += wait(ready);
    if (!held) adapt(Clock::now());
  }

  // Sleeps until the job is done; the seconds in which a thread that holds it up was not run.
  template <class F> double wait(F&& ready) {
    const auto begin = Clock::now();
    std::vector<std::pair<size_t, double>> late;
    for (size_t i = 1; i < slots.size(); ++i)
      if (slots[i].busy.load(std::memory_order_relaxed)) late.emplace_back(i, cpu_seconds(i));
    while (!ready()) {
      const int d = done.load(std::memory_order_acquire);
      if (!ready()) done.wait(d);
    }
    const double waited = since(begin);
    double idle = 0;
    for (auto [i, cpu] : late) idle = std::max(idle, waited - (cpu_seconds(i) - cpu));
    return idle;
  }

  // Processor time of a helper.
  double cpu_seconds(size_t i) {
#if defined(__linux__)
    clockid_t clock;
    timespec t;
    if (pthread_getcpuclockid(helpers[i - 1].native_handle(), &clock) == 0 &&
        clock_gettime(clock, &t) == 0)
      return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#endif
    static_cast<void>(i);
    return 0;
  }

  void adapt(Clock::time_point now) {
    const double elapsed = std::chrono::duration<double>(now - window).count();
    if (elapsed < kWindow) return;
    const int n = active.load(std::memory_order_relaxed);
    if (lost > 0.75 * step_of(n) / n * elapsed) {
      const bool regretted = std::chrono::duration<double>(now - resized).count() < rest;
      rest = regretted ? std::min(kMostRest, 2 * rest) : kLeastRest;
      resize(n - step_of(n), now);
    } else {
      grow(now);
    }
    window = now;
    lost = 0;
  }
  void grow(Clock::time_point now) {
    const int n = active.load(std::memory_order_relaxed);
    if (n < threads && std::chrono::duration<double>(now - resized).count() > rest)
      resize(n + step_of(n), now);
  }
  void resize(int n, Clock::time_point now) {
    active.store(std::min(n, threads), std::memory_order_seq_cst);
    window = resized = now;
    lost = 0;
  }
  static int step_of(int n) { return std::max(1, n / 4); }
};

Team::Team(int threads, const std::function<void()>& prepare) : state_(std::make_unique<State>()) {
  state_->threads = threads;
  state_->slots = std::vector<State::Slot>(static_cast<size_t>(threads));
  state_->active = threads;
  for (int i = 1; i < threads; ++i)
    state_->helpers.emplace_back([s = state_.get(), i, prepare] {
      prepare();
      s->help(i);
    });
  team = state_.get();
}

Team::~Team() {
  state_->stop = true;
  state_->rouse();
  for (std::thread& t : state_->helpers) t.join();
  team = nullptr;
}

int Team::active() const { return state_->active; }

void Team::hold(int threads) {
  state_->held = threads > 0;
  state_->active = threads > 0 ? std::min(threads, state_->threads) : state_->threads;
}

int worker_index() { return worker; }

void run_parts(int64_t n, Part f, void* context) {
  if (team && !in_part && n > 1) {
    if (team->active.load(std::memory_order_relaxed) > 1) return team->run(n, f, context);
    if (!team->held && team->threads > 1) team->grow(Clock::now());
  }
  const bool nested = std::exchange(in_part, true);
  for (int64_t i = 0; i < n; ++i) f(context, i);
  in_part = nested;
}

}  // namespace siglip2
