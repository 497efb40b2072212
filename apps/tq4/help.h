// Help in 80 columns, grouped, with defaults and examples; and suggestions for mistyped verbs and options.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "verb.h"

namespace tq4::cli {

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override;
};

/// The examples given to describe(); empty for others.
const std::vector<Example>& examples_of(const CLI::App& app);

/// Options of a verb by group, in the order declared ("Help" last); positionals first under "Arguments".
struct OptionGroup {
  std::string name;
  std::vector<const CLI::Option*> options;
};
std::vector<OptionGroup> option_groups(const CLI::App& app);

/// "-o, --output PATH" or "DUMP"; what an option's left column shows.
std::string option_signature(const CLI::Option& option);
/// Its description with the default appended.
std::string option_help(const CLI::Option& option);

/// The verbs of the root application that are not hidden.
std::vector<const CLI::App*> listed_verbs(const CLI::App& root);

/// Words of `text` filled into lines of at most `width` columns, every line but the first indented by `indent`.
std::string wrap(const std::string& text, std::size_t indent, std::size_t width = 80);

/// A sentence for an unknown verb, or for options a verb does not have: what it was, what was perhaps meant.
std::string unknown_verb(const CLI::App& root, const std::string& typed);
std::string unknown_arguments(const CLI::App& verb, const std::vector<std::string>& typed);

}  // namespace tq4::cli
