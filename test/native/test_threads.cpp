// The team of threads: every part runs exactly once, whoever is awake, and what it wrote is there afterwards.
#include "../../native/cpu/threads.h"
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>
#include "check.h"

using siglip2::Team;

namespace {

constexpr int kThreads = 4;

// Plain memory: a part that ran twice, or is not visible to the caller, is a data race to TSan.
void sums(int rounds, int64_t n) {
  std::vector<int64_t> out(static_cast<size_t>(n));
  for (int r = 1; r <= rounds; ++r) {
    siglip2::parallel_items(n, [&](int64_t i) { out[static_cast<size_t>(i)] += i + r; });
    const int64_t sum = std::accumulate(out.begin(), out.end(), int64_t{0});
    CHECK(sum == r * (n * (n - 1) / 2) + n * (r * (r + 1) / 2));
  }
}

}  // namespace

TEST(without_a_team) { sums(3, 100); }

TEST(short_jobs) {
  Team team(kThreads);
  for (int64_t n : {0, 1, 2, 3, 4, 7, 100}) sums(n < 100 ? 10000 : 1000, n);
}

TEST(sleepers_wake) {
  Team team(kThreads);
  for (int r = 0; r < 100; ++r) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    sums(3, 64);
  }
}

TEST(held_to_any_number) {
  Team team(kThreads);
  for (int hold : {1, 2, 3, 9, 0}) {
    team.hold(hold);
    CHECK(team.active() == (hold == 0 || hold > kThreads ? kThreads : hold));
    sums(100, 32);
  }
}

TEST(workers_have_numbers_of_their_own) {
  Team team(kThreads);
  std::vector<std::atomic<int>> inside(kThreads);
  std::atomic<bool> clash{false};
  siglip2::parallel_items(2000, [&](int64_t) {
    const int w = siglip2::worker_index();
    if (w < 0 || w >= kThreads || inside[static_cast<size_t>(w)].fetch_add(1) != 0) clash = true;
    inside[static_cast<size_t>(w)].fetch_sub(1);
  });
  CHECK(!clash);
}

TEST(parts_inside_parts) {
  Team team(kThreads);
  std::vector<int> out(64 * 64);
  siglip2::parallel_items(64, [&](int64_t i) {
    siglip2::parallel_items(64, [&](int64_t j) { out[static_cast<size_t>(i * 64 + j)]++; });
  });
  CHECK(std::accumulate(out.begin(), out.end(), 0) == 64 * 64);
}

TEST(teams_side_by_side) {
  std::thread other([] {
    Team team(2);
    sums(5000, 16);
  });
  Team team(2);
  sums(5000, 16);
  other.join();
}

TEST(a_team_that_never_works) {
  for (int r = 0; r < 20; ++r) Team team(kThreads);
}
