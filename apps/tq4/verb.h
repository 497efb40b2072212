// The pattern every verb follows: one file, one function, one line in CMakeLists.txt (tq4_verb(name)). The file defines
// `Action add_<name>(CLI::App& app)`, which declares the verb's options and returns what to run once they are parsed. The action throws
// tq4::Error; main.cpp turns it into one line on stderr and the exit status. Shared pieces: args.h (sizes, ranges, lists), common_args.h
// (codec, selection, output, execution options), table.h and report.h (text, CSV, JSON), progress.h, interrupt.h.
//
//   namespace tq4::cli {
//   Action add_profile(CLI::App& app) {
//     auto options = std::make_shared<Options>();
//     describe(app, "Time the fused paged decode", {{"tq4 profile --ctx 1k..32k", "sweep the context length"}, {...}});
//     add_parsed(app, "--ctx", options->ctx, parse_sizes, "SIZES", "1k..32k", "Context lengths in tokens");
//     return [options] { run(*options); };
//   }
//   }
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "tq4/error.h"

namespace tq4::cli {

/// Runs a verb whose options have been parsed.
using Action = std::function<void()>;

struct Example {
  std::string command;
  std::string does;
};

/// Sets the verb's one-line description and the examples shown under its options, in the man page and nowhere else twice.
void describe(CLI::App& app, const std::string& summary, const std::vector<Example>& examples);

/// Adds an option whose text is turned into a T by `parse`, which throws tq4::Error (Usage); the option's name is added to the message.
/// `preset` is the default as text (parsed at once; empty: leave `target` alone), `type` the placeholder in the help ("SIZES", "BITS").
template <class T, class Parse>
CLI::Option* add_parsed(CLI::App& app, const std::string& name, T& target, Parse parse, const std::string& type, const std::string& preset,
                        const std::string& help) {
  if (!preset.empty()) target = parse(preset);
  const std::string first = name.substr(0, name.find(','));
  CLI::Option* option = app.add_option_function<std::string>(
      name,
      [&target, parse, first](const std::string& text) {
        try {
          target = parse(text);
        } catch (const Error& error) {
          throw Error(error.code(), error.message(), first);
        }
      },
      help);
  return option->type_name(type)->default_str(preset);
}

struct Verb {
  const char* name;
  Action (*add)(CLI::App& app);
};
/// Every verb registered in CMakeLists.txt, in that order.
const std::vector<Verb>& verbs();

}  // namespace tq4::cli
