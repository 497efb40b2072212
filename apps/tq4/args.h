// Texts of the command line turned into values: sizes (32k), ranges of sizes (1k..32k), lists of layers (0..3,30), of bits (3/4) and of names.
// Pure functions without CLI11, so that they are tested on their own. All throw tq4::Error(Usage) naming what was wrong with the text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tq4::cli {

/// "32k" = 32768, "4M", "2G", "4096"; binary multiples.
std::int64_t parse_size(std::string_view text);

/// Comma-separated sizes and ranges, in the order written: "1k,4k,32k"; "1k..32k" doubles from 1k and ends with 32k whatever the ratio;
/// "1k..8k+1k" steps by 1k up to 8k; "1k..8k*4" multiplies by 4.
std::vector<std::int64_t> parse_sizes(std::string_view text);

/// Whole numbers and closed ranges with step 1, sorted, without repeats: "0..3,30" = 0 1 2 3 30.
std::vector<int> parse_indices(std::string_view text);

/// Bits a value, "3/4" and "3,4" = both, in the order written. Allowed: 1..8, 2.5, 3.5. Kept as text ("2.5") since they name codecs.
std::vector<std::string> parse_bits(std::string_view text);

/// Comma-separated names, blanks trimmed, none empty.
std::vector<std::string> parse_names(std::string_view text);

/// "key=value" pairs with a number as value, e.g. "out_error=0.05".
struct Limit {
  std::string metric;
  double value = 0;
};
Limit parse_limit(std::string_view text);

/// A finite number; a whole number >= 0; a 64-bit seed.
double parse_number(std::string_view text);
int parse_count(std::string_view text);
std::uint64_t parse_seed(std::string_view text);

/// "1.5 GiB", "12.3 MB/s"-like texts with three significant digits. Bytes in binary units.
std::string format_bytes(double bytes);
/// "950 us", "12.3 ms", "4.5 s", "3 min 05 s".
std::string format_seconds(double seconds);

/// The candidate with the smallest edit distance to `word`, or "" when none is near (distance above a third of its length, at least 2).
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace tq4::cli
