// InputFile: pread with the checks that turn "the file is shorter than it says" into one clear line.
#include "io/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace tq4::io {

InputFile::InputFile(const std::string& path) : path_(path) {
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) {
    if (errno == ENOENT || errno == ENOTDIR) bad_input(path, "no such file");
    throw Error(ErrorCode::Runtime, std::string("cannot open: ") + std::strerror(errno), path);
  }
  struct stat status {};
  const bool regular = ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
  if (!regular) {
    ::close(fd_);
    bad_input(path, "not a regular file; reading needs a file that can be read at any position (no pipe, no folder)");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept : path_(std::move(other.path_)), fd_(other.fd_), size_(other.size_) { other.fd_ = -1; }

void InputFile::read_at(std::uint64_t offset, void* out, std::size_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) {
    bad_input(path_, "ends at byte " + std::to_string(size_) + ", but bytes " + std::to_string(offset) + " to " +
                         std::to_string(offset + bytes) + " are needed; the file was cut short, copy it again");
  }
  auto* to = static_cast<std::uint8_t*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, to, std::min<std::size_t>(bytes, std::size_t{1} << 30), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(ErrorCode::Runtime, std::string("read failed: ") + std::strerror(errno), path_);
    if (got == 0) bad_input(path_, "became shorter while it was read");
    to += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::size_t>(got);
  }
}

void reserve_space(int fd, std::uint64_t bytes, const std::string& path) {
  if (bytes == 0) return;
  // A limit on file sizes says no only when a write crosses it, which libhdf5 does not survive.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
    throw Error(ErrorCode::Runtime, "no room for " + std::to_string(bytes) + " bytes: " + std::strerror(EFBIG), path);
  }
  while (::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) {
      throw Error(ErrorCode::Runtime, "no room for " + std::to_string(bytes) + " bytes: " + std::strerror(errno), path);
    }
    return;
  }
}

std::uint64_t checked_multiply(std::uint64_t a, std::uint64_t b, const std::string& where) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product) || product > (std::uint64_t{1} << 62)) {
    bad_input(where, "a size of " + std::to_string(a) + " x " + std::to_string(b) + " is impossible; the file is corrupt");
  }
  return product;
}

}  // namespace tq4::io
