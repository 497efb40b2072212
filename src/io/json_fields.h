// Reading metadata JSON that nobody vouches for: every field is asked for by name, type and range, anything else is BadInput.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "io/file.h"

namespace tq4::io {

inline nlohmann::json parse_metadata(const std::string& text, const std::string& where) {
  nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) bad_input(where, "is not valid JSON");
  return json;
}

/// One JSON object; finish() refuses fields that nobody asked for.
class Fields {
 public:
  Fields(const nlohmann::json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) bad_input(where_, "is no JSON object");
  }
  const nlohmann::json& at(const char* name) {
    const auto found = json_.find(name);
    if (found == json_.end()) bad_input(where_, std::string(name) + " is missing");
    ++asked_;
    return *found;
  }
  std::int64_t integer(const char* name, std::int64_t lowest, std::int64_t highest) {
    const nlohmann::json& value = at(name);
    const bool fits =
        value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(highest) : value.is_number_integer();
    if (!fits || value.get<std::int64_t>() < lowest || value.get<std::int64_t>() > highest) {
      bad_input(where_, std::string(name) + " is no whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
    }
    return value.get<std::int64_t>();
  }
  int small(const char* name, int lowest, int highest) { return static_cast<int>(integer(name, lowest, highest)); }
  double number(const char* name) {
    const nlohmann::json& value = at(name);
    if (!value.is_number()) bad_input(where_, std::string(name) + " is no number");
    return value.get<double>();
  }
  bool flag(const char* name) {
    const nlohmann::json& value = at(name);
    if (!value.is_boolean()) bad_input(where_, std::string(name) + " is neither true nor false");
    return value.get<bool>();
  }
  std::string text(const char* name) {
    const nlohmann::json& value = at(name);
    if (!value.is_string()) bad_input(where_, std::string(name) + " is no string");
    return value.get<std::string>();
  }
  void finish() const {
    if (asked_ != json_.size()) bad_input(where_, "has fields this version does not know");
  }
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& json_;
  std::string where_;
  std::size_t asked_ = 0;
};

/// JSON text; invalid UTF-8 is replaced, since attributes come from files of any quality.
inline std::string dump_json(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace tq4::io
