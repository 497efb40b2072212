// See checksum.h and sealed_file.h. xxHash is used header-only, so nothing more needs linking.
#include "io/checksum.h"

#include <new>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "io/sealed_file.h"

namespace tq4::io {

std::uint64_t xxh3(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }

namespace {
XXH3_state_t* state_of(void* state) { return static_cast<XXH3_state_t*>(state); }
}  // namespace

RunningHash::RunningHash() : state_(XXH3_createState()) {
  if (state_ == nullptr || XXH3_64bits_reset(state_of(state_)) == XXH_ERROR) throw std::bad_alloc();
}
RunningHash::~RunningHash() { XXH3_freeState(state_of(state_)); }
void RunningHash::update(const void* data, std::size_t bytes) {
  XXH3_64bits_update(state_of(state_), data, bytes);
  bytes_ += bytes;
}
std::uint64_t RunningHash::digest() const { return XXH3_64bits_digest(state_of(state_)); }

std::uint64_t seal(std::string header, std::size_t digits, const std::vector<std::uint64_t>& checksums) {
  header.replace(digits, 16, 16, '0');
  header.append(reinterpret_cast<const char*>(checksums.data()), checksums.size() * sizeof(std::uint64_t));
  return xxh3(header.data(), header.size());
}

std::size_t find_seal(std::string_view header) {
  constexpr std::string_view key = "\"xxh3\":\"";
  const std::size_t at = header.find(key);
  if (at == std::string_view::npos || header.find(key, at + 1) != std::string_view::npos) return std::string::npos;
  const std::size_t digits = at + key.size();
  return digits + 16 < header.size() && header[digits + 16] == '"' ? digits : std::string::npos;
}

std::string hex16(std::uint64_t value) {
  std::string text(16, '0');
  for (std::size_t i = 16; i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

std::uint64_t parse_hex16(const std::string& text, const std::string& where) {
  std::uint64_t value = 0;
  const bool ok = text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!ok) bad_input(where, "\"" + text.substr(0, 40) + "\" is no 16-digit hexadecimal number");
  for (const char c : text) value = value << 4 | static_cast<std::uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  return value;
}

}  // namespace tq4::io
