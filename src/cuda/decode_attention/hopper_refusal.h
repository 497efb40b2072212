// What the fused and the slots kernel refuse alike.
#pragma once

#include <bit>
#include <cstdint>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Why neither of the Hopper kernels serves the call, whatever the layout; null when that does not decide.
inline const char* hopper_refusal(const DeviceCodec& codec, const DecodeParams& p) {
  const PageLayout& layout = p.cache.layout;
  if (codec.device().compute_major != 9) return "the GPU is not of the Hopper class (sm_90)";
  if (layout.block_size % 16 != 0 || !std::has_single_bit(static_cast<unsigned>(layout.block_size)))
    return "block_size is not a power of two from 16 on";
  if (reinterpret_cast<std::uintptr_t>(p.cache.data) % 16 != 0 || layout.block_stride % 16 != 0) return "pages are not aligned to 16 bytes";
  if (p.soft_cap != 0 || p.alibi_slopes || p.sink_logits) return "soft cap, ALiBi and sink logits take the general path";
  if (p.q_dtype != DType::F16 && p.q_dtype != DType::BF16) return "queries are neither fp16 nor bf16";
  if (p.num_seqs < 1 || p.q_len < 1 || p.num_q_heads < 1 || p.num_q_heads % codec.num_kv_heads() != 0)
    return "the shapes are not a decode step's";
  return nullptr;
}

}  // namespace tq4::gpu
