// What host and kernels of the slots path agree on: a paged cache whose pages keep the bytes of one token and kv head together (vLLM's layout), read
// by whole runs of 16 tokens of all heads.
#pragma once

#include "cuda/decode_attention/fused_params.h"

namespace tq4::gpu::fused {

/// Params' own members mean what they mean to the fused kernel, but for: num_kv_heads, which is 1 here (a unit of the line is 16 tokens of all
/// heads of a sequence), and its pages, matrices, centres, exact tokens and parts, which are not used.
struct SlotParams : Params {
  const std::uint8_t* pages;
  std::int64_t page_stride;
  int heads;               ///< kv heads
  std::uint32_t token_at;  ///< bytes from token to token, in pages and in shared memory
  std::uint32_t head_at;   ///< bytes from head to head in shared memory
  int copies;              ///< bulk copies a unit: 1, or one a head where pages keep the tokens of a head together
  std::uint32_t copy_at;   ///< bytes from copy to copy in pages
  std::uint32_t copy_bytes;
  int blocks;      ///< of the main launch
  int groups;      ///< groups of `heads` warps; they take turns at the units
  int stages;      ///< units in flight, a multiple of groups
  int turns;       ///< stages / groups
  int low_stages;  ///< of these lie below the tables
  std::uint32_t stage_bytes;
  const float* signs;  ///< of the queries' Hadamard transform, or null
  int hadamard;        ///< queries are transformed (else they are in the keys' space already)
  float*
      partial;  ///< part of sequence s from block c and group e of its warps at index (s + c) * groups + e: [heads * group * q_len][D] floats
  float2* partial_sums;  ///< likewise, (largest logit, sum) a row
};

}  // namespace tq4::gpu::fused
