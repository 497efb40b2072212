// See paths.h.
#include "paths.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "interrupt.h"
#include "tq4/error.h"

namespace tq4::cli {
namespace {

std::string temporary_folder() {
  const char* folder = std::getenv("TMPDIR");
  return folder != nullptr && *folder != '\0' ? folder : "/tmp";
}

[[noreturn]] void fail(const std::string& where) { throw Error(ErrorCode::Runtime, std::strerror(errno), where); }

void copy_all(int from, int to, const std::string& from_name, const std::string& to_name) {
  std::vector<char> buffer(std::size_t{1} << 20);
  while (true) {
    const ssize_t got = ::read(from, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(from_name);
    if (got == 0) return;
    for (ssize_t put = 0; put < got;) {
      const ssize_t n = ::write(to, buffer.data() + put, static_cast<std::size_t>(got - put));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail(to_name);
      put += n;
    }
  }
}

}  // namespace

std::string beside(const std::string& input, const std::string& suffix) {
  std::filesystem::path path(input);
  return path.replace_extension().string() + suffix;
}

void check_output_path(const std::string& input, const std::string& output, bool force) {
  if (output == "-") return;
  std::error_code ignored;
  if (!std::filesystem::exists(output, ignored)) return;
  if (std::filesystem::is_directory(output, ignored)) throw Error(ErrorCode::Usage, "is a folder; name a file", output);
  if (std::filesystem::equivalent(input, output, ignored))
    throw Error(ErrorCode::Usage, "is the input as well; choose another output", output);
  if (!force) throw Error(ErrorCode::Usage, "exists already; --force replaces it", output);
}

void check_seekable_input(const std::string& input) {
  if (input == "-")
    throw Error(ErrorCode::Usage, "HDF5, npz and safetensors dumps need to seek and cannot be read from a pipe; name a file", "-");
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(input, error);
  if (status.type() == std::filesystem::file_type::not_found) throw Error(ErrorCode::BadInput, "there is no such file", input);
  if (error) throw Error(ErrorCode::BadInput, error.message(), input);
  if (status.type() == std::filesystem::file_type::directory) throw Error(ErrorCode::BadInput, "is a folder, not a file", input);
  if (status.type() != std::filesystem::file_type::regular)
    throw Error(ErrorCode::BadInput, "is not a regular file; dumps need to seek", input);
  if (::access(input.c_str(), R_OK) != 0) throw Error(ErrorCode::BadInput, fmt::format("cannot be read: {}", std::strerror(errno)), input);
}

SpooledInput::SpooledInput(const std::string& path) : path_(path) {
  if (path != "-") {
    check_seekable_input(path);
    return;
  }
  std::string name = temporary_folder() + "/tq4-stdin-XXXXXX";
  fd_ = ::mkstemp(name.data());
  if (fd_ < 0) fail(temporary_folder());
  ::unlink(name.c_str());
  copy_all(STDIN_FILENO, fd_, "standard input", temporary_folder());
  path_ = fmt::format("/proc/self/fd/{}", fd_);
}

SpooledInput::~SpooledInput() {
  if (fd_ >= 0) ::close(fd_);
}

SpooledOutput::SpooledOutput(const std::string& path) : path_(path), spooled_(path == "-") {
  if (!spooled_) return;
  path_ = fmt::format("{}/tq4-stdout-{}.tmp", temporary_folder(), ::getpid());
  set_interrupt_unlink(path_);
}

SpooledOutput::~SpooledOutput() {
  if (!spooled_) return;
  ::unlink(path_.c_str());
  set_interrupt_unlink("");
}

void SpooledOutput::finish() {
  if (!spooled_) return;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path_);
  try {
    copy_all(fd, STDOUT_FILENO, path_, "standard output");
  } catch (...) {
    ::close(fd);
    throw;
  }
  ::close(fd);
}

}  // namespace tq4::cli
