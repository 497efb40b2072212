// Texts generated from the option tree: shell completions and the man page. Nothing in them is written by hand twice.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace tq4::cli {

std::string bash_completion(const CLI::App& root);
std::string zsh_completion(const CLI::App& root);
std::string fish_completion(const CLI::App& root);
/// roff (man macros).
std::string man_page(const CLI::App& root);

}  // namespace tq4::cli
