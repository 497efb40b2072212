// What host and kernel of the fused decode path agree on: one POD struct, passed by value. Shapes are of one launch (one layer).
#pragma once

#include <cstdint>

namespace tq4::gpu::fused {

/// All pointers are device pointers. B = num_seqs, Hq/Hk = query/kv heads, G = Hq / Hk, R = G * q_len query rows a kv head, D = head_dim.
struct Params {
  const std::uint8_t* codes;                ///< native pages (tq4/layout.h): code tiles [Hk][block_size / 16] of page 0 ...
  const std::uint8_t* scales;               ///< ... and its scale blocks
  std::uint32_t code_stride, scale_stride;  ///< bytes from page to page
  const std::int32_t* block_table;          ///< [B, block_table_stride]
  std::int64_t block_table_stride;
  const std::int32_t* seq_lens;  ///< [B]
  int num_seqs, num_kv_heads, group, q_len;
  int group_reciprocal;                   ///< 65536 / group, rounded up: row / group = row * group_reciprocal >> 16 for row < 256
  int tiles_per_page_log2, tile_in_page;  ///< and 2^that - 1

  const void* q;  ///< [B * q_len, Hq, D] fp16 or bf16
  void* out;      ///< like q
  float* lse;     ///< [B * q_len, Hq] or null
  int q_is_bf16;

  const std::uint16_t* query_matrix;                    ///< fp16 [D, D] (or [Hk, D, D]): q_rot = query_matrix q; null: q is rotated already
  const std::uint16_t* inverse_matrix;                  ///< fp16 [D, D] (or [Hk, D, D]): out = inverse_matrix o; null: leave rotated
  std::int64_t query_head_stride, inverse_head_stride;  ///< elements from head to head; 0 = shared
  const float* k_centre;                                ///< [Hk, D] or null: adds q . k_centre to every logit (seen only by lse)
  const float* v_centre;                                ///< [Hk, D] or null: added to the output

  const std::uint32_t* k_pairs;  ///< half2 per pair code
  const std::uint32_t* v_pairs;
  float k_table_scale;  ///< sm_scale * log2(e), folded into the K table
  int window;           ///< sliding window in tokens, 0 = none

  const std::uint16_t* sink_k;  ///< exact fp16 tokens in rotated space, or null: [B, Hk, sinks, D]
  const std::uint16_t* sink_v;
  const std::uint16_t* recent_k;  ///< [B, Hk, recent, D], ring index p % recent
  const std::uint16_t* recent_v;
  int sinks, recent;

  int fresh_tokens;  ///< >= 0: the kernel just before in the stream writes nothing but queries and each sequence's last so many compressed tokens

  std::uint32_t*
      parts;  ///< [thread blocks][rows * D + 2 * rows] (rows: those there is room for; fused_merge.cuh), zero before and after each launch
};

}  // namespace tq4::gpu::fused
