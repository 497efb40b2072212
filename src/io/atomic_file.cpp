// AtomicFile: a file appears under its name whole or not at all. Everything goes to a temporary in the same folder; commit() syncs it,
// renames it and syncs the folder. The paths of living temporaries sit in a fixed static table, so that a signal handler can unlink them
// with nothing but async-signal-safe calls.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "tq4/container.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

enum SlotState : int { kFree, kFilling, kLive };
struct Slot {
  std::atomic<int> state{kFree};
  std::array<char, PATH_MAX> path{};
};
std::array<Slot, 32> g_slots;
static_assert(std::atomic<int>::is_always_lock_free, "the signal handler needs lock-free slots");

/// Registers a path before its file exists, so that no moment is left in which a signal would leave it behind.
void remember(const std::string& path) {
  if (path.size() >= PATH_MAX) throw Error(ErrorCode::Usage, "path is too long", path);
  for (Slot& slot : g_slots) {
    int expected = kFree;
    if (slot.state.compare_exchange_strong(expected, kFilling)) {
      std::copy_n(path.c_str(), path.size() + 1, slot.path.begin());
      slot.state.store(kLive);
      return;
    }
  }
  throw Error(ErrorCode::Runtime, "more than 32 files are being written at once", path);
}

void forget(const std::string& path) {
  for (Slot& slot : g_slots) {
    if (slot.state.load() == kLive && path == slot.path.data()) slot.state.store(kFree);
  }
}

[[noreturn]] void fail(const std::string& what, const std::string& path, int error) {
  throw Error(ErrorCode::Runtime, what + ": " + std::strerror(error), path);
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // a folder we may write but not read: the rename is done, only its durability is unknown
  ::fsync(fd);
  ::close(fd);
}

/// Rename that fails with EEXIST instead of replacing, also where the file system has no RENAME_NOREPLACE.
int rename_new(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -1;
  if (::access(to.c_str(), F_OK) == 0) {
    errno = EEXIST;
    return -1;
  }
  return ::rename(from.c_str(), to.c_str());
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, bool overwrite) : path_(path), overwrite_(overwrite) {
  if (path.empty()) throw Error(ErrorCode::Usage, "the output path is empty");
  mode_t mode = 0;
  struct stat status {};
  if (::lstat(path.c_str(), &status) == 0) {
    if (S_ISLNK(status.st_mode) && ::stat(path.c_str(), &status) == 0) {
      std::array<char, PATH_MAX> target{};
      if (::realpath(path.c_str(), target.data()) != nullptr) path_ = target.data();  // replace what the link points to, keep the link
    }
    if (!S_ISREG(status.st_mode)) throw Error(ErrorCode::Usage, "exists and is not a regular file; choose another output path", path);
    if (!overwrite) throw Error(ErrorCode::Usage, "exists; allow overwriting (--force) or choose another output path", path);
    mode = status.st_mode & 07777;
  }
  static std::atomic<unsigned> counter{0};
  const std::string name = std::filesystem::path(path_).filename().string();
  if (name.empty()) throw Error(ErrorCode::Usage, "the output path names a folder, not a file", path);
  // A long name is shortened, so that the temporary's stays within the 255 bytes a file system allows.
  temporary_ = folder_of(path_) + "/." + name.substr(0, 200) + "." + std::to_string(::getpid()) + "." + std::to_string(counter++) + ".tmp";
  remember(temporary_);
  fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) {
    const int error = errno;
    forget(temporary_);
    if (error == ENOENT || error == ENOTDIR) throw Error(ErrorCode::Runtime, "cannot write there: the folder does not exist", path);
    fail("cannot write there", path, error);
  }
  if (mode != 0) (void)::fchmod(fd_, mode);
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_ && !temporary_.empty()) {
    ::unlink(temporary_.c_str());
    forget(temporary_);
  }
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  if (end < 0) fail("write failed", path_, errno);
  write_at(static_cast<std::uint64_t>(end), data, bytes);
}

void AtomicFile::write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const std::uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t put = ::pwrite(fd_, from, std::min<std::size_t>(bytes, std::size_t{1} << 30), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("write failed", path_, errno);
    from += put;
    offset += static_cast<std::uint64_t>(put);
    bytes -= static_cast<std::size_t>(put);
  }
}

void AtomicFile::start_writing_back(std::uint64_t offset, std::uint64_t bytes) noexcept {
#ifdef SYNC_FILE_RANGE_WRITE
  (void)::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
#else
  (void)offset, (void)bytes;
#endif
}

void AtomicFile::commit() {
  if (committed_) throw Error(ErrorCode::Usage, "commit() was called twice", path_);
  if (::fsync(fd_) != 0 && errno != EINVAL) fail("cannot write to the disk", path_, errno);
  const int result = overwrite_ ? ::rename(temporary_.c_str(), path_.c_str()) : rename_new(temporary_, path_);
  if (result != 0) {
    if (errno == EEXIST) throw Error(ErrorCode::Usage, "appeared while its replacement was written; allow overwriting (--force)", path_);
    fail("cannot rename the finished file into place", path_, errno);
  }
  committed_ = true;
  forget(temporary_);
  sync_folder(folder_of(path_));
}

void AtomicFile::remove_all_temporaries() noexcept {
  for (Slot& slot : g_slots) {
    if (slot.state.load() == kLive) ::unlink(slot.path.data());
  }
}

}  // namespace tq4
