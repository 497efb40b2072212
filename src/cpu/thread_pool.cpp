// The threads behind parallel_for: started for one loop, joined at its end, the first exception carried to the caller.
#include "cpu/thread_pool.h"

#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace tq4::cpu {

int thread_count(int requested) {
  if (requested > 0) return requested;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void run_workers(int threads, const std::function<void()>& worker) {
  if (threads <= 1) return worker();
  std::exception_ptr first;
  std::mutex mutex;
  const auto guarded = [&]() noexcept {
    try {
      worker();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;  // joined here, whatever happens
    others.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int t = 1; t < threads; ++t) others.emplace_back(guarded);
    } catch (const std::system_error&) {
      // No more threads to be had: those that run share the work.
    }
    guarded();
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace tq4::cpu
