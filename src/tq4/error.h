// tq4::Error, the one exception type of the library. The library never prints and never exits: it throws
// this, and the CLI turns the code into its exit status. Codes and exit statuses are the same numbers.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace tq4 {

/// What went wrong. The value is the exit status of the CLI.
enum class ErrorCode : int {
  Runtime = 1,       ///< something failed that the caller could not have known (disk full, out of memory)
  Usage = 2,         ///< an argument is wrong: shape, range, name
  BadInput = 3,      ///< a file or tensor is corrupt, truncated or not what it says it is
  QualityGate = 4,   ///< a result is worse than the limit the caller set
  NoDevice = 5,      ///< a CUDA device was asked for and there is none (or this build has no CUDA)
  Unsupported = 6,   ///< a combination that is valid but that no code path here serves
  Interrupted = 130  ///< the user pressed Ctrl-C
};

/// Carries a code, a message that says what happened and how to mend it, and `where` (file, tensor, option; may be empty).
/// what() is "where: message", or the message alone.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string_view message, std::string_view where = {})
      : std::runtime_error(where.empty() ? std::string(message) : std::string(where) + ": " + std::string(message)),
        code_(code),
        where_(where),
        message_(message) {}

  ErrorCode code() const noexcept { return code_; }
  const std::string& where() const noexcept { return where_; }
  const std::string& message() const noexcept { return message_; }

 private:
  ErrorCode code_;
  std::string where_;
  std::string message_;
};

}  // namespace tq4
