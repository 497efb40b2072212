// FlashAttention on contiguous fp16 K and V: the second half of prefill (tq4/prefill.h).
#pragma once

#include <cuda_runtime_api.h>

#include "tq4/prefill.h"

namespace tq4::gpu {

struct FlashArgs {
  const void* q;
  void* out;
  float* lse;
  int dtype;               ///< DType of q and out
  const std::uint16_t* k;  ///< [num_seqs, num_kv_heads, capacity, D] fp16
  const std::uint16_t* v;
  std::int64_t capacity;
  const std::int32_t* cu_q;
  const std::int32_t* cu_k;         ///< keys a sequence: cu_k[s+1] - cu_k[s] ...
  const std::int32_t* prefix_lens;  ///< ... or prefix_lens[s] (null: 0) + its queries
  int num_seqs, max_q_len, num_q_heads, num_kv_heads, head_dim;
  int causal, window;
  float sm_scale, soft_cap;
  const float *alibi_slopes, *sink_logits;
  std::uint32_t* next_work;  ///< counter of the Hopper kernel, which what fills K and V sets to 0; null for the other
};
void launch_flash(const FlashArgs& args, const DeviceInfo& device, cudaStream_t stream);

/// Writes new tokens (fp16 of k_new, v_new) behind the prefix, [num_seqs, num_kv_heads, capacity, D]; tiled: to the tiles of hopper.h, the last of them
/// filled up with zeros.
struct AppendArgs {
  const void *k, *v;
  int dtype;
  std::int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
  std::uint16_t *k_out, *v_out;
  std::int64_t capacity;
  const std::int32_t *cu_q, *prefix_lens;
  int num_seqs, max_q_len, num_kv_heads, head_dim, tiled;
  std::uint32_t* next_work;  ///< as in FlashArgs
};
void launch_append(const AppendArgs& args, cudaStream_t stream);
/// Planes [total_k, heads] of K and V to [num_seqs, heads, capacity, D] fp16 in original space; with `tiled`, where it can, to tiles (hopper.h):
/// became_tiles says of which side. flash: cu_k, num_seqs, capacity, next_work.
void launch_unpack_planes(const DeviceCodec& codec, const EncodedIn (&in)[2], bool high_nibble_first, const FlashArgs& flash,
                          std::int64_t max_tokens, std::uint16_t* const (&out)[2], bool tiled, bool (&became_tiles)[2],
                          cudaStream_t stream);
/// prefix_lens[s] = seq_lens[s] - (cu_q[s+1] - cu_q[s]).
void launch_prefix_lens(const std::int32_t* seq_lens, const std::int32_t* cu_q, std::int32_t* prefix_lens, int num_seqs,
                        cudaStream_t stream);
/// E4M3 of from[i] / *scale.
void launch_to_fp8(const void* from, DType dtype, const float* scale, std::uint8_t* to, std::int64_t count, cudaStream_t stream);

}  // namespace tq4::gpu
