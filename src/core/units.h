// The order of 3-bit codes in native pages (tq4/layout.h): units of 12 bytes, four groups of 8 codes each. A row's 24 bits straddle bytes at every
// other code; in a unit three of a group's four pairs have a byte of their own, so the decode kernel's look-ups take it as it is, and the fourth
// pairs of all four groups come out of the bits left over together.
#pragma once

#include <cstdint>

#include "core/side.h"
#include "tq4/layout.h"

namespace tq4::core {

/// Whether a side's codes lie in units.
inline bool in_units(const SideSpec& side, int head_dim) {
  return (side.kind == CodeKind::Mse || side.kind == CodeKind::Uniform) && side.bits == 3 && head_dim % 64 == 0;
}

/// Where group `group` (coordinates 8 * group on) of token 0 to 15 begins among a tile's K codes: its bytes are this one, the fourth and the eighth after.
constexpr int key_unit_byte(int head_dim, int token, int group) {
  const int chunk = head_dim % 128 == 0 ? 4 : head_dim / 32;  // groups that lie together in a piece (KeyOrder of the decode kernel)
  const int piece = group / chunk % 4, k = group / chunk / 4 * chunk + group % chunk;
  return ((token % 8 * 4 + piece) * (head_dim / 64) + k / 2) * 12 + token / 8 * 2 + k % 2;
}
/// The same among a tile's V codes.
constexpr int value_unit_byte(int head_dim, int token, int group) {
  const int units = head_dim / 64;
  return ((group / units * 4 + token % 8 / 2) * units + group % units) * 12 + token / 8 * 2 + token % 2;
}

/// The three bytes of a group (the first in the lowest bits) from its 24 bits in a row, code j in bits [3 j, 3 j + 3).
constexpr std::uint32_t group_to_unit(std::uint32_t row) {
  std::uint32_t bytes = 0;
  for (int p = 0; p < 3; ++p) {
    const std::uint32_t even = row >> 6 * p & 7, odd = row >> (6 * p + 3) & 7, sixth = row >> (18 + p) & 1, seventh = row >> (21 + p) & 1;
    bytes |= (sixth | even << 1 | seventh << 4 | odd << 5) << 8 * p;
  }
  return bytes;
}
/// The inverse.
constexpr std::uint32_t group_from_unit(std::uint32_t bytes) {
  std::uint32_t row = 0;
  for (int p = 0; p < 3; ++p) {
    const std::uint32_t byte = bytes >> 8 * p;
    row |= (byte >> 1 & 7) << 6 * p | (byte >> 5 & 7) << (6 * p + 3) | (byte & 1) << (18 + p) | (byte >> 4 & 1) << (21 + p);
  }
  return row;
}

/// Pages of the native layout from before there were units (rows of 3-bit codes, packed as elsewhere, V in pieces) to what they are now, in place.
void rows_to_units(const PageLayout& layout, std::uint8_t* cache, std::int64_t num_blocks);

}  // namespace tq4::core
