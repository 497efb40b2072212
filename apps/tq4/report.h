// Where results go: one table on stdout for people, JSON and CSV for programs. With --json - or --csv - stdout carries that alone.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "common_args.h"
#include "table.h"

namespace tq4::cli {

/// The fields every JSON result starts with: schema_version, tool, verb, arguments, build, host, gpu. Base units: seconds, bytes.
nlohmann::json result_envelope(std::string_view verb);

/// Fails before any work is done when a result file exists already (and no --force), or when --json and --csv both ask for stdout.
void check_outputs(const OutputOptions& options);

/// Writes the JSON and CSV asked for, then prints `text` (usually table.text()) on stdout unless one of them went there.
void emit(const OutputOptions& options, const nlohmann::json& result, const Table& table, const std::string& text);

/// Writes a small text file atomically; "-" = stdout. Throws Usage when it exists and `force` is false.
void write_text_file(const std::string& path, const std::string& text, bool force);

/// A note on stderr ("tq4: ..."), unless quiet.
void note(const OutputOptions& options, const std::string& text);

/// Set once by main: the arguments as typed.
void remember_arguments(int argc, char** argv);

}  // namespace tq4::cli
