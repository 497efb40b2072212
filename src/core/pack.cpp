// One accumulator, filled from one side and drained from the other; see pack.h for the format.
#include "core/pack.h"

namespace tq4::core {

void pack_codes(const std::uint8_t* codes, std::size_t count, int bits, std::uint8_t* dst) noexcept {
  std::uint32_t acc = 0;
  int filled = 0;
  for (std::size_t j = 0; j < count; ++j) {
    acc |= static_cast<std::uint32_t>(codes[j]) << filled;
    filled += bits;
    while (filled >= 8) {
      *dst++ = static_cast<std::uint8_t>(acc);
      acc >>= 8;
      filled -= 8;
    }
  }
  if (filled > 0) *dst = static_cast<std::uint8_t>(acc);
}

void unpack_codes(const std::uint8_t* src, std::size_t count, int bits, std::uint8_t* codes) noexcept {
  const std::uint32_t mask = (1u << bits) - 1u;
  std::uint32_t acc = 0;
  int filled = 0;
  for (std::size_t j = 0; j < count; ++j) {
    if (filled < bits) {
      acc |= static_cast<std::uint32_t>(*src++) << filled;
      filled += 8;
    }
    codes[j] = static_cast<std::uint8_t>(acc & mask);
    acc >>= bits;
    filled -= bits;
  }
}

void pack_nibbles_high_first(const std::uint8_t* codes, std::size_t count, std::uint8_t* dst) noexcept {
  for (std::size_t i = 0; i < count / 2; ++i) dst[i] = static_cast<std::uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
}

void unpack_nibbles_high_first(const std::uint8_t* src, std::size_t count, std::uint8_t* codes) noexcept {
  for (std::size_t i = 0; i < count / 2; ++i) {
    codes[2 * i] = src[i] >> 4;
    codes[2 * i + 1] = src[i] & 15;
  }
}

}  // namespace tq4::core
