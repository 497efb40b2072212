// JSON envelope and result files; see report.h.
#include "report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "build_info.h"
#include "tq4/container.h"

namespace tq4::cli {
namespace {

std::vector<std::string>& arguments() {
  static std::vector<std::string> list;
  return list;
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    throw Error(ErrorCode::Runtime, fmt::format("cannot write: {}", std::strerror(errno)), "standard output");
}

}  // namespace

void remember_arguments(int argc, char** argv) { arguments().assign(argv, argv + argc); }

nlohmann::json result_envelope(std::string_view verb) {
  return {{"schema_version", 1},   {"tool", "tq4"},       {"verb", verb},     {"arguments", arguments()},
          {"build", build_json()}, {"host", host_json()}, {"gpu", gpu_json()}};
}

void check_outputs(const OutputOptions& options) {
  if (options.json == "-" && options.csv == "-") throw Error(ErrorCode::Usage, "--json - and --csv - both ask for standard output");
  if (!options.json.empty() && options.json == options.csv)
    throw Error(ErrorCode::Usage, "--json and --csv name the same file", options.json);
  if (options.force) return;
  for (const std::string& path : {options.json, options.csv}) {
    if (!path.empty() && path != "-" && exists(path)) throw Error(ErrorCode::Usage, "exists already; --force replaces it", path);
  }
}

void write_text_file(const std::string& path, const std::string& text, bool force) {
  if (path == "-") {
    print(text);
    return;
  }
  AtomicFile file(path, force);
  file.write(text.data(), text.size());
  file.commit();
}

void emit(const OutputOptions& options, const nlohmann::json& result, const Table& table, const std::string& text) {
  if (!options.json.empty()) write_text_file(options.json, result.dump(2) + "\n", options.force);
  if (!options.csv.empty()) write_text_file(options.csv, table.csv(), options.force);
  if (options.json != "-" && options.csv != "-") print(text);
}

void note(const OutputOptions& options, const std::string& text) {
  if (!options.quiet) fmt::print(stderr, "tq4: {}\n", text);
}

}  // namespace tq4::cli
