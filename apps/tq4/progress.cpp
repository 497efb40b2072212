// See progress.h.
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "args.h"

namespace tq4::cli {
namespace {

constexpr std::chrono::milliseconds kInterval{100};
constexpr const char* kWipe = "\r\033[K";

bool terminal() {
  const char* term = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && (term == nullptr || std::string_view(term) != "dumb");
}
bool colours() {
  const char* no_color = std::getenv("NO_COLOR");
  return no_color == nullptr || *no_color == '\0';
}

}  // namespace

Progress::Progress(std::string label, std::uint64_t total, Unit unit, bool quiet)
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      enabled_(!quiet && terminal()),
      start_(Clock::now()),
      next_(start_ + kInterval) {}

Progress::~Progress() {
  if (drawn_) std::fputs(kWipe, stderr);
}

void Progress::add(std::uint64_t done) {
  const std::uint64_t sum = done_ += done;
  if (!enabled_) return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return;
  const Clock::time_point now = Clock::now();
  if (now < next_) return;
  next_ = now + kInterval;
  draw(sum, now);
}

void Progress::draw(std::uint64_t done, Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done) / seconds;
  const double share = total_ == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total_);
  const std::string speed = unit_ == Unit::Bytes ? format_bytes(rate) + "/s" : fmt::format("{:.3g}/s", rate);
  const std::string left = rate > 0 && done < total_ ? format_seconds(static_cast<double>(total_ - done) / rate) + " left" : "";
  const char* bold = colours() ? "\033[1m" : "";
  const char* plain = colours() ? "\033[0m" : "";
  fmt::print(stderr, "{}{}{}{} {:3.0f}%  {}  {}", kWipe, bold, label_, plain, 100 * share, speed, left);
  std::fflush(stderr);
  drawn_ = true;
}

}  // namespace tq4::cli
