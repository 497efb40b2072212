// Options of verbs, handed on to CLI11.
#include "verb.h"

#include <CLI/CLI.hpp>

namespace tq4::cli {

Option Option::required() const { return Option(option_->required()); }
Option Option::type_name(const std::string& name) const { return Option(option_->type_name(name)); }
Option Option::group(const std::string& name) const { return Option(option_->group(name)); }
Option Option::default_str(const std::string& text) const { return Option(option_->default_str(text)); }
Option Option::capture_default_str() const { return Option(option_->capture_default_str()); }
bool Option::given() const { return option_->count() > 0; }

Option VerbOptions::add_option(const std::string& name, std::string& target, const std::string& help) {
  return Option(app_.add_option(name, target, help));
}
Option VerbOptions::add_option(const std::string& name, std::vector<std::string>& target, const std::string& help) {
  return Option(app_.add_option(name, target, help));
}
Option VerbOptions::add_option(const std::string& name, const std::function<void(const std::string&)>& take, const std::string& help) {
  return Option(app_.add_option_function<std::string>(name, take, help));
}
Option VerbOptions::add_list(const std::string& name, const std::function<void(const std::vector<std::string>&)>& take,
                             const std::string& help) {
  return Option(app_.add_option_function<std::vector<std::string>>(name, take, help));
}
Option VerbOptions::add_flag(const std::string& name, bool& target, const std::string& help) {
  return Option(app_.add_flag(name, target, help));
}
Option VerbOptions::add_flag(const std::string& name, const std::function<void()>& take, const std::string& help) {
  return Option(app_.add_flag(
      name, [take](std::int64_t) { take(); }, help));
}
void VerbOptions::explain(const std::string& name, const std::string& help) {
  if (CLI::Option* option = app_.get_option_no_throw(name)) option->description(help);
}

}  // namespace tq4::cli
