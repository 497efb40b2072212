// See man_page.h. An option whose placeholder is a path completes files; the others complete nothing after them.
#include "man_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "build_info.h"
#include "help.h"

namespace tq4::cli {
namespace {

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
  return text;
}

bool takes_value(const CLI::Option& option) { return option.get_type_size() != 0; }
bool takes_path(const CLI::Option& option) { return takes_value(option) && option.get_type_name() == "PATH"; }

std::vector<const CLI::Option*> named_options(const CLI::App& verb) {
  std::vector<const CLI::Option*> options;
  for (const OptionGroup& group : option_groups(verb)) {
    for (const CLI::Option* option : group.options) {
      if (!option->get_positional()) options.push_back(option);
    }
  }
  return options;
}

std::vector<std::string> spellings(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  return names;
}

std::string roff(const std::string& text) {
  std::string out = replace_all(replace_all(text, "\\", "\\e"), "-", "\\-");
  if (!out.empty() && (out.front() == '.' || out.front() == '\'')) out.insert(0, "\\&");
  return out;
}

std::string roff_options(const CLI::App& app) {
  std::string out;
  for (const OptionGroup& group : option_groups(app)) {
    out += fmt::format(".PP\n{}:\n", roff(group.name));
    for (const CLI::Option* option : group.options)
      out += fmt::format(".TP\n.B {}\n{}\n", roff(option_signature(*option)), roff(option_help(*option)));
  }
  return out;
}

std::string roff_examples(const CLI::App& app) {
  std::string out;
  for (const Example& example : examples_of(app)) out += fmt::format(".TP\n.B {}\n{}\n", roff(example.command), roff(example.does));
  return out;
}

}  // namespace

std::string bash_completion(const CLI::App& root) {
  std::string verb_names, cases;
  for (const CLI::App* verb : listed_verbs(root)) {
    std::string names, paths, values;
    for (const CLI::Option* option : named_options(*verb)) {
      for (const std::string& name : spellings(*option)) {
        names += (names.empty() ? "" : " ") + name;
        if (takes_path(*option))
          paths += (paths.empty() ? "" : "|") + name;
        else if (takes_value(*option))
          values += (values.empty() ? "" : "|") + name;
      }
    }
    verb_names += (verb_names.empty() ? "" : " ") + verb->get_name();
    cases += fmt::format("    {}) names='{}' paths='{}' values='{}' ;;\n", verb->get_name(), names, paths, values);
  }
  return fmt::format(
      "# bash completion of tq4, written by: tq4 completions bash\n"
      "_tq4() {{\n"
      "  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} names paths values\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W '{} --help --version' -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  case ${{COMP_WORDS[1]}} in\n{}    *) return ;;\n"
      "  esac\n"
      "  if [[ -n $values && $before =~ ^($values)$ ]]; then return; fi\n"
      "  if [[ $word == -* && ! ( -n $paths && $before =~ ^($paths)$ ) ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$names\" -- \"$word\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$word\"))\n"
      "  fi\n"
      "}}\n"
      "complete -o filenames -F _tq4 tq4\n",
      verb_names, cases);
}

std::string zsh_completion(const CLI::App& root) {
  const auto quote = [](std::string text) {
    for (const char* special : {"\\", "[", "]", ":"}) text = replace_all(text, special, std::string("\\") + special);
    return replace_all(text, "'", "'\\''");
  };
  std::string verb_lines, cases;
  for (const CLI::App* verb : listed_verbs(root)) {
    verb_lines += fmt::format("    '{}:{}'\n", verb->get_name(), quote(verb->get_description()));
    cases += fmt::format("    {})\n      _arguments \\\n", verb->get_name());
    for (const CLI::Option* option : named_options(*verb)) {
      for (const std::string& name : spellings(*option)) {
        const std::string value =
            !takes_value(*option) ? "" : fmt::format(":{}:{}", quote(option->get_type_name()), takes_path(*option) ? "_files" : " ");
        cases += fmt::format("        '{}[{}]{}' \\\n", name, quote(option->get_description()), value);
      }
    }
    cases += "        '*:file:_files' ;;\n";
  }
  return fmt::format(
      "#compdef tq4\n# zsh completion of tq4, written by: tq4 completions zsh\n"
      "_tq4() {{\n  local -a verbs\n  verbs=(\n{}  )\n"
      "  if (( CURRENT == 2 )); then\n    _describe verb verbs\n    return\n  fi\n"
      "  local verb=$words[2]\n  shift words\n  (( CURRENT-- ))\n"
      "  case $verb in\n{}  esac\n}}\n_tq4 \"$@\"\n",
      verb_lines, cases);
}

std::string fish_completion(const CLI::App& root) {
  const auto quote = [](const std::string& text) { return replace_all(replace_all(text, "\\", "\\\\"), "'", "\\'"); };
  std::string out = "# fish completion of tq4, written by: tq4 completions fish\n";
  for (const CLI::App* verb : listed_verbs(root))
    out += fmt::format("complete -c tq4 -f -n __fish_use_subcommand -a {} -d '{}'\n", verb->get_name(), quote(verb->get_description()));
  for (const CLI::App* verb : listed_verbs(root)) {
    for (const CLI::Option* option : named_options(*verb)) {
      out += fmt::format("complete -c tq4 -n '__fish_seen_subcommand_from {}'", verb->get_name());
      for (const std::string& name : option->get_snames()) out += " -s " + name;
      for (const std::string& name : option->get_lnames()) out += " -l " + name;
      out += fmt::format("{} -d '{}'\n",
                         takes_path(*option)    ? " -r -F"
                         : takes_value(*option) ? " -x"
                                                : "",
                         quote(option->get_description()));
    }
  }
  return out;
}

std::string man_page(const CLI::App& root) {
  std::string out = fmt::format(".TH TQ4 1 \"\" \"tq4 {}\" \"User Commands\"\n", build_info().version);
  out += ".SH NAME\ntq4 \\- " + roff(root.get_description()) + "\n.SH SYNOPSIS\n.B tq4\n.I VERB\n[OPTIONS]\n.SH OPTIONS\n" +
         roff_options(root);
  out += ".SH VERBS\n";
  for (const CLI::App* verb : listed_verbs(root)) {
    out += fmt::format(".SS {}\n{}\n", verb->get_name(), roff(verb->get_description()));
    out += roff_options(*verb) + ".PP\nExamples:\n" + roff_examples(*verb);
  }
  out += ".SH EXAMPLES\n" + roff_examples(root);
  out +=
      ".SH EXIT STATUS\n"
      ".TP\n.B 0\nSuccess.\n.TP\n.B 1\nSomething failed while running (disk full, out of memory).\n.TP\n.B 2\nWrong usage.\n"
      ".TP\n.B 3\nA file is corrupt, cut short or not what it says it is.\n.TP\n.B 4\nA result is worse than the limit that was set.\n"
      ".TP\n.B 5\nA CUDA device was asked for and there is none.\n.TP\n.B 6\nA valid combination that no code path serves.\n"
      ".TP\n.B 130\nInterrupted (128 + N by signal N); nothing was left half\\-written.\n"
      ".SH ENVIRONMENT\n.TP\n.B NO_COLOR\nNo colours in progress.\n.TP\n.B TMPDIR\nWhere data from and for pipes is spooled (default "
      "/tmp).\n";
  return out;
}

}  // namespace tq4::cli
