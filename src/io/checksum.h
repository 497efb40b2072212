// XXH3-64 over several pieces, and the checksum that seals a header.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tq4::io {

/// XXH3-64 of `header` (length prefix and JSON, with the 16 digits of "xxh3" taken as zeros) followed by the bytes of `checksums`.
/// `digits` is where those 16 digits begin. Seed 0.
std::uint64_t seal(std::string header, std::size_t digits, const std::vector<std::uint64_t>& checksums);

/// Where the 16 digits of `"xxh3":"................"` begin in a header's text; npos when that is not there exactly once.
/// (Inside of a JSON string the quotes would be escaped, so the pattern cannot come from anywhere else.)
std::size_t find_seal(std::string_view header);

}  // namespace tq4::io
