// The general decode path: every codec, layout, head size and option, on any GPU from sm_80. Three launches: the queries are rotated
// (general_pre.cu), (sequence, head, split) blocks attend to parts of the context (general_split.cu), parts are merged and rotated back
// (general_merge.cu). The structs here are what the three share.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/views.h"

namespace tq4::gpu {

/// Kernel arguments. A query row is (sequence * q_len + i) * num_q_heads + head. Parts: `splits` of the compressed tokens, then one of
/// the exact tokens where there are any.
struct GeneralArgs {
  CacheView cache;
  SideView k, v;
  SideTables k_tables, v_tables;
  const void* q;
  void* out;
  float* lse;
  int q_dtype;  ///< DType
  int num_seqs, q_len, num_q_heads, num_kv_heads, group, head_dim;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;
  const std::int32_t* seq_lens;
  float sm_scale;
  int window;
  float soft_cap;
  const float* alibi_slopes;
  const float* sink_logits;
  int q_rotated, out_rotated;
  ExactPart exact;
  int rope_dim;
  int splits, parts;                 ///< parts = splits + (exact ? 1 : 0)
  int row_tiles, v_chunks, v_chunk;  ///< 16 rows a tile; output columns a block
  // Workspace.
  std::uint16_t* q_rot;    ///< [rows, D] fp16: rotated query over its largest coordinate
  std::uint16_t* q_exact;  ///< [rows, D] likewise, not rotated; null unless exact tokens are in original space
  float4* q_info;          ///< [rows]: logit factor, factor of q_exact, q . centre, sum of the rotated query, all times sm_scale
  float2* part_ml;         ///< [rows, parts]: max logit, sum of exp
  float* part_out;         ///< [rows, parts, D] sum of exp * value
};

struct GeneralPlan {
  int splits, parts, row_tiles, v_chunks, v_chunk;
  std::size_t q_rot, q_exact, q_info, part_ml, part_out, bytes;  ///< offsets in the workspace
};
GeneralPlan general_plan(const DeviceCodec& codec, const DecodeParams& params);
/// Throws Unsupported/Usage with the reason when the general path does not serve the call.
void general_check(const DeviceCodec& codec, const DecodeParams& params);
void general_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream);

void launch_general_pre(const GeneralArgs& args, cudaStream_t stream);
void launch_general_split(const GeneralArgs& args, const DeviceInfo& device, cudaStream_t stream);
void launch_general_merge(const GeneralArgs& args, cudaStream_t stream);

}  // namespace tq4::gpu
