// InputFile: pread with the checks that turn "the file is shorter than it says" into one clear line, and a way past the page cache for what is
// read once.
#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

namespace tq4::io {
namespace {

constexpr std::size_t kDirectFrom = std::size_t{256} << 10;  // smaller reads gain nothing
constexpr std::size_t kDirectPiece = std::size_t{2} << 20;
constexpr std::size_t kScratchAlign = 4096;

/// The alignment that direct reads of a file need; 0 where the file system does not offer them (or does not say so: network and FUSE).
std::size_t direct_alignment(int fd) {
#ifdef STATX_DIOALIGN
  struct statx status {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0 || (status.stx_mask & STATX_DIOALIGN) == 0) return 0;
  const std::size_t align = status.stx_dio_offset_align;
  return status.stx_dio_mem_align <= kScratchAlign && align <= kScratchAlign && (align & (align - 1)) == 0 ? align : 0;
#else
  (void)fd;
  return 0;
#endif
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
/// A buffer of a thread for direct reads, whose addresses have to be aligned; in huge pages, which the kernel pins faster. Null without memory.
std::uint8_t* scratch() {
  constexpr std::size_t kHuge = std::size_t{2} << 20, kBytes = (kDirectPiece + 2 * kScratchAlign + kHuge - 1) / kHuge * kHuge;
  thread_local const std::unique_ptr<void, Free> buffer = [] {
    std::unique_ptr<void, Free> made(std::aligned_alloc(kHuge, kBytes));
    if (made != nullptr) (void)::madvise(made.get(), kBytes, MADV_HUGEPAGE);
    return made;
  }();
  return static_cast<std::uint8_t*>(buffer.get());
}

}  // namespace

InputFile::InputFile(const std::string& path, bool read_once) : path_(path) {
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
  direct_align_ = read_once && size_ >= kDirectFrom ? direct_alignment(fd_) : 0;
  if (direct_align_ == 0) return;
  mapped_ = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, fd_, 0);
  if (mapped_ == MAP_FAILED) {
    mapped_ = nullptr;
    return;
  }
  direct_fd_ = ::open(("/proc/self/fd/" + std::to_string(fd_)).c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (direct_fd_ >= 0) ::close(direct_fd_);
  if (mapped_ != nullptr) ::munmap(mapped_, static_cast<std::size_t>(size_));
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      direct_fd_(std::exchange(other.direct_fd_, -1)),
      direct_align_(other.direct_align_),
      mapped_(std::exchange(other.mapped_, nullptr)),
      size_(other.size_) {}

void InputFile::check_range(std::uint64_t offset, std::size_t bytes) const {
  if (offset > size_ || bytes > size_ - offset) {
    bad_input(path_, "ends at byte " + std::to_string(size_) + ", but bytes " + std::to_string(offset) + " to " +
                         std::to_string(offset + bytes) + " are needed; the file was cut short, copy it again");
  }
}

/// Whether the page cache holds a piece, by a few of its pages. (The kernel tells it of files that the caller may write; of others it says yes.)
bool InputFile::in_page_cache(std::uint64_t offset, std::size_t bytes) const {
  static const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  constexpr std::uint64_t kSamples = 8;
  unsigned held = 0;
  for (std::uint64_t i = 0; i < kSamples; ++i) {
    unsigned char resident = 0;
    const std::uint64_t at = (offset + i * (bytes - 1) / (kSamples - 1)) / page * page;
    if (::mincore(static_cast<std::uint8_t*>(mapped_) + at, 1, &resident) != 0) return true;
    held += resident & 1u;
  }
  return held > kSamples / 2;
}

/// False when the direct way does not work after all; `out` may then hold anything.
bool InputFile::read_direct(std::uint64_t offset, std::uint8_t* out, std::size_t bytes) const {
  std::uint8_t* const piece = scratch();
  if (piece == nullptr) return false;
  while (bytes > 0) {
    const std::size_t lead = static_cast<std::size_t>(offset % direct_align_), wanted = std::min(bytes, kDirectPiece);
    const std::size_t length = (lead + wanted + direct_align_ - 1) / direct_align_ * direct_align_;
    const ssize_t got = ::pread(direct_fd_, piece, length, static_cast<off_t>(offset - lead));
    if (got < 0 && errno == EINTR) continue;
    if (got <= static_cast<ssize_t>(lead)) return false;
    const std::size_t use = std::min(wanted, static_cast<std::size_t>(got) - lead);
    std::memcpy(out, piece + lead, use);
    out += use;
    offset += use;
    bytes -= use;
  }
  return true;
}

void InputFile::read_once_at(std::uint64_t offset, void* out, std::size_t bytes) const {
  check_range(offset, bytes);
  auto* to = static_cast<std::uint8_t*>(out);
  while (bytes > 0) {
    const std::size_t piece = std::min(bytes, kDirectPiece);
    const bool direct = direct_fd_ >= 0 && piece >= kDirectFrom && !in_page_cache(offset, piece);
    if (!direct || !read_direct(offset, to, piece)) read_at(offset, to, piece);
    to += piece;
    offset += piece;
    bytes -= piece;
  }
}

void InputFile::read_at(std::uint64_t offset, void* out, std::size_t bytes) const {
  check_range(offset, bytes);
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
