// Runs the tq4 program as a process and keeps what it said; scratch folders and small files for its input.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tq4::cli_test {

struct Result {
  int status = -1;  ///< exit status, or 128 + signal that killed it
  std::string out, err;
};

struct Conditions {
  std::string input;                 ///< path standard input comes from; empty = /dev/null
  std::uint64_t max_file_bytes = 0;  ///< RLIMIT_FSIZE; 0 = none
  bool unprivileged = false;         ///< run as nobody when the test runs as root, so that permissions mean something
  int signal = 0;                    ///< sent after `after`
  std::chrono::microseconds after{0};
  std::vector<std::string> environment;  ///< added: "NAME=value"
};
Result run_program(const std::vector<std::string>& arguments, const Conditions& conditions = {});
/// The program with a whole command line for the shell; `tq4` in it stands for the program under test.
Result run_shell(const std::string& command);

/// A folder of its own, removed with everything in it.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  std::string path(const std::string& name = "") const { return (folder_ / name).string(); }
  std::vector<std::string> names() const;  ///< everything in it, sorted

 private:
  std::filesystem::path folder_;
};

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

/// A safetensors file of fp32 tensors.
struct Array {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;  ///< empty = zeros
};
std::string safetensors(const std::vector<Array>& arrays);
/// K and V of one layer, [heads, tokens, dim], normally distributed.
std::vector<Array> random_layer(int layer, int heads, int tokens, int dim);

}  // namespace tq4::cli_test
