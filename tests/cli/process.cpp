// See process.h.
#include "process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

namespace tq4::cli_test {
namespace {

[[noreturn]] void become_program(const std::vector<std::string>& arguments, const Conditions& conditions, int out, int err) {
  const int in = ::open(conditions.input.empty() ? "/dev/null" : conditions.input.c_str(), O_RDONLY);
  ::dup2(in, STDIN_FILENO);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(err, STDERR_FILENO);
  if (conditions.max_file_bytes > 0) {
    const rlimit limit{conditions.max_file_bytes, conditions.max_file_bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  if (conditions.unprivileged && ::getuid() == 0 && ::setuid(65534) != 0) ::_exit(99);
  for (const std::string& variable : conditions.environment) ::putenv(const_cast<char*>(variable.c_str()));
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ::execv(argv[0], argv.data());
  ::_exit(127);
}

Result run_arguments(const std::vector<std::string>& arguments, const Conditions& conditions) {
  int out[2], err[2];
  if (::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) return {};
  const pid_t child = ::fork();
  if (child == 0) become_program(arguments, conditions, out[1], err[1]);
  ::close(out[1]);
  ::close(err[1]);
  std::thread killer;
  if (conditions.signal != 0) {
    killer = std::thread([&] {
      std::this_thread::sleep_for(conditions.after);
      ::kill(child, conditions.signal);  // a zombie until waited for below: the pid is still the child's
    });
  }
  Result result;
  pollfd fds[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  for (int open = 2; open > 0;) {
    ::poll(fds, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t got = ::read(fds[i].fd, buffer, sizeof(buffer));
      if (got > 0) {
        (i == 0 ? result.out : result.err).append(buffer, static_cast<std::size_t>(got));
      } else {
        ::close(fds[i].fd);
        fds[i].fd = -1;
        --open;
      }
    }
  }
  if (killer.joinable()) killer.join();
  int status = 0;
  ::waitpid(child, &status, 0);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace

Result run_program(const std::vector<std::string>& arguments, const Conditions& conditions) {
  std::vector<std::string> all{TQ4_PROGRAM};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return run_arguments(all, conditions);
}

Result run_shell(const std::string& command) {
  return run_arguments({"/bin/bash", "-c", "tq4() { '" TQ4_PROGRAM "' \"$@\"; }; set -o pipefail; " + command}, {});
}

Scratch::Scratch() {
  std::string name = (std::filesystem::temp_directory_path() / "tq4-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  folder_ = name;
  std::filesystem::permissions(folder_, std::filesystem::perms::all);
}

Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::vector<std::string> Scratch::names() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string safetensors(const std::vector<Array>& arrays) {
  std::string header = "{", data;
  for (const Array& array : arrays) {
    std::int64_t count = 1;
    std::string shape;
    for (const std::int64_t n : array.shape) {
      count *= n;
      shape += (shape.empty() ? "" : ",") + std::to_string(n);
    }
    std::vector<float> values = array.values;
    values.resize(static_cast<std::size_t>(count), 0.0f);
    const std::size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    header += (header.size() > 1 ? "," : "") + ('"' + array.name + "\":{\"dtype\":\"F32\",\"shape\":[" + shape + "],\"data_offsets\":[" +
                                                std::to_string(begin) + ',' + std::to_string(data.size()) + "]}");
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), 8);
  return file + header + data;
}

std::vector<Array> random_layer(int layer, int heads, int tokens, int dim) {
  std::mt19937 random(static_cast<unsigned>(layer) + 1);
  std::normal_distribution<float> normal;
  std::vector<Array> arrays;
  for (const char* side : {"key", "value"}) {
    Array array{"layer_" + std::to_string(layer) + "_" + side, {heads, tokens, dim}, {}};
    array.values.resize(static_cast<std::size_t>(heads) * static_cast<std::size_t>(tokens) * static_cast<std::size_t>(dim));
    for (float& value : array.values) value = normal(random);
    arrays.push_back(std::move(array));
  }
  return arrays;
}

}  // namespace tq4::cli_test
