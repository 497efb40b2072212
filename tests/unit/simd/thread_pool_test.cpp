// parallel_for: every index once, on as many threads as asked for, and exceptions carried to the caller with all threads joined.
#include "cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace tq4::cpu {
namespace {

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {0, 1, 2, 8}) {
    for (const std::int64_t count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
      parallel_for(threads, count, [&] { return [&](std::int64_t i) { ++seen[static_cast<std::size_t>(i)]; }; });
      for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
    }
  }
}

TEST(ThreadPool, RunsOnTheThreadsAskedFor) {
  std::mutex mutex;
  std::set<std::thread::id> ids;
  std::atomic<int> bodies{0};
  // Every body waits for all four, so that four threads must run at once.
  std::atomic<int> arrived{0};
  parallel_for(4, 4, [&] {
    ++bodies;
    return [&](std::int64_t) {
      ++arrived;
      while (arrived.load() < 4) std::this_thread::yield();
      const std::lock_guard lock(mutex);
      ids.insert(std::this_thread::get_id());
    };
  });
  EXPECT_EQ(ids.size(), 4u);
  EXPECT_EQ(bodies.load(), 4);
}

TEST(ThreadPool, ExceptionsReachTheCallerAndStopTheLoop) {
  for (const int threads : {1, 2, 8}) {
    std::atomic<std::int64_t> done{0};
    const auto run = [&] {
      parallel_for(threads, 1'000'000, [&] {
        return [&](std::int64_t i) {
          if (i == 10) throw std::runtime_error("ten");
          ++done;
        };
      });
    };
    EXPECT_THROW(run(), std::runtime_error);
    EXPECT_LT(done.load(), 1'000'000);
  }
  // Also one that is thrown while a thread prepares its scratch.
  const auto prepare = [](std::int64_t) {};
  EXPECT_THROW(parallel_for(4, 100, [&]() -> decltype(prepare) { throw std::bad_alloc(); }), std::bad_alloc);
}

}  // namespace
}  // namespace tq4::cpu
