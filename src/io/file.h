// A file opened for reading by position, and the few words every reader of this folder uses to refuse one. Reads past the end are BadInput,
// not short counts: whoever asked believed a number in the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tq4/error.h"

namespace tq4::io {

[[noreturn]] inline void bad_input(const std::string& where, const std::string& message) {
  throw Error(ErrorCode::BadInput, message, where);
}

/// Read-only file. Move-only; safe to read from several threads.
class InputFile {
 public:
  /// BadInput when missing or not a regular file; Runtime on other failures. `read_once`: read_once_at() shall know its shortcut.
  explicit InputFile(const std::string& path, bool read_once = false);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t size() const { return size_; }
  /// Exactly `bytes` bytes at `offset`; BadInput when the file ends before, Runtime on an I/O error.
  void read_at(std::uint64_t offset, void* out, std::size_t bytes) const;
  /// read_at for bytes that nobody will ask for again: what the page cache lacks is read past it (direct I/O, where the file system says that
  /// it has it), which spares the kernel filling pages that only push out others.
  void read_once_at(std::uint64_t offset, void* out, std::size_t bytes) const;

 private:
  void check_range(std::uint64_t offset, std::size_t bytes) const;
  bool in_page_cache(std::uint64_t offset, std::size_t bytes) const;
  bool read_direct(std::uint64_t offset, std::uint8_t* out, std::size_t bytes) const;

  std::string path_;
  int fd_ = -1;
  int direct_fd_ = -1;  ///< the same file without the page cache; -1: not to be had
  std::size_t direct_align_ = 0;
  void* mapped_ = nullptr;  ///< the file in the address space, never touched: to ask what the page cache holds of it
  std::uint64_t size_ = 0;
};

/// Reserve disk space for `bytes` of an open file without changing its size: a full disk is found before the work, not after.
/// Runtime when there is no room; silent where the file system cannot reserve.
void reserve_space(int fd, std::uint64_t bytes, const std::string& path);

/// a * b, BadInput when it does not fit 63 bits (a size made up by a corrupt file).
std::uint64_t checked_multiply(std::uint64_t a, std::uint64_t b, const std::string& where);

}  // namespace tq4::io
