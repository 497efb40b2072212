// Reading, computing and writing at the same time with bounded memory: jobs 0..n-1 pass through read (one at a time, in order), work (any
// number at once) and write (one at a time, in order). Each thread carries one job and one Slot of buffers through all three stages, so at
// most `threads` + 6 slots live, whatever the size of the file. Results do not depend on the number of threads.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

namespace tq4::cli {

/// read(job, slot), work(job, slot), write(job, slot). The exception of the lowest job that failed is rethrown after all threads ended.
template <class Slot, class Read, class Work, class Write>
void run_pipeline(std::size_t jobs, int threads, Read read, Work work, Write write) {
  struct State {
    std::mutex read_mutex, mutex;
    std::condition_variable turn_changed;
    std::size_t next = 0;                                          // under read_mutex
    std::size_t turn = 0;                                          // the rest under mutex
    std::size_t failed = std::numeric_limits<std::size_t>::max();  // lowest job that failed
    std::exception_ptr error;
  } state;

  const auto carry = [&] {
    Slot slot;
    while (true) {
      std::size_t job = 0;
      try {
        {
          const std::lock_guard reading(state.read_mutex);
          job = state.next;
          {
            const std::lock_guard lock(state.mutex);
            if (job >= jobs || state.error) return;
          }
          ++state.next;
          read(job, slot);
        }
        work(job, slot);
        std::unique_lock lock(state.mutex);
        state.turn_changed.wait(lock, [&] { return state.turn == job || state.failed < job; });
        if (state.failed < job) return;
        lock.unlock();
        write(job, slot);  // no other thread writes: turn stays at job until the next line
        lock.lock();
        ++state.turn;
      } catch (...) {
        const std::lock_guard lock(state.mutex);
        if (job < state.failed) {
          state.failed = job;
          state.error = std::current_exception();
        }
        state.turn_changed.notify_all();
        return;
      }
      state.turn_changed.notify_all();
    }
  };

  // Six threads more than asked for: while one waits for the disk to read, one for the disk to write and some for their turn (a job that took
  // longer holds up those behind it), the others compute.
  const std::size_t count = std::min<std::size_t>(jobs, static_cast<std::size_t>(threads) + 6);
  std::vector<std::thread> pool;
  try {
    for (std::size_t i = 1; i < count; ++i) pool.emplace_back(carry);
  } catch (const std::exception&) {
    // Fewer threads than asked for still finish the work.
  }
  carry();
  for (std::thread& thread : pool) thread.join();
  if (state.error) std::rethrow_exception(state.error);
}

}  // namespace tq4::cli
