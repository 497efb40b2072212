// What the fuzz targets share: bytes as a file that can be opened by path, and a run that takes tq4::Error for an answer. Anything else that
// escapes (another exception, a sanitizer's report, a crash) is a finding.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "tq4/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace tq4::fuzz {

/// A file in memory with a path.
class MemoryFile {
 public:
  MemoryFile(const void* data, std::size_t size) : fd_(::memfd_create("fuzz", 0)) {
    if (fd_ < 0 || ::write(fd_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }
  ~MemoryFile() { ::close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

/// Runs `body`; a file may only be refused as BadInput.
template <class Body>
void expect_answer_or_refusal(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::BadInput) std::abort();
  }
}

}  // namespace tq4::fuzz
