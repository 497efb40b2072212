// Reading and writing pages token by token through the addresses of layout.h. Native pages in short (FORMAT.md has it in full): a page is
// [kv head][16-token tile] of codes, then of scales; in a tile K rows lie one after another, V rows are cut in 8 pieces that interleave with those of the other
// tokens, so that a lane of the decode kernel finds the codes of its MMA fragment in consecutive bytes; scales of tokens g and g+8 are neighbours.
// Codes of 3 bits lie in units (core/units.h).
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "core/pack.h"
#include "core/side.h"
#include "core/units.h"
#include "tq4/error.h"
#include "tq4/layout.h"
#include "tq4/types.h"

namespace tq4 {
namespace {

constexpr int kMaxDim = 512;  ///< validate() lets no larger head_dim through
static_assert(std::endian::native == std::endian::little, "pages are little-endian");

/// Moves one vector's planes between a page and the planes of the caller. Writing and reading share every address: Direction is a
/// policy whose bytes()/half()/word() copy one way or the other.
struct Writer {
  using Planes = EncodedIn;
  using Byte = std::uint8_t;
  static constexpr bool kReads = false;
  static void bytes(Byte* page, const std::uint8_t* plane, std::size_t count) { std::memcpy(page, plane, count); }
  /// Eight codes of 3 bits to their three bytes of a unit.
  static void group(Byte* unit, const std::uint8_t* plane) {
    const std::uint32_t bytes = core::group_to_unit(plane[0] | plane[1] << 8 | static_cast<std::uint32_t>(plane[2]) << 16);
    for (int p = 0; p < 3; ++p) unit[4 * p] = static_cast<std::uint8_t>(bytes >> 8 * p);
  }
  static void half(Byte* page, const float* plane) {
    const std::uint16_t bits = float_to_half(*plane);
    std::memcpy(page, &bits, sizeof(bits));
  }
  static void word(Byte* page, const float* plane) { std::memcpy(page, plane, sizeof(float)); }
  static void nibbles(Byte* page, const std::uint8_t* plane, int dim, int bits) {
    std::uint8_t codes[kMaxDim];
    core::unpack_codes(plane, static_cast<std::size_t>(dim), bits, codes);
    core::pack_nibbles_high_first(codes, static_cast<std::size_t>(dim), page);
  }
  static void unused_half(Byte* page) {
    const std::uint16_t one = 0x3c00;
    std::memcpy(page, &one, sizeof(one));
  }
};

struct Reader {
  using Planes = EncodedOut;
  using Byte = const std::uint8_t;
  static constexpr bool kReads = true;
  static void bytes(Byte* page, std::uint8_t* plane, std::size_t count) { std::memcpy(plane, page, count); }
  static void group(Byte* unit, std::uint8_t* plane) {
    const std::uint32_t row = core::group_from_unit(unit[0] | unit[4] << 8 | static_cast<std::uint32_t>(unit[8]) << 16);
    for (int p = 0; p < 3; ++p) plane[p] = static_cast<std::uint8_t>(row >> 8 * p);
  }
  static void half(Byte* page, float* plane) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, page, sizeof(bits));
    *plane = half_to_float(bits);
  }
  static void word(Byte* page, float* plane) { std::memcpy(plane, page, sizeof(float)); }
  static void nibbles(Byte* page, std::uint8_t* plane, int dim, int bits) {
    std::uint8_t codes[kMaxDim];
    core::unpack_nibbles_high_first(page, static_cast<std::size_t>(dim), codes);
    const auto mask = static_cast<std::uint8_t>((1 << bits) - 1);
    for (int j = 0; j < dim; ++j) codes[j] &= mask;  // a page from elsewhere may hold anything
    core::pack_codes(codes, static_cast<std::size_t>(dim), bits, plane);
  }
  static void unused_half(Byte*) {}
};

/// What does not change from token to token.
struct Shape {
  const PageLayout& layout;
  NativeTile tile{};
  std::size_t k_codes, v_codes;
  bool k_scale, v_scale, v_zero;

  explicit Shape(const PageLayout& l)
      : layout(l),
        k_codes(core::code_bytes(l.spec.k, l.head_dim)),
        v_codes(core::code_bytes(l.spec.v, l.head_dim)),
        k_scale(core::has_scale(l.spec.k)),
        v_scale(core::has_scale(l.spec.v)),
        v_zero(core::has_zero(l.spec.v)) {
    // A layout may have been filled in by hand: refuse strides that would overlap or leave the page.
    const PageLayout dense = make_layout(l.kind, l.spec, l.num_kv_heads, l.head_dim, l.block_size);
    bool fits = l.block_stride >= page_bytes(l);
    if (l.kind == LayoutKind::Native) {
      tile = native_tile(l.spec, l.head_dim);
    } else if (l.kind == LayoutKind::TurboquantVllm) {
      fits = fits && l.token_stride >= dense.token_stride;
    } else {
      const std::int64_t slot = dense.head_stride;
      const bool token_outer = l.head_stride >= slot && l.token_stride >= l.num_kv_heads * l.head_stride;
      const bool head_outer = l.token_stride >= slot && l.head_stride >= l.block_size * l.token_stride;
      const std::int64_t last = (l.block_size - 1) * l.token_stride + (l.num_kv_heads - 1) * l.head_stride + slot;
      fits = fits && (token_outer || head_outer) && last <= l.block_stride;
    }
    if (!fits) throw Error(ErrorCode::Usage, "the strides are too small for its rows", "layout " + std::string(layout_name(l.kind)));
  }
};

/// Planes of vector i.
template <class Planes>
Planes at(const Planes& p, std::int64_t i, std::size_t code_bytes) {
  return {p.codes + i * static_cast<std::int64_t>(code_bytes), p.scale ? p.scale + i : nullptr, p.zero ? p.zero + i : nullptr, nullptr,
          nullptr};
}

template <class Direction>
void move_native(const Shape& s, typename Direction::Byte* page, int token, int head, const typename Direction::Planes& k,
                 const typename Direction::Planes& v) {
  const std::ptrdiff_t tiles = s.layout.block_size / 16, index = head * tiles + token / 16;
  typename Direction::Byte* tile = page + index * s.tile.bytes;
  typename Direction::Byte* scale_block = page + s.layout.num_kv_heads * tiles * s.tile.bytes + index * s.tile.scale_bytes;
  const int t = token % 16, g = t % 8, high = t / 8;
  const int dim = s.layout.head_dim;
  if (s.tile.k_units) {
    for (int i = 0; i < dim / 8; ++i) Direction::group(tile + s.tile.k_offset + core::key_unit_byte(dim, t, i), k.codes + 3 * i);
  } else {
    Direction::bytes(tile + s.tile.k_offset + t * s.tile.k_row, k.codes, s.k_codes);
  }
  if (s.tile.v_units) {
    for (int i = 0; i < dim / 8; ++i) Direction::group(tile + s.tile.v_offset + core::value_unit_byte(dim, t, i), v.codes + 3 * i);
  } else {
    const int i0 = t / 8, i2 = t % 8 / 2, i3 = t % 2;
    for (int i1 = 0; i1 < 8; ++i1) {
      const int piece = ((i0 * 8 + i1) * 4 + i2) * 2 + i3;
      Direction::bytes(tile + s.tile.v_offset + piece * s.tile.v_piece, v.codes + i1 * s.tile.v_piece,
                       static_cast<std::size_t>(s.tile.v_piece));
    }
  }
  typename Direction::Byte* scales = scale_block + s.tile.scale_offset + g * 8 + high * 2;
  s.k_scale ? Direction::half(scales, k.scale) : Direction::unused_half(scales);
  s.v_scale ? Direction::half(scales + 4, v.scale) : Direction::unused_half(scales + 4);
  if (s.v_zero) Direction::half(scale_block + s.tile.zero_offset + g * 4 + high * 2, v.zero);
}

template <class Direction>
void move_turboquant_vllm(const Shape& s, typename Direction::Byte* row, int head, const typename Direction::Planes& k,
                          const typename Direction::Planes& v) {
  const int heads = s.layout.num_kv_heads, dim = s.layout.head_dim, half_dim = dim / 2;
  Direction::nibbles(row + head * half_dim, k.codes, dim, s.layout.spec.k.bits);
  Direction::word(row + heads * half_dim + head * 4, k.scale);
  typename Direction::Byte* second = row + heads * (half_dim + 4);
  Direction::nibbles(second + head * half_dim, v.codes, dim, s.layout.spec.v.bits);
  Direction::word(second + heads * half_dim + head * 4, v.scale);
}

template <class Direction>
void move_vllm(const Shape& s, typename Direction::Byte* slot, const typename Direction::Planes& k, const typename Direction::Planes& v) {
  Direction::bytes(slot, k.codes, s.k_codes);
  slot += s.k_codes;
  if (s.k_scale) {
    Direction::half(slot, k.scale);
    slot += 2;
  }
  Direction::bytes(slot, v.codes, s.v_codes);
  Direction::half(slot + s.v_codes, v.scale);
  Direction::half(slot + s.v_codes + 2, v.zero);
}

template <class Direction>
void move_pages(const PageLayout& layout, typename Direction::Byte* cache, std::int64_t num_blocks, const std::int64_t* slots,
                std::int64_t n, const typename Direction::Planes& k, const typename Direction::Planes& v) {
  const Shape s(layout);
  if (n < 0) throw Error(ErrorCode::Usage, "the number of tokens is negative");
  if (n == 0) return;
  if (cache == nullptr || slots == nullptr || k.codes == nullptr || v.codes == nullptr || (s.k_scale && k.scale == nullptr) ||
      (s.v_scale && v.scale == nullptr) || (s.v_zero && v.zero == nullptr)) {
    throw Error(ErrorCode::Usage, "a plane that the codec has is a null pointer");
  }
  const std::int64_t capacity = num_blocks * layout.block_size;
  for (std::int64_t i = 0; i < n; ++i) {  // before the first byte moves
    if (slots[i] >= capacity || (Direction::kReads && slots[i] < 0)) {
      throw Error(ErrorCode::Usage, "slot " + std::to_string(slots[i]) + " of token " + std::to_string(i) + " is not one of the " +
                                        std::to_string(capacity) + " slots of the cache");
    }
  }
  for (std::int64_t i = 0; i < n; ++i) {
    if (slots[i] < 0) continue;
    typename Direction::Byte* page = cache + slots[i] / layout.block_size * layout.block_stride;
    const auto token = static_cast<int>(slots[i] % layout.block_size);
    for (int head = 0; head < layout.num_kv_heads; ++head) {
      const std::int64_t vector = i * layout.num_kv_heads + head;
      const auto k_one = at(k, vector, s.k_codes), v_one = at(v, vector, s.v_codes);
      switch (layout.kind) {
        case LayoutKind::Native: move_native<Direction>(s, page, token, head, k_one, v_one); break;
        case LayoutKind::TurboquantVllm: move_turboquant_vllm<Direction>(s, page + token * layout.token_stride, head, k_one, v_one); break;
        case LayoutKind::Vllm: move_vllm<Direction>(s, page + token * layout.token_stride + head * layout.head_stride, k_one, v_one); break;
      }
    }
  }
}

}  // namespace

void write_pages(const PageLayout& layout, const EncodedIn& k, const EncodedIn& v, const std::int64_t* slot_mapping, std::int64_t n,
                 std::uint8_t* cache, std::int64_t num_blocks) {
  move_pages<Writer>(layout, cache, num_blocks, slot_mapping, n, k, v);
}

void read_pages(const PageLayout& layout, const std::uint8_t* cache, std::int64_t num_blocks, const std::int64_t* slot_mapping,
                std::int64_t n, const EncodedOut& k, const EncodedOut& v) {
  move_pages<Reader>(layout, cache, num_blocks, slot_mapping, n, k, v);
}

void core::rows_to_units(const PageLayout& layout, std::uint8_t* cache, std::int64_t num_blocks) {
  const NativeTile tile = native_tile(layout.spec, layout.head_dim);
  const int groups = layout.head_dim / 8, tiles = layout.num_kv_heads * (layout.block_size / 16);
  std::vector<std::uint8_t> rows(static_cast<std::size_t>(tile.bytes));
  for (std::int64_t i = 0; i < num_blocks * tiles; ++i) {
    std::uint8_t* to = cache + i / tiles * layout.block_stride + i % tiles * tile.bytes;
    std::memcpy(rows.data(), to, rows.size());
    for (int t = 0; t < 16; ++t) {
      for (int group = 0; group < groups; ++group) {
        if (tile.k_units) Writer::group(to + key_unit_byte(layout.head_dim, t, group), rows.data() + t * tile.k_row + 3 * group);
        if (!tile.v_units) continue;
        const int byte = 3 * group, piece = ((t / 8 * 8 + byte / tile.v_piece) * 4 + t % 8 / 2) * 2 + t % 2;
        Writer::group(to + tile.v_offset + value_unit_byte(layout.head_dim, t, group),
                      rows.data() + tile.v_offset + piece * tile.v_piece + byte % tile.v_piece);
      }
    }
  }
}

}  // namespace tq4
