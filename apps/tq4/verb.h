// The pattern every verb follows: one file, one function, one line in CMakeLists.txt. The file defines
// `Action add_<name>(VerbOptions& app)`, which declares the verb's options and returns what to run once they are parsed. The action throws
// tq4::Error; main.cpp turns it into one line on stderr and the exit status. Shared pieces: args.h (sizes, ranges, lists), common_args.h
// (codec, selection, output, execution options), table.h and report.h (text, CSV, JSON), progress.h, interrupt.h.
//
//   namespace tq4::cli {
//   Action add_profile(VerbOptions& app) {
//     auto options = std::make_shared<Options>();
//     describe(app, "Time the fused paged decode", {{"tq4 profile --ctx 1k..32k", "sweep the context length"}, {...}});
//     add_parsed(app, "--ctx", options->ctx, parse_sizes, "SIZES", "1k..32k", "Context lengths in tokens");
//     return [options] { run(*options); };
//   }
//   }
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tq4/error.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tq4::cli {

/// Runs a verb whose options have been parsed.
using Action = std::function<void()>;

struct Example {
  std::string command;
  std::string does;
};

/// An option or flag of a verb: CLI11's, behind a pointer, so that the files of verbs do not compile CLI11.
class Option {
 public:
  Option() = default;
  explicit Option(CLI::Option* option) : option_(option) {}
  Option required() const;
  Option type_name(const std::string& name) const;    ///< the placeholder in the help
  Option group(const std::string& name) const;        ///< the heading it stands under
  Option default_str(const std::string& text) const;  ///< the default shown
  Option capture_default_str() const;                 ///< its target's value is the default shown
  bool given() const;                                 ///< once the command line has been parsed

 private:
  CLI::Option* option_ = nullptr;
};

/// What a verb's options are added to. Targets must live as long as the program parses.
class VerbOptions {
 public:
  explicit VerbOptions(CLI::App& app) : app_(app) {}
  Option add_option(const std::string& name, std::string& target, const std::string& help);
  Option add_option(const std::string& name, std::vector<std::string>& target, const std::string& help);
  Option add_option(const std::string& name, const std::function<void(const std::string&)>& take, const std::string& help);
  Option add_list(const std::string& name, const std::function<void(const std::vector<std::string>&)>& take, const std::string& help);
  Option add_flag(const std::string& name, bool& target, const std::string& help);
  Option add_flag(const std::string& name, const std::function<void()>& take, const std::string& help);
  /// Another help text for an option that is there.
  void explain(const std::string& name, const std::string& help);
  CLI::App& app() { return app_; }

 private:
  CLI::App& app_;
};

/// Sets the verb's one-line description and the examples shown under its options, in the man page and nowhere else twice.
void describe(VerbOptions& options, const std::string& summary, const std::vector<Example>& examples);

/// Adds an option whose text is turned into a T by `parse`, which throws tq4::Error (Usage); the option's name is added to the message.
/// `preset` is the default as text (parsed at once; empty: leave `target` alone), `type` the placeholder in the help ("SIZES", "BITS").
template <class T, class Parse>
Option add_parsed(VerbOptions& app, const std::string& name, T& target, Parse parse, const std::string& type, const std::string& preset,
                  const std::string& help) {
  if (!preset.empty()) target = parse(preset);
  const std::string first = name.substr(0, name.find(','));
  const auto take = [&target, parse, first](const std::string& text) {
    try {
      target = parse(text);
    } catch (const Error& error) {
      throw Error(error.code(), error.message(), first);
    }
  };
  return app.add_option(name, std::function<void(const std::string&)>(take), help).type_name(type).default_str(preset);
}

struct Verb {
  const char* name;
  Action (*add)(VerbOptions& app);
};
/// Every verb registered in CMakeLists.txt, in that order.
const std::vector<Verb>& verbs();

}  // namespace tq4::cli
