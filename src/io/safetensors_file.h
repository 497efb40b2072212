// The safetensors format, read and written byte for byte: 8 bytes little-endian header length, a JSON header, the data. The parser trusts
// nothing: every number is checked before it is used, and what the reference implementation refuses is refused here (holes, overlaps,
// trailing bytes, lengths that do not fit the shape).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/types.h"

namespace tq4::io {

/// An entry of the header. `dtype` is the format's own word ("F16", "BF16", "F32", "U8", "I64", ...). Offsets count from the data's start.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;
  std::uint64_t elements() const;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;                ///< `__metadata__`
  std::vector<SafetensorsEntry> entries;                      ///< ascending by offset
  std::uint64_t data_start = 0;                               ///< file offset of the data
  const SafetensorsEntry* find(std::string_view name) const;  ///< null when absent; linear
};

/// The reference implementation's limit on the header's length.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

/// Bytes of an element of a safetensors dtype; 0 for one that is not known.
std::size_t safetensors_dtype_size(std::string_view dtype);
/// Our type for a safetensors dtype and back; Usage for one that has none.
DType dtype_from_safetensors(std::string_view dtype);
std::string_view safetensors_dtype(DType dtype);

/// Length of the JSON from the first 8 bytes; BadInput when it cannot be one for a file of `file_size` bytes.
std::uint64_t safetensors_json_length(std::span<const std::uint8_t, 8> prefix, std::uint64_t file_size, const std::string& where);

/// Parses the JSON of a file of `file_size` bytes. BadInput says what is wrong.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t file_size, const std::string& where);

/// Prefix and JSON for the entries as given (offsets must be final), padded with spaces so that the data begins at a multiple of 64.
std::string render_safetensors_header(const std::map<std::string, std::string>& metadata, const std::vector<SafetensorsEntry>& entries);

}  // namespace tq4::io
