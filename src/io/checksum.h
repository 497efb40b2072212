// XXH3-64 over several pieces, and the checksum that seals a header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tq4::io {

/// XXH3-64 of `header` (length prefix and JSON, with the 16 digits of "xxh3" taken as zeros) followed by the bytes of `checksums`.
/// `digits` is where those 16 digits begin. Seed 0.
std::uint64_t seal(std::string header, std::size_t digits, const std::vector<std::uint64_t>& checksums);

/// XXH3-64 (seed 0) of bytes that come in pieces.
class RunningHash {
 public:
  RunningHash();
  ~RunningHash();
  RunningHash(const RunningHash&) = delete;
  RunningHash& operator=(const RunningHash&) = delete;
  void update(const void* data, std::size_t bytes);
  std::uint64_t bytes() const { return bytes_; }  ///< seen so far
  std::uint64_t digest() const;

 private:
  void* state_;  ///< XXH3_state_t; the library is used header-only, so its type is not named here
  std::uint64_t bytes_ = 0;
};

/// Where the 16 digits of `"xxh3":"................"` begin in a header's text; npos when that is not there exactly once.
/// (Inside of a JSON string the quotes would be escaped, so the pattern cannot come from anywhere else.)
std::size_t find_seal(std::string_view header);

}  // namespace tq4::io
