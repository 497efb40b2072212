// See safetensors_file.h.
#include "io/safetensors_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "io/file.h"

namespace tq4::io {
namespace {

using Json = nlohmann::json;

struct Known {
  std::string_view name;
  std::size_t bytes;
};
constexpr Known kDtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
                             {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};

/// JSON whose objects name no key twice: a second "__metadata__" or tensor would be silently lost otherwise.
Json parse_json(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) repeated = parsed.get<std::string>();
    return true;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), watch);
    if (!repeated.empty()) bad_input(where, "the safetensors header names \"" + repeated.substr(0, 100) + "\" twice");
    if (!json.is_object()) bad_input(where, "the safetensors header is no JSON object");
    return json;
  } catch (const Json::exception& error) {
    bad_input(where, std::string("the safetensors header is not valid JSON; the file is damaged (") + error.what() + ")");
  }
}

std::uint64_t unsigned_number(const Json& json, const std::string& where) {
  if (!json.is_number_unsigned()) bad_input(where, "has a size or offset that is no whole number");
  return json.get<std::uint64_t>();
}

SafetensorsEntry parse_entry(const std::string& name, const Json& json, const std::string& file) {
  const std::string where = file + ": " + name.substr(0, 200);
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") || !json.contains("data_offsets")) {
    bad_input(where, "its header entry needs exactly dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  if (!json["dtype"].is_string()) bad_input(where, "dtype is no string");
  entry.dtype = json["dtype"].get<std::string>();
  const std::size_t bytes = safetensors_dtype_size(entry.dtype);
  if (bytes == 0) bad_input(where, "dtype \"" + entry.dtype.substr(0, 40) + "\" is not known");
  if (!json["shape"].is_array() || !json["data_offsets"].is_array() || json["data_offsets"].size() != 2)
    bad_input(where, "shape or data_offsets is malformed");
  std::uint64_t total = bytes;
  for (const Json& extent : json["shape"]) {
    entry.shape.push_back(unsigned_number(extent, where));
    total = checked_multiply(total, entry.shape.back(), where);
  }
  entry.begin = unsigned_number(json["data_offsets"][0], where);
  entry.end = unsigned_number(json["data_offsets"][1], where);
  if (entry.end < entry.begin || entry.end - entry.begin != total) {
    bad_input(where, "takes bytes " + std::to_string(entry.begin) + " to " + std::to_string(entry.end) + ", but its shape needs " +
                         std::to_string(total));
  }
  return entry;
}

}  // namespace

std::uint64_t SafetensorsEntry::elements() const {
  std::uint64_t product = 1;
  for (const std::uint64_t extent : shape) product *= extent;
  return product;
}

const SafetensorsEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto found = std::find_if(entries.begin(), entries.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

std::size_t safetensors_dtype_size(std::string_view dtype) {
  for (const Known& known : kDtypes) {
    if (known.name == dtype) return known.bytes;
  }
  return 0;
}

DType dtype_from_safetensors(std::string_view dtype) {
  if (dtype == "F16") return DType::F16;
  if (dtype == "BF16") return DType::BF16;
  if (dtype == "F32") return DType::F32;
  if (dtype == "F64") return DType::F64;
  if (dtype == "U8") return DType::U8;
  if (dtype == "I32") return DType::I32;
  if (dtype == "I64") return DType::I64;
  throw Error(ErrorCode::Usage, "no element type for safetensors dtype " + std::string(dtype));
}

std::string_view safetensors_dtype(DType dtype) {
  switch (dtype) {
    case DType::F16: return "F16";
    case DType::BF16: return "BF16";
    case DType::F32: return "F32";
    case DType::F64: return "F64";
    case DType::U8: return "U8";
    case DType::I32: return "I32";
    case DType::I64: return "I64";
  }
  throw Error(ErrorCode::Usage, "unknown element type");
}

std::uint64_t safetensors_json_length(std::span<const std::uint8_t, 8> prefix, std::uint64_t file_size, const std::string& where) {
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[static_cast<std::size_t>(i)];
  if (length > kMaxSafetensorsHeader)
    bad_input(where, "not a safetensors file: a header of " + std::to_string(length) + " bytes is past the format's limit");
  if (length + 8 > file_size) {
    bad_input(where, "the safetensors header needs " + std::to_string(length + 8) + " bytes, the file has " + std::to_string(file_size) +
                         "; it was cut short");
  }
  return length;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, std::uint64_t file_size, const std::string& where) {
  const Json json = parse_json(text, where);
  SafetensorsHeader header;
  header.data_start = 8 + text.size();
  for (const auto& [name, value] : json.items()) {
    if (name != "__metadata__") {
      header.entries.push_back(parse_entry(name, value, where));
      continue;
    }
    if (!value.is_object()) bad_input(where, "__metadata__ is no JSON object");
    for (const auto& [key, entry] : value.items()) {
      if (!entry.is_string()) bad_input(where, "__metadata__ entry \"" + key.substr(0, 100) + "\" is no string");
      header.metadata[key] = entry.get<std::string>();
    }
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::uint64_t at = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != at)
      bad_input(where + ": " + entry.name.substr(0, 200),
                "begins at byte " + std::to_string(entry.begin) + " of the data instead of " + std::to_string(at));
    at = entry.end;
  }
  const std::uint64_t present = file_size - header.data_start;
  if (at != present) {
    bad_input(where, "the tensors need " + std::to_string(at) + " bytes of data, the file has " + std::to_string(present) +
                         (at > present ? "; it was cut short, copy it again" : "; bytes follow the last tensor"));
  }
  return header;
}

std::string render_safetensors_header(const std::map<std::string, std::string>& metadata, const std::vector<SafetensorsEntry>& entries) {
  nlohmann::ordered_json json;
  json["__metadata__"] = metadata;
  for (const SafetensorsEntry& entry : entries) {
    nlohmann::ordered_json& tensor = json[entry.name];
    tensor["dtype"] = entry.dtype;
    tensor["shape"] = entry.shape;
    tensor["data_offsets"] = {entry.begin, entry.end};
  }
  std::string text = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.append((64 - (text.size() + 8) % 64) % 64, ' ');
  std::string prefix(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
  return prefix + text;
}

}  // namespace tq4::io
