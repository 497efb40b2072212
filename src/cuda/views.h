// Plain structs that kernels take by value: how the codes of one side read, and where a paged cache keeps them. Built on the host from
// DeviceCodec and PageLayout, so that kernels know neither specs nor layouts by name, only strides and widths.
#pragma once

#include <cstdint>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// How a code becomes a number in the attention kernels.
enum CodeMode : int {
  kPair = 0,    ///< at most 4 bits: one look-up gives two coordinates
  kSingle = 1,  ///< 5 to 8 bits: one look-up a coordinate
  kHalf = 2     ///< fp16 itself
};

/// One side's codes. value of coordinate = zero + scale * unit, unit = what the table gives.
struct SideView {
  int mode = kHalf;
  int kind = 0;        ///< CodeKind
  int fp8 = 0;         ///< Fp8Kind
  int code_bits = 16;  ///< bits of an index
  int row_bits = 16;   ///< bits an index takes in a row (4 for turboquant-vllm's nibbles)
  int row_bytes = 0;   ///< of one vector's codes
  int high_first = 0;  ///< the even coordinate is in the high nibble
  int has_scale = 0, has_zero = 0, norm_correction = 0;
  float level_offset = 0;  ///< Uniform: units are index - level_offset, zeros are raised by scale * level_offset
  const std::uint32_t* pair_half2 = nullptr;
  const float* centroids = nullptr;
  const float* pair_points = nullptr;  ///< only for a true 2-D codebook
};

/// One side's place in a page.
struct PartView {
  std::int64_t codes = 0, scale = 0,
               zero = 0;  ///< byte offsets of head 0 within a token (row layouts); within the code tile or scale block (native)
  std::int64_t codes_head = 0, scale_head = 0;  ///< row layouts: bytes from head to head
  int scale_f32 = 0;
};

struct CacheView {
  std::uint8_t* data = nullptr;
  const std::uint8_t* end = nullptr;  ///< one past the last byte
  std::int64_t num_blocks = 0, block_stride = 0, token_stride = 0;
  int native = 0;
  int block_size = 0, num_kv_heads = 0, head_dim = 0;
  int block_shift = -1;             ///< log2 of block_size where that is a power of two
  int tile_bytes = 0, v_piece = 0;  ///< native
  int scale_bytes = 0;              ///< native: of a tile's scale block
  int k_units = 0, v_units = 0;     ///< native: codes of 3 bits in units (core/units.h)
  std::int64_t scale_blocks = 0;    ///< native: where a page's scale blocks begin
  PartView k, v;
};

/// Throws Unsupported for Prod and Mixed, which the attention kernels do not read.
SideView attention_side(const DeviceCodec& codec, Side side, bool nibbles_high_first, const char* where);
/// Checks that the cache is for this codec. Throws Usage/Unsupported.
CacheView cache_view(const DeviceCodec& codec, const PagedCache& cache, const char* where);
/// Both sides as the cache stores them.
SideView attention_side(const DeviceCodec& codec, Side side, const PagedCache& cache, const char* where);

}  // namespace tq4::gpu
