// Uncompressed paged decode attention in fp16 and fp8 (E4M3): what the compressed kernels are measured against. One query token a sequence,
// no options. Pages are [num_blocks, num_kv_heads, block_size, D], K and V in tensors of their own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tq4/gpu.h"

namespace tq4::gpu {

struct BaselineParams {
  const void* q = nullptr;  ///< [num_seqs, num_q_heads, D] fp16
  void* out = nullptr;      ///< like q
  const void* k = nullptr;  ///< pages of fp16 or E4M3
  const void* v = nullptr;
  bool fp8 = false;
  int num_seqs = 0, num_q_heads = 0, num_kv_heads = 0, head_dim = 0, block_size = 16;  ///< block_size: a multiple of 16
  const std::int32_t* block_table = nullptr;
  std::int64_t block_table_stride = 0;
  const std::int32_t* seq_lens = nullptr;
  std::int64_t max_seq_len = 0;  ///< no length is larger; the table holds readable entries up to here
  float sm_scale = 0;            ///< 0 = 1 / sqrt(D)
  int splits = 0;                ///< parts of the longest context; 0 = the rule's
  void* workspace = nullptr;     ///< zero before the first call; calls of one shape leave it so that the next can use it
  std::size_t workspace_bytes = 0;
};
std::size_t baseline_workspace_bytes(const BaselineParams& params, const DeviceInfo& device);
/// Throws Unsupported: head_dim a multiple of 16 up to 256, at most 16 query heads a kv head.
void baseline_decode(const BaselineParams& params, const DeviceInfo& device, Stream stream);

}  // namespace tq4::gpu
