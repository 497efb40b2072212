// Page layouts: where the bytes of a token lie in a paged cache. A codec says what bytes mean, a layout where they are. One layout object
// describes one cache tensor of K and V together; reading and writing through it is plain CPU code and the reference for the CUDA store.
#pragma once

#include <cstdint>
#include <string_view>

#include "tq4/codec.h"
#include "tq4/spec.h"

namespace tq4 {

enum class LayoutKind : std::uint8_t {
  Native,          ///< ours: 16-token tiles a head, in the order the decode kernel's MMA fragments want (see native_tile, FORMAT.md)
  TurboquantVllm,  ///< [num_blocks, block_size, row]: row = [K idx, Hk * D/2 | K norms fp32 | V idx | V norms], high nibble = even dim
  Vllm             ///< [num_blocks, block_size, Hk, slot]: slot = [K idx | K norm fp16 | V idx | V scale fp16 | V zero fp16]
};
std::string_view layout_name(LayoutKind kind);
LayoutKind layout_from_name(std::string_view name);  ///< throws Usage

/// A cache tensor of uint8. All strides in bytes.
struct PageLayout {
  LayoutKind kind = LayoutKind::Native;
  CodecSpec spec;
  int num_kv_heads = 0;
  int head_dim = 0;
  int block_size = 16;            ///< tokens a page; Native: multiple of 16
  std::int64_t block_stride = 0;  ///< bytes from page to page
  std::int64_t token_stride = 0;  ///< TurboquantVllm: the row size (padded rows are larger); Vllm: see below; Native: 0
  std::int64_t head_stride = 0;   ///< Vllm: bytes from head to head (newer versions swap the token and head axes); else 0
};

/// The dense layout of a kind: strides filled in, no padding. Throws Unsupported where the spec has no place in the layout
/// (e.g. TurboquantVllm takes Mse at 2..4 bits as nibbles with fp32 norms only).
PageLayout make_layout(LayoutKind kind, const CodecSpec& spec, int num_kv_heads, int head_dim, int block_size);
/// turboquant-vllm's plugin: each token's row padded so that a head takes the next power of two bytes (256 at D = 128).
PageLayout padded_turboquant_vllm_layout(const CodecSpec& spec, int num_kv_heads, int head_dim, int block_size);

std::int64_t page_bytes(const PageLayout& layout);  ///< bytes one page occupies (block_stride of the dense layout)
/// Bytes that attention must read for one token of one kv head (codes and scales; no padding).
std::int64_t token_head_bytes(const PageLayout& layout);

/// Byte offsets within a native page. A page holds T = block_size / 16 tiles (16 tokens each) of every kv head, codes and scales apart:
///   [num_kv_heads][T] code tiles of `bytes` bytes, then [num_kv_heads][T] scale blocks of `scale_bytes` bytes.
/// Tile t of a head lies at (head * T + t) * bytes, its scale block at num_kv_heads * T * bytes + (head * T + t) * scale_bytes.
/// Code tile:
///   K codes [16][k_row]            at 0: row-major, LSB first, k_row = D * k_bits / 8 (D for Fp8)
///   V codes [2][8][4][2][v_piece]  at v_offset = 16 * k_row: token = 8*i0 + 2*i2 + i3, its row's bytes [i1 * v_piece, (i1+1) * v_piece),
///                                  v_piece = D * v_bits / 64: the codes of D/8 coordinates, which one lane of the kernel owns. A layout in
///                                  which they would end within a byte is refused by name (3-bit values at head_dim 80 and 96): values of
///                                  1, 2, 3, 4 bits want head_dim to be a multiple of 64, 32, 64, 16; those of 8 bits fit every one.
/// Codes of 3 bits where D is a multiple of 64 (k_units, v_units) lie in units of 12 bytes instead, so that most pairs of codes are in a byte of
/// their own: four groups of 8 codes, group q in bytes q, q + 4 and q + 8. Byte q + 4 p of a group of codes c0 to c7 holds bit p of c6 in bit 0,
/// c(2p) in bits 1 to 3, bit p of c7 in bit 4 and c(2p+1) in bits 5 to 7.
///   K units [8][4][D/64][12]       at 0: token = g + 8 h; group q = 2 h + e of unit (g, t, u) is the (2 u + e)-th eight of those coordinates
///                                  that one lane owns: 32 each from 32 t, 32 (t + 4), 32 (t + 8) ... on (D not a multiple of 128: D/4 from
///                                  t D/4 on)
///   V units [8][4][D/64][12]       at v_offset: token = 8 i0 + 2 i2 + i3; group q = 2 i0 + i3 of unit (i1, i2, u): the 8 coordinates from
///                                  i1 D/8 + 8 u on
/// Scale block:
///   scales  [8][4] fp16            at 0: row g = K scale of token g, of token g+8, V scale of token g, of token g+8 (an unused one is 1)
///   zeros   [8][2] fp16            at 64, only where V is Uniform: zero of token g, of token g+8
/// Every part is a multiple of 16 bytes. A code tile is a multiple of 128 wherever a row of K codes is a multiple of 8 bytes: that, and
/// tiles that begin at multiples of 128, is what bulk copies stream fastest (hence the scales' place after all codes of the page). Pages
/// of an even number of tiles keep that alignment from page to page.
struct NativeTile {
  int k_row, v_piece;
  int k_offset, v_offset;         ///< within the code tile
  int bytes;                      ///< of a code tile
  int scale_offset, zero_offset;  ///< within the scale block: 0, and 64 or -1 where there are no zeros
  int scale_bytes;                ///< of a scale block: 64, or 96 with zeros
  bool k_units, v_units;          ///< codes of 3 bits in units of 12 bytes
};
NativeTile native_tile(const CodecSpec& spec, int head_dim);

/// Scatter n tokens to pages: token i goes to slot_mapping[i] = page * block_size + offset; negative slots are skipped.
/// k, v: planes of [n, num_kv_heads] vectors (token-major), encoded by the layout's codecs. Throws Usage when a slot is past num_blocks.
void write_pages(const PageLayout& layout, const EncodedIn& k, const EncodedIn& v, const std::int64_t* slot_mapping, std::int64_t n,
                 std::uint8_t* cache, std::int64_t num_blocks);
/// Gather n tokens from pages, the inverse of write_pages (every slot must be valid).
void read_pages(const PageLayout& layout, const std::uint8_t* cache, std::int64_t num_blocks, const std::int64_t* slot_mapping,
                std::int64_t n, const EncodedOut& k, const EncodedOut& v);

}  // namespace tq4
