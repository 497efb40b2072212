// tq4 completions: shell completions and the man page, generated from the option tree. The build runs it to make the files it installs.
#include "man_page.h"
#include "report.h"
#include "verb.h"

namespace tq4::cli {

Action add_completions(VerbOptions& app) {
  struct Options {
    std::string kind, output = "-";
    bool force = false;
  };
  auto options = std::make_shared<Options>();
  describe(app, "Write shell completions or the man page",
           {{"tq4 completions bash > ~/.local/share/bash-completion/completions/tq4", "completion for one user"},
            {"tq4 completions man -o tq4.1", "the man page; read it with man ./tq4.1"}});
  app.add_option("KIND", options->kind, "bash, zsh, fish or man").required();
  app.add_option("-o,--output", options->output, "Where to write").type_name("PATH").default_str("-").group("Output");
  app.add_flag("--force", options->force, "Replace the file if it exists").group("Output");
  const CLI::App* root = app.app().get_parent();
  return [options, root] {
    std::string text;
    if (options->kind == "bash") text = bash_completion(*root);
    if (options->kind == "zsh") text = zsh_completion(*root);
    if (options->kind == "fish") text = fish_completion(*root);
    if (options->kind == "man") text = man_page(*root);
    if (text.empty()) throw Error(ErrorCode::Usage, "'" + options->kind + "' is not one of bash, zsh, fish, man", "KIND");
    write_text_file(options->output, text, options->force);
  };
}

}  // namespace tq4::cli
