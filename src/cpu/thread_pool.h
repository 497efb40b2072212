// Loops over blocks on several threads. Threads live as long as one loop: blocks are large (tens of kilobytes), so starting a thread costs
// a fraction of a percent, and the library keeps no threads, locks or queues between calls. Results never depend on the thread count,
// because a block's bytes depend on its index alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace tq4::cpu {

/// Threads to use when `requested` are asked for: 0 = all cores this process may run on; at least 1.
int thread_count(int requested);

/// Runs `worker` on `threads` threads, the caller's included, and returns when all have ended. The first exception that leaves a worker is
/// rethrown in the caller after the others have ended. When the system refuses a thread, fewer run; one always does.
void run_workers(int threads, const std::function<void()>& worker);

/// body(i) for every i in [0, count), each exactly once, in any order. make_body is called once on every thread and returns the body, which
/// may own that thread's scratch memory. After an exception no further i is begun.
template <class MakeBody>
void parallel_for(int threads, std::int64_t count, const MakeBody& make_body) {
  if (count <= 0) return;
  std::atomic<std::int64_t> next{0};
  const auto worker = [&] {
    try {
      auto body = make_body();
      for (;;) {
        const std::int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= count) return;
        body(i);
      }
    } catch (...) {
      next.store(count, std::memory_order_relaxed);
      throw;
    }
  };
  run_workers(static_cast<int>(std::min<std::int64_t>(thread_count(threads), count)), worker);
}

}  // namespace tq4::cpu
