// Paths the user names: default names, the checks made before any work starts, and "-" for standard input and output.
#pragma once

#include <string>

namespace tq4::cli {

/// "folder/dump.h5" -> "folder/dump" + suffix.
std::string beside(const std::string& input, const std::string& suffix);

/// Refuses an output that exists (unless `force`) or that is the input (always, also through links). `output` may be "-".
void check_output_path(const std::string& input, const std::string& output, bool force);

/// Throws BadInput when `input` is missing or no regular file; "-" is refused with the reason: the format needs to seek.
void check_seekable_input(const std::string& input);

/// A container on standard input, kept in an unnamed temporary file (in TMPDIR) while this lives; any other path as it is.
class SpooledInput {
 public:
  explicit SpooledInput(const std::string& path);
  ~SpooledInput();
  SpooledInput(const SpooledInput&) = delete;
  SpooledInput& operator=(const SpooledInput&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int fd_ = -1;
};

/// Where to write a file that goes to standard output in the end ("-"): a temporary in TMPDIR that finish() copies out; any other path as it is.
class SpooledOutput {
 public:
  explicit SpooledOutput(const std::string& path);
  ~SpooledOutput();
  SpooledOutput(const SpooledOutput&) = delete;
  SpooledOutput& operator=(const SpooledOutput&) = delete;
  const std::string& path() const { return path_; }
  void finish();

 private:
  std::string path_;
  bool spooled_ = false;
};

}  // namespace tq4::cli
