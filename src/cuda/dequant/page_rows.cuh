// Where the rows of a paged cache lie and where dequant_pages puts them, as linear functions of page and offset, whatever the layout: the `Rows` of the
// kernels with a matrix (tiles.cuh, hadamard.cuh), and rows that need none (direct_pages.cuh). What a row is asked for stays as it lies in memory until
// it is used, so that a kernel works on one row while the next is on its way.
#pragma once

#include <algorithm>
#include <bit>

#include "cuda/dequant/tiles.cuh"
#include "cuda/prefill_attention/tile_order.cuh"

namespace tq4::gpu {

/// How the codes of a side are read, which their alignment decides: 16-bit pieces (vLLM's slots, and all but 4 and 8 bits), words, 16 bytes;
/// bytes of units (core/units.h).
enum class PageAccess : int { Halves, Words, Wide, Units };

/// Offset in a page of token 16 a + 8 b + c of head h: first + h * head + a * sixteen + b * eight + c * one, and odd for every odd token.
struct PagePlaces {
  std::int64_t first, head;
  int sixteen, eight, one, odd = 0;
  __device__ __forceinline__ int token(int offset) const {
    return (offset >> 4) * sixteen + (offset >> 3 & 1) * eight + (offset & 7) * one + (offset & 1) * odd;
  }
};
struct PageSide {
  InverseSide inverse;
  PageAccess access;
  int group_jump;  ///< bytes from piece to piece: a lane's D/4 coordinates are two pieces of D/8
  PagePlaces codes, scale, zero;
  int scale_f32;
  int key;
  /// Of units: from a row's first byte to a group's.
  __device__ __forceinline__ int unit_group(int head_dim, int group) const { return unit_byte(head_dim, key != 0, 0, group); }
  void* out;  ///< [num_seqs, num_kv_heads, max_seq_len, D]
};

/// Rows of a kv head (blockIdx.y), a sequence and a side (blockIdx.z).
struct PageRows {
  PageSide sides[2];
  const std::uint8_t* data;
  std::int64_t block_stride;
  int block_size;
  unsigned block_inverse, block_shift;  ///< row / block_size = row * block_inverse >> (31 + block_shift) for rows below 2^31
  int num_kv_heads, head_dim, dtype;
  int first_side, two_sides;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;
  const std::int32_t* seq_lens;
  std::int64_t max_seq_len;
  int tiled;  ///< rows go to tiles (inverse_tiles only)
  unsigned zero = 0;

  template <int G>
  static constexpr int kRawWords = 2 * G;
  __device__ __forceinline__ const PageSide& page_side() const { return sides[first_side + (static_cast<int>(blockIdx.z) & two_sides)]; }
  __device__ __forceinline__ const InverseSide& side() const { return page_side().inverse; }
  __device__ __forceinline__ void* out() const { return page_side().out; }
  __device__ __forceinline__ int sequence() const { return static_cast<int>(blockIdx.z) >> two_sides; }
  __device__ __forceinline__ int image_head() const { return static_cast<int>(blockIdx.y); }
  __device__ __forceinline__ unsigned count() const {
    return static_cast<unsigned>(max(std::int64_t{0}, min(static_cast<std::int64_t>(seq_lens[sequence()]), max_seq_len)));
  }
  __device__ __forceinline__ std::int64_t line() const { return static_cast<std::int64_t>(sequence()) * num_kv_heads + image_head(); }
  __device__ __forceinline__ std::int64_t chunk(std::int64_t out, int c) const { return tiled ? tile_chunk(out, c) : out + 8 * c; }

  /// The page that row i is in, and its place there.
  struct Place {
    std::int64_t page;
    int offset;
  };
  __device__ __forceinline__ Place place(unsigned i) const {
    const unsigned block = __umulhi(2 * i, block_inverse) >> block_shift;
    const int page = __ldg(block_table + sequence() * block_table_stride + block);
    return {page * block_stride, static_cast<int>(i - block * static_cast<unsigned>(block_size))};
  }
  __device__ __forceinline__ const std::uint8_t* address(const PagePlaces& p, const Place& at) const {
    return data + p.first + image_head() * p.head + at.page + p.token(at.offset);
  }
  __device__ __forceinline__ unsigned raw_scale(const std::uint8_t* p) const {
    return page_side().scale_f32 ? __ldg(reinterpret_cast<const unsigned*>(p)) : __ldg(reinterpret_cast<const unsigned short*>(p));
  }
  __device__ __forceinline__ float scale_value(unsigned raw) const {
    return page_side().scale_f32 ? __uint_as_float(raw) : __half2float(__ushort_as_half(static_cast<unsigned short>(raw)));
  }

  __device__ __forceinline__ InverseRow row(unsigned i) const {
    const Place at = place(i);
    const std::int64_t to = tiled ? tile_row(i, head_dim) : static_cast<std::int64_t>(i) * head_dim;
    return {address(page_side().codes, at), 0, image_head(), __uint_as_float(raw_scale(address(page_side().scale, at))),
            line() * max_seq_len * head_dim + to};
  }
  __device__ __forceinline__ float scale(const InverseRow& row) const { return scale_value(__float_as_uint(row.scale)); }
  /// A lane's G groups as they lie there: words, or two 16-bit pieces a group (of 3 bits from an even address on: the first group's parity is in
  /// row.token).
  template <int Words>
  __device__ __forceinline__ void fetch(unsigned (&raw)[Words], InverseRow& row, int t) const {
    constexpr int G = Words / 2;
    const int bits = side().row_bits, jump = page_side().group_jump;
    if (page_side().access == PageAccess::Units) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const std::uint8_t* p = row.codes + page_side().unit_group(head_dim, G * t + g);
        raw[g] = __ldg(p) | static_cast<unsigned>(__ldg(p + 4)) << 8;
        raw[G + g] = __ldg(p + 8);
      }
      return;
    }
    const std::uint8_t* p = row.codes + 2 * t * jump;
    row.token = static_cast<int>(reinterpret_cast<std::uintptr_t>(p) & 1);
    if (page_side().access == PageAccess::Wide) {
#pragma unroll
      for (int g = 0; g < G; ++g) raw[G + g] = 0;
      if constexpr (G == 2) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(p));
        raw[0] = v.x, raw[1] = v.y;
      } else {
#pragma unroll
        for (int g = 0; g < G; g += 4) {
          const uint4 v = __ldg(reinterpret_cast<const uint4*>(p) + g / 4);
          raw[g] = v.x, raw[g + 1] = v.y, raw[g + 2] = v.z, raw[g + 3] = v.w;
        }
      }
    } else if (page_side().access == PageAccess::Words) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        raw[g] = __ldg(reinterpret_cast<const unsigned*>(p + g / (G / 2) * jump + g % (G / 2) * 4));
        raw[G + g] = 0;
      }
    } else {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const std::uint8_t* q = p + g / (G / 2) * jump + g % (G / 2) * bits;
        const auto* half = reinterpret_cast<const unsigned short*>(q - (bits == 3 ? reinterpret_cast<std::uintptr_t>(q) & 1 : 0));
        raw[g] = bits == 1 ? __ldg(q) : __ldg(half);
        raw[G + g] = bits > 2 ? __ldg(half + 1) : 0u;
      }
    }
  }
  template <int G>
  __device__ __forceinline__ void spread(unsigned (&w)[G], const unsigned (&raw)[2 * G], const InverseRow& row) const {
    if (page_side().access == PageAccess::Units) {
#pragma unroll
      for (int g = 0; g < G; ++g) w[g] = core::group_from_unit(raw[g] | raw[G + g] << 16);
      return;
    }
    const bool halves = page_side().access == PageAccess::Halves, threes = side().row_bits == 3;
    const int odd_jump = page_side().group_jump & 1;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      w[g] = halves ? raw[g] | raw[G + g] << 16 : raw[g];
      if (threes && ((row.token + g / (G / 2) * odd_jump + g % (G / 2)) & 1) != 0) w[g] >>= 8;
    }
  }
};

/// The side of `cache` whose codes take inverse.row_bits bits in a row. direct: rows are read group by group.
inline PageSide page_side(const CacheView& cache, bool key, const InverseSide& inverse, bool direct, void* out) {
  const PartView& part = key ? cache.k : cache.v;
  const int piece = inverse.codec.dim / 8 * inverse.row_bits / 8, row_bytes = inverse.codec.code_bytes;
  PageSide side{};
  side.inverse = inverse;
  side.group_jump = piece;
  side.scale_f32 = part.scale_f32;
  side.out = out;
  side.key = key;
  if (cache.native) {
    const int tiles = cache.block_size / 16;
    if (!key) side.group_jump = 8 * piece;
    side.codes = {part.codes, static_cast<std::int64_t>(tiles) * cache.tile_bytes, cache.tile_bytes, key ? 8 * row_bytes : 64 * piece,
                  key ? row_bytes : piece};
    if (key ? cache.k_units : cache.v_units) {  // core/units.h: linear in the token but for V's odd ones
      const int units = inverse.codec.dim / 64;
      side.codes.eight = 2;
      side.codes.one = (key ? 48 : 6) * units;
      side.codes.odd = key ? 0 : 1 - 6 * units;
    }
    const std::int64_t scales = static_cast<std::int64_t>(tiles) * cache.scale_bytes;
    side.scale = {cache.scale_blocks + part.scale, scales, cache.scale_bytes, 2, 8};
    side.zero = {cache.scale_blocks + part.zero, scales, cache.scale_bytes, 2, 4};
  } else {
    const int token = static_cast<int>(cache.token_stride);
    side.codes = {part.codes, part.codes_head, 16 * token, 8 * token, token};
    side.scale = {part.scale, part.scale_head, 16 * token, 8 * token, token};
    side.zero = {part.zero, part.scale_head, 16 * token, 8 * token, token};
  }
  // Every row's first byte, and every lane's.
  const std::int64_t places = reinterpret_cast<std::intptr_t>(cache.data) | cache.block_stride | side.codes.first | side.codes.head |
                              side.codes.sixteen | side.codes.eight | side.codes.one;
  side.access = cache.native && (key ? cache.k_units : cache.v_units) ? PageAccess::Units : PageAccess::Halves;
  if ((inverse.row_bits == 4 || inverse.row_bits == 8) && places % 4 == 0) side.access = PageAccess::Words;
  if (!direct && inverse.row_bits == 4 && side.group_jump == piece && places % std::min(16, inverse.codec.dim / 8) == 0)
    side.access = PageAccess::Wide;
  return side;
}
/// row / block_size without a division.
inline void number_blocks(PageRows& a, int block_size) {
  a.block_size = block_size;
  a.block_shift = static_cast<unsigned>(std::bit_width(static_cast<unsigned>(block_size) - 1));
  a.block_inverse = static_cast<unsigned>(((std::uint64_t{1} << (31 + a.block_shift)) + static_cast<unsigned>(block_size) - 1) /
                                          static_cast<unsigned>(block_size));
}

}  // namespace tq4::gpu
