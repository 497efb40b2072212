// Parsers and formatters of command-line texts; see args.h. Numbers go through from_chars: no locale, no silent trailing garbage.
#include "args.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>

#include "tq4/error.h"

namespace tq4::cli {
namespace {

[[noreturn]] void refuse(std::string_view text, std::string_view expected) {
  throw Error(ErrorCode::Usage, fmt::format("'{}' is not {}", text, expected));
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t at = text.find_first_of(separators);
    parts.push_back(trim(text.substr(0, at)));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

template <class T>
bool read_whole(std::string_view text, T& value) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && !text.empty();
}

constexpr std::size_t kMaxPoints = 4096;  // a list longer than this is a slip of the pen, not a sweep

void append_range(std::string_view part, std::vector<std::int64_t>& sizes) {
  const std::size_t dots = part.find("..");
  if (dots == std::string_view::npos) {
    sizes.push_back(parse_size(part));
    return;
  }
  const std::string_view rest = part.substr(dots + 2);
  const std::size_t mark = rest.find_first_of("+*");
  const std::int64_t first = parse_size(part.substr(0, dots));
  const std::int64_t last = parse_size(rest.substr(0, mark));
  const bool step = mark != std::string_view::npos && rest[mark] == '+';
  const std::int64_t by = mark == std::string_view::npos ? 2 : parse_size(rest.substr(mark + 1));
  if (last < first) refuse(part, "a range: it ends before it begins");
  if (step ? by < 1 : (by < 2 || first < 1)) refuse(part, "a range that moves: the step must be at least 1, the factor at least 2");
  for (std::int64_t at = first; at < last; at = step ? at + by : at * by) {
    if (sizes.size() >= kMaxPoints) refuse(part, fmt::format("a usable range: more than {} points", kMaxPoints));
    sizes.push_back(at);
    if (at > std::numeric_limits<std::int64_t>::max() / std::max<std::int64_t>(by, 2)) break;
  }
  if (!step || (last - first) % by == 0) sizes.push_back(last);
}

}  // namespace

std::int64_t parse_size(std::string_view text) {
  const std::string_view whole = trim(text);
  std::string_view digits = whole;
  std::int64_t unit = 1;
  if (!digits.empty()) {
    switch (digits.back()) {
      case 'k':
      case 'K': unit = std::int64_t{1} << 10; break;
      case 'm':
      case 'M': unit = std::int64_t{1} << 20; break;
      case 'g':
      case 'G': unit = std::int64_t{1} << 30; break;
      default: break;
    }
    if (unit != 1) digits.remove_suffix(1);
  }
  std::int64_t value = 0;
  if (!read_whole(digits, value) || value < 0 || value > std::numeric_limits<std::int64_t>::max() / unit)
    refuse(whole, "a size such as 4096, 32k or 2G");
  return value * unit;
}

std::vector<std::int64_t> parse_sizes(std::string_view text) {
  std::vector<std::int64_t> sizes;
  for (const std::string_view part : split(text, ",")) append_range(part, sizes);
  return sizes;
}

std::vector<int> parse_indices(std::string_view text) {
  std::vector<int> indices;
  for (const std::string_view part : split(text, ",")) {
    const std::size_t dots = part.find("..");
    int first = 0, last = 0;
    const bool good = dots == std::string_view::npos ? read_whole(part, first) && ((last = first), true)
                                                     : read_whole(part.substr(0, dots), first) && read_whole(part.substr(dots + 2), last);
    if (!good || first < 0 || last < first || last > 100000) refuse(text, "a list such as 0..3,30");
    const std::size_t old = indices.size();
    indices.resize(old + static_cast<std::size_t>(last - first) + 1);
    std::iota(indices.begin() + static_cast<std::ptrdiff_t>(old), indices.end(), first);
  }
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  return indices;
}

std::vector<std::string> parse_bits(std::string_view text) {
  std::vector<std::string> bits;
  for (const std::string_view part : split(text, ",/")) {
    const bool whole = part.size() == 1 && part[0] >= '1' && part[0] <= '8';
    if (!whole && part != "2.5" && part != "3.5") refuse(part, "a number of bits: 1 to 8, 2.5 or 3.5 (several: 3/4 or 3,4)");
    if (std::find(bits.begin(), bits.end(), part) == bits.end()) bits.emplace_back(part);
  }
  return bits;
}

std::vector<std::string> parse_names(std::string_view text) {
  std::vector<std::string> names;
  for (const std::string_view part : split(text, ",")) {
    if (part.empty()) refuse(text, "a list of names: one of them is empty");
    names.emplace_back(part);
  }
  return names;
}

Limit parse_limit(std::string_view text) {
  const std::size_t at = text.find('=');
  if (at == std::string_view::npos || at == 0) refuse(text, "METRIC=VALUE");
  return {std::string(trim(text.substr(0, at))), parse_number(text.substr(at + 1))};
}

double parse_number(std::string_view text) {
  double value = 0;
  if (!read_whole(trim(text), value) || !std::isfinite(value)) refuse(text, "a finite number");
  return value;
}

int parse_count(std::string_view text) {
  const std::int64_t value = parse_size(text);
  if (value > std::numeric_limits<int>::max()) refuse(text, "a count below 2^31");
  return static_cast<int>(value);
}

std::uint64_t parse_seed(std::string_view text) {
  std::uint64_t value = 0;
  if (!read_whole(trim(text), value)) refuse(text, "a seed: a whole number from 0 to 2^64 - 1");
  return value;
}

std::string format_bytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 999.5 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f} B", bytes);
  return fmt::format("{:.{}f} {}", bytes, bytes < 9.995 ? 2 : bytes < 99.95 ? 1 : 0, kUnits[unit]);
}

std::string format_seconds(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.3g} ms", seconds * 1e3);
  if (seconds < 100) return fmt::format("{:.3g} s", seconds);
  const std::int64_t whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{} min {:02d} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02d} min", whole / 3600, whole / 60 % 60);
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    // Levenshtein distance by rows, with transpositions of neighbours counted as two edits.
    std::vector<std::size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= candidate.size(); ++j) {
        const std::size_t above = row[j];
        row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1)});
        diagonal = above;
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

}  // namespace tq4::cli
