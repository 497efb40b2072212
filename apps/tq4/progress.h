// Progress on stderr: share done, rate, time left. Drawn only when stderr is a terminal and the user did not ask for quiet, at most ten
// times a second, and wiped when done, so that logs and pipes never see it. add() may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace tq4::cli {

class Progress {
 public:
  enum class Unit { Bytes, Items };
  Progress(std::string label, std::uint64_t total, Unit unit, bool quiet);
  ~Progress();  ///< wipes the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void add(std::uint64_t done);

 private:
  using Clock = std::chrono::steady_clock;
  void draw(std::uint64_t done, Clock::time_point now);
  std::string label_;
  std::uint64_t total_;
  Unit unit_;
  bool enabled_;
  bool drawn_ = false;
  std::atomic<std::uint64_t> done_{0};
  Clock::time_point start_;
  Clock::time_point next_;
  std::mutex mutex_;
};

}  // namespace tq4::cli
