// Prefill attention over compressed keys and values, and the layer step that stores and attends in one call. Same rules as tq4/gpu.h:
// stream-ordered, workspace from the caller, usable in a captured graph while lengths within the given bounds change.
//
// How it works: compressed tokens are decoded once to fp16 in the workspace (rotation, centre and all: original space), new fp16 tokens are
// put behind them, and a FlashAttention kernel on tensor cores (on Hopper its own, of warpgroup products) reads both. On an H200 decoding planes of
// scalar codes costs a fifth of the attention at 1k queries and a fortieth at 8k; what it saves is decoding every tile again for each block of queries.
#pragma once

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Several sequences in one launch; queries of sequence s are rows cu_q[s] .. cu_q[s+1] of q, its keys the tokens of one of
///   - `planes`: contiguous compressed K and V, tokens cu_k[s] .. cu_k[s+1] (chosen when k_planes.codes is set);
///   - a paged compressed prefix of prefix_lens[s] tokens (may be 0 or absent), then the sequence's own new tokens k_new, v_new, as many as queries.
/// Query i of a sequence with n queries and m keys sits at position m - n + i.
struct PrefillParams {
  const void* q = nullptr;  ///< [total_q, num_q_heads, D] of dtype (F16, BF16), dense
  DType dtype = DType::F16;
  void* out = nullptr;   ///< like q
  float* lse = nullptr;  ///< [total_q, num_q_heads] natural log; may be null
  int num_seqs = 0;
  const std::int32_t* cu_q = nullptr;  ///< [num_seqs + 1] on the device
  int max_q_len = 0;                   ///< upper bound of a sequence's queries
  std::int64_t max_kv_len = 0;         ///< upper bound of a sequence's keys
  int num_q_heads = 0;

  EncodedIn k_planes, v_planes;        ///< [total_k, num_kv_heads]
  const std::int32_t* cu_k = nullptr;  ///< [num_seqs + 1], with planes
  bool high_nibble_first = false;      ///< of planes

  const void* k_new = nullptr;  ///< [total_q, num_kv_heads, D] of dtype; strides in elements (a pair of zeros: dense)
  const void* v_new = nullptr;
  std::int64_t k_token_stride = 0, k_head_stride = 0, v_token_stride = 0, v_head_stride = 0;
  PagedCache cache;  ///< data null: no prefix
  const std::int32_t* block_table = nullptr;
  std::int64_t block_table_stride = 0;
  const std::int32_t* prefix_lens = nullptr;  ///< [num_seqs]; null: no prefix

  bool causal = true;
  float sm_scale = 0;  ///< 0 = 1 / sqrt(D)
  int window = 0;
  float soft_cap = 0;
  const float* alibi_slopes = nullptr;
  const float* sink_logits = nullptr;
  bool qk_int8 = false;       ///< logits from int8 queries and keys (Hopper, head_dim 128): an approximation, docs/gpu.md has its error
  bool general_path = false;  ///< do not take the Hopper kernel where it would serve
  void* workspace = nullptr;  ///< 16-byte aligned; contents do not matter
  std::size_t workspace_bytes = 0;
};
/// Bytes for fp16 K and V of num_seqs * max_kv_len tokens (rounded up to tiles of 128), with qk_int8 also for int8 queries and keys.
std::size_t prefill_workspace_bytes(const DeviceCodec& codec, const PrefillParams& params);
/// The path a call takes: "hopper", "hopper-int8" or "general"; throws Unsupported with the reason when qk_int8 is asked for and not served.
std::string prefill_path(const DeviceCodec& codec, const PrefillParams& params);
/// Throws Unsupported: head_dim above 256; planes with centring before RoPE count positions from 0 a sequence.
void prefill(const DeviceCodec& codec, const PrefillParams& params, Stream stream);

/// One layer's step: store the new K and V, then attend. With the same number of new tokens in each sequence, at most 16, the new tokens are
/// attended as the pages hold them (decode); otherwise in the given precision behind the paged prefix (prefill).
struct LayerStepParams {
  const void* q = nullptr;  ///< [total, num_q_heads, D]
  const void* k = nullptr;  ///< [total, num_kv_heads, D], dense
  const void* v = nullptr;
  DType dtype = DType::F16;
  void* out = nullptr;                   ///< like q, or E4M3 bytes with out_fp8_scale
  const float* out_fp8_scale = nullptr;  ///< on the device: out = E4M3(value / scale); null: out is of dtype
  int num_seqs = 0;
  std::int64_t total = 0;              ///< new tokens of all sequences
  const std::int32_t* cu_q = nullptr;  ///< [num_seqs + 1] on the device
  int max_q_len = 0;
  bool uniform = true;  ///< every sequence has exactly max_q_len new tokens
  int num_q_heads = 0;
  const std::int64_t* slot_mapping = nullptr;  ///< [total]
  const std::int64_t* positions = nullptr;     ///< [total], for centring before RoPE
  PagedCache cache;
  const std::int32_t* block_table = nullptr;
  std::int64_t block_table_stride = 0;
  const std::int32_t* seq_lens = nullptr;  ///< [num_seqs], new tokens included
  std::int64_t max_seq_len = 0;
  float sm_scale = 0;
  int window = 0;
  float soft_cap = 0;
  const float* alibi_slopes = nullptr;
  const float* sink_logits = nullptr;
  /// Zeroed once by the caller when allocated; steps of any shape, one behind the other, can use one that is large enough for each.
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};
std::size_t layer_step_workspace_bytes(const DeviceCodec& codec, const LayerStepParams& params);
/// "store+decode(...)" or "store+prefill".
std::string layer_step_path(const DeviceCodec& codec, const LayerStepParams& params);
void update_and_attend(const DeviceCodec& codec, const LayerStepParams& params, Stream stream);

}  // namespace tq4::gpu
