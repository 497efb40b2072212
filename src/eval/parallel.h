// A loop over independent tasks on a few threads. The quality report's work comes in hundreds of tasks of milliseconds each, so starting
// threads per loop costs nothing; results are written by task index, which keeps them independent of the number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace tq4::eval {

inline int thread_count(int requested) {
  if (requested > 0) return requested;
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores);
}

/// Calls body(task, worker) for task 0..count-1, each once. The first exception stops the rest and is rethrown here.
template <class Body>
void parallel_for(std::int64_t count, int threads, const Body& body) {
  const int workers = static_cast<int>(std::min<std::int64_t>(thread_count(threads), count));
  if (workers <= 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&](int worker) {
    while (!stop.load(std::memory_order_relaxed)) {
      const std::int64_t task = next.fetch_add(1);
      if (task >= count) return;
      try {
        body(task, worker);
      } catch (...) {
        const std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        stop = true;
      }
    }
  };
  std::vector<std::thread> pool;
  for (int w = 1; w < workers; ++w) pool.emplace_back(run, w);
  run(0);
  for (std::thread& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace tq4::eval
