// What host and kernels of the slots path agree on: a paged cache whose pages keep the bytes of one token and kv head together (vLLM's layout), read
// by whole runs of 16 tokens of all heads.
#pragma once

#include "cuda/decode_attention/fused_params.h"

namespace tq4::gpu::fused {

/// Params' own members mean what they mean to the fused kernel, but for: num_kv_heads, which is 1 here (a unit of the line is 16 tokens of all
/// heads of a sequence), and its pages, matrices, centres and exact tokens, which are not used.
struct SlotParams : Params {
  const std::uint8_t* pages;
  std::int64_t page_stride;
  int heads;               ///< kv heads
  std::uint32_t token_at;  ///< bytes from token to token, in pages and in shared memory
  std::uint32_t head_at;   ///< bytes from head to head in shared memory
  int copies;              ///< bulk copies a unit: 1, or one a head where pages keep the tokens of a head together
  std::uint32_t copy_at;   ///< bytes from copy to copy in pages
  std::uint32_t copy_bytes;
  int groups;      ///< groups of `heads` warps; they take turns at the units
  int stages;      ///< units in flight, a multiple of groups
  int turns;       ///< stages / groups
  int low_stages;  ///< of these lie below the tables
  std::uint32_t stage_bytes;
  const float* signs;  ///< of the queries' Hadamard transform, or null
  int hadamard;        ///< queries are transformed (else they are in the keys' space already)
  int part_words;      ///< of a block's part in Params::parts: [heads * group * q_len][D] and 2 a row; a multiple of 4
  float* openings;     ///< likewise a block, for the sequence with which its piece begins; holds anything before and after a launch
};

}  // namespace tq4::gpu::fused
