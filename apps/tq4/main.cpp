// tq4, the program: builds the option tree from the registered verbs, parses, runs one verb, and turns whatever goes wrong into one line on
// stderr and a documented exit status (tq4/error.h). Nothing else in the program prints errors or exits.
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "build_info.h"
#include "help.h"
#include "interrupt.h"
#include "report.h"
#include "verb.h"

namespace {

using namespace tq4;
using namespace tq4::cli;

int fail(const std::string& verb, ErrorCode code, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "tq4{}{}: {}\n", verb.empty() ? "" : " ", verb, message);
  return static_cast<int>(code);
}

int usage(const CLI::App* verb, const std::string& message) {
  const std::string name = verb == nullptr ? "" : verb->get_name();
  fail(name, ErrorCode::Usage, message);
  fmt::print(stderr, "See tq4{}{} --help.\n", name.empty() ? "" : " ", name);
  return static_cast<int>(ErrorCode::Usage);
}

int run(int argc, char** argv) {
  CLI::App root{"KV-cache compression: TurboQuant codecs for files, page caches and GPUs"};
  auto formatter = std::make_shared<HelpFormatter>();
  root.formatter(formatter);
  root.set_help_flag("-h,--help", "Show this help and exit");
  bool version = false, json = false;
  root.add_flag("--version", version, "Show version, commit, compiler, CUDA, SIMD target and HDF5, and exit")->group("Help");
  root.add_flag("--json", json, "With --version: as JSON")->group("Help");
  VerbOptions top(root);
  describe(top, root.get_description(),
           {{"tq4 compress dump.h5 --bits 4", "Compress keys and values to dump.tq4 and print what it cost"},
            {"tq4 inspect dump.tq4", "Show the codec, the sizes and the effective bits a value"},
            {"tq4 decompress dump.tq4 -o back.h5", "Get a dump back"}});

  std::vector<Action> actions;
  std::vector<CLI::App*> subs;
  for (const Verb& verb : verbs()) {
    CLI::App* sub = root.add_subcommand(verb.name);
    sub->formatter(formatter);
    sub->set_help_flag("-h,--help", "Show this help and exit");
    VerbOptions options(*sub);
    actions.push_back(verb.add(options));
    for (CLI::Option* option : sub->get_options()) {  // "" is a variable that the caller's script did not set
      if (option->get_expected_max() > 0)
        option->check(CLI::Validator([](std::string& text) { return text.empty() ? "is empty" : ""; }, ""));
    }
    subs.push_back(sub);
  }

  // `tq4 help VERB` is `tq4 VERB --help`. CLI11 calls an unknown verb "a subcommand is required", so it is looked up first.
  std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) {
    fmt::print(stderr, "{}", root.help());
    return static_cast<int>(ErrorCode::Usage);
  }
  if (words.front() == "help") {
    words.erase(words.begin());
    words.push_back("--help");
  }
  const CLI::App* verb = nullptr;
  if (words.front().front() != '-') {
    for (const CLI::App* sub : subs) {
      if (sub->get_name() == words.front()) verb = sub;
    }
    if (verb == nullptr) return usage(nullptr, unknown_verb(root, words.front()));
  }

  try {
    root.parse(std::vector<std::string>(words.rbegin(), words.rend()));
    if (version) {
      fmt::print("{}", json ? build_json().dump(2) + "\n" : version_text());
      return 0;
    }
    if (verb == nullptr) return usage(nullptr, "a verb is missing");
    for (std::size_t i = 0; i < subs.size(); ++i) {
      if (subs[i] == verb) actions[i]();
    }
    return 0;
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", verb == nullptr ? root.help() : verb->help());
    return 0;
  } catch (const CLI::ExtrasError& error) {
    const std::vector<std::string> extra = verb == nullptr ? root.remaining() : verb->remaining();
    return usage(verb, extra.empty() ? error.what() : unknown_arguments(verb == nullptr ? root : *verb, extra));
  } catch (const CLI::ParseError& error) {
    return usage(verb, error.what());
  } catch (const Error& error) {
    return fail(verb == nullptr ? "" : verb->get_name(), error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(verb == nullptr ? "" : verb->get_name(), ErrorCode::Runtime, "out of memory");
  } catch (const std::exception& error) {
    return fail(verb == nullptr ? "" : verb->get_name(), ErrorCode::Runtime, error.what());
  }
}

}  // namespace

int main(int argc, char** argv) {
  install_interrupt_handlers();
  remember_arguments(argc, argv);
  int status = 0;
  try {
    status = run(argc, argv);
  } catch (const std::exception& error) {  // the option tree itself is wrong: a bug, still one line
    status = fail("", ErrorCode::Runtime, error.what());
  }
  if (std::fflush(stdout) != 0 && status == 0) status = fail("", ErrorCode::Runtime, "cannot write to standard output");
  // After a failed write libhdf5's own exit handler crashes trying to flush again; there is nothing left to do for anyone's exit handler.
  if (status != 0) std::_Exit(status);
  return 0;
}
