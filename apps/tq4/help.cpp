// See help.h. CLI11's own formatter neither wraps nor shows defaults; this one replaces it as a whole.
#include "help.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "args.h"

namespace tq4::cli {
namespace {

constexpr std::size_t kColumn = 26;  // where descriptions begin

std::map<const CLI::App*, std::vector<Example>>& example_registry() {
  static std::map<const CLI::App*, std::vector<Example>> registry;
  return registry;
}

std::string entry(const std::string& left, const std::string& right) {
  std::string line = "  " + left;
  if (line.size() + 2 > kColumn)
    line += '\n' + std::string(kColumn, ' ');
  else
    line.resize(kColumn, ' ');
  return line + wrap(right, kColumn) + '\n';
}

/// A command of the shell in lines of at most 80 columns, each but the last ending in a backslash.
std::string continued(const std::string& command) {
  const std::string filled = wrap(command, 4, 78);
  std::string out;
  for (const char c : filled) out += c == '\n' ? " \\\n" : std::string(1, c);
  return out;
}

std::string full_name(const CLI::App& app) { return app.get_parent() == nullptr ? "tq4" : "tq4 " + app.get_name(); }

}  // namespace

void describe(VerbOptions& options, const std::string& summary, const std::vector<Example>& examples) {
  options.app().description(summary);
  example_registry()[&options.app()] = examples;
}

const std::vector<Example>& examples_of(const CLI::App& app) {
  static const std::vector<Example> kNone;
  const auto found = example_registry().find(&app);
  return found == example_registry().end() ? kNone : found->second;
}

std::string wrap(const std::string& text, std::size_t indent, std::size_t width) {
  std::istringstream words(text);
  std::string out, word;
  std::size_t column = indent;
  while (words >> word) {
    if (column != indent && column + 1 + word.size() > width) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column != indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out;
}

std::string option_signature(const CLI::Option& option) {
  if (option.get_positional()) return option.get_name(true, false);
  std::string text;
  for (const std::string& name : option.get_snames()) text += (text.empty() ? "-" : ", -") + name;
  for (const std::string& name : option.get_lnames()) text += (text.empty() ? "--" : ", --") + name;
  if (option.get_type_size() != 0 && !option.get_type_name().empty()) text += ' ' + option.get_type_name();
  return text;
}

std::string option_help(const CLI::Option& option) {
  const std::string preset = option.get_default_str();
  return preset.empty() ? option.get_description() : fmt::format("{} (default: {})", option.get_description(), preset);
}

std::vector<OptionGroup> option_groups(const CLI::App& app) {
  std::vector<OptionGroup> groups{{"Arguments", {}}};
  const auto group = [&](const std::string& name) -> OptionGroup& {
    for (OptionGroup& known : groups) {
      if (known.name == name) return known;
    }
    return groups.emplace_back(OptionGroup{name, {}});
  };
  const CLI::Option* help = app.get_help_ptr();
  for (const CLI::Option* option : app.get_options()) {
    if (option == help || option->get_group().empty()) continue;
    group(option->get_positional() ? "Arguments" : option->get_group()).options.push_back(option);
  }
  if (help != nullptr) group("Help").options.push_back(help);
  std::stable_partition(groups.begin(), groups.end(), [](const OptionGroup& g) { return g.name != "Help"; });
  groups.erase(std::remove_if(groups.begin(), groups.end(), [](const OptionGroup& g) { return g.options.empty(); }), groups.end());
  return groups;
}

std::vector<const CLI::App*> listed_verbs(const CLI::App& root) {
  return root.get_subcommands([](const CLI::App* verb) { return !verb->get_group().empty(); });
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const {
  std::string out = wrap(app->get_description(), 0) + "\n\nUsage: " + full_name(*app);
  const std::vector<const CLI::App*> verb_list = listed_verbs(*app);
  if (!verb_list.empty()) out += " VERB";
  std::string positionals;
  for (const CLI::Option* option : app->get_options()) {
    if (!option->get_positional()) continue;
    const std::string name = option->get_name(true, false) + (option->get_expected_max() > 1 ? "..." : "");
    positionals += option->get_required() ? ' ' + name : " [" + name + ']';
  }
  out += " [OPTIONS]" + positionals + '\n';
  if (!verb_list.empty()) {
    out += "\nVerbs (tq4 VERB --help says more):\n";
    for (const CLI::App* verb : verb_list) out += entry(verb->get_name(), verb->get_description());
  }
  for (const OptionGroup& group : option_groups(*app)) {
    out += '\n' + group.name + ":\n";
    for (const CLI::Option* option : group.options) out += entry(option_signature(*option), option_help(*option));
  }
  if (!examples_of(*app).empty()) {
    out += "\nExamples:\n";
    for (const Example& example : examples_of(*app)) out += "  " + continued(example.command) + "\n      " + wrap(example.does, 6) + '\n';
  }
  return out;
}

std::string unknown_verb(const CLI::App& root, const std::string& typed) {
  std::vector<std::string> names;
  for (const CLI::App* verb : listed_verbs(root)) names.push_back(verb->get_name());
  const std::string near = nearest(typed, names);
  if (!near.empty()) return fmt::format("there is no verb '{}'; did you mean '{}'?", typed, near);
  return fmt::format("there is no verb '{}'; the verbs are {}", typed, fmt::join(names, ", "));
}

std::string unknown_arguments(const CLI::App& verb, const std::vector<std::string>& typed) {
  const std::string& first = typed.front();
  if (first.size() < 2 || first.front() != '-') return fmt::format("'{}' is one argument too many", first);
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  const std::string near = nearest(first.substr(0, first.find('=')), names);
  return fmt::format("there is no option '{}'{}", first, near.empty() ? "" : fmt::format("; did you mean '{}'?", near));
}

}  // namespace tq4::cli
