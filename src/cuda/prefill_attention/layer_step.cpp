// update_and_attend: store, then decode for a few tokens a sequence or prefill for more (tq4/prefill.h).
#include <algorithm>

#include "cuda/check.h"
#include "cuda/decode_attention/fused.h"
#include "cuda/decode_attention/slots.h"
#include "cuda/prefill_attention/flash.h"
#include "tq4/prefill.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "update_and_attend";

bool decodes(const LayerStepParams& p) { return p.uniform && p.max_q_len <= 16; }

std::size_t align(std::size_t n) { return (n + 255) / 256 * 256; }

/// Output of dtype before it becomes fp8.
std::size_t staging_bytes(const DeviceCodec& codec, const LayerStepParams& p) {
  return p.out_fp8_scale ? align(static_cast<std::size_t>(p.total * p.num_q_heads * codec.head_dim()) * 2) : 0;
}
/// Lengths of the prefixes, one int a sequence.
std::size_t lengths_bytes(const LayerStepParams& p) { return align(static_cast<std::size_t>(p.num_seqs) * sizeof(std::int32_t)); }

DecodeParams decode_params(const LayerStepParams& p) {
  DecodeParams d;
  d.q = p.q;
  d.q_dtype = p.dtype;
  d.out = p.out;
  d.num_seqs = p.num_seqs;
  d.q_len = p.max_q_len;
  d.num_q_heads = p.num_q_heads;
  d.cache = p.cache;
  d.block_table = p.block_table;
  d.block_table_stride = p.block_table_stride;
  d.seq_lens = p.seq_lens;
  d.max_seq_len = p.max_seq_len;
  d.sm_scale = p.sm_scale;
  d.window = p.window;
  d.soft_cap = p.soft_cap;
  d.alibi_slopes = p.alibi_slopes;
  d.sink_logits = p.sink_logits;
  return d;
}

PrefillParams prefill_params(const LayerStepParams& p) {
  PrefillParams f;
  f.q = p.q;
  f.dtype = p.dtype;
  f.out = p.out;
  f.num_seqs = p.num_seqs;
  f.cu_q = p.cu_q;
  f.max_q_len = p.max_q_len;
  f.max_kv_len = p.max_seq_len;
  f.num_q_heads = p.num_q_heads;
  f.k_new = p.k;
  f.v_new = p.v;
  f.cache = p.cache;
  f.block_table = p.block_table;
  f.block_table_stride = p.block_table_stride;
  f.sm_scale = p.sm_scale;
  f.window = p.window;
  f.soft_cap = p.soft_cap;
  f.alibi_slopes = p.alibi_slopes;
  f.sink_logits = p.sink_logits;
  return f;
}

/// The beginning of the workspace is the fused or the slots kernel's, of any number of new tokens: what else a step keeps there lies behind it, so that steps that
/// prefill and steps that decode can take turns at one workspace.
std::size_t kept_bytes(const DeviceCodec& codec, const LayerStepParams& p) {
  std::size_t most = 0;
  if (p.cache.layout.kind == LayoutKind::Vllm) return slots_kept_bytes(codec);
  if (p.cache.layout.kind != LayoutKind::Native) return most;
  DecodeParams d = decode_params(p);
  for (d.q_len = 1; d.q_len <= 16; ++d.q_len) most = std::max(most, fused_workspace_bytes(codec, d));
  return align(most);
}
bool takes_fused(const DeviceCodec& codec, const LayerStepParams& p) {
  return decodes(p) && fused_supported(codec, decode_params(p), nullptr);
}
bool takes_slots(const DeviceCodec& codec, const LayerStepParams& p) {
  return decodes(p) && slots_supported(codec, decode_params(p), nullptr);
}
/// What the attention of this step needs behind that.
std::size_t attention_bytes(const DeviceCodec& codec, const LayerStepParams& p) {
  if (takes_fused(codec, p)) return 0;
  return align(decodes(p) ? decode_workspace_bytes(codec, decode_params(p))
                          : lengths_bytes(p) + prefill_workspace_bytes(codec, prefill_params(p)));
}

}  // namespace

std::size_t layer_step_workspace_bytes(const DeviceCodec& codec, const LayerStepParams& p) {
  return kept_bytes(codec, p) + attention_bytes(codec, p) + staging_bytes(codec, p);
}

std::string layer_step_path(const DeviceCodec& codec, const LayerStepParams& p) {
  return decodes(p) ? "store+decode(" + decode_path(codec, decode_params(p)) + ")" : "store+prefill";
}

void update_and_attend(const DeviceCodec& codec, const LayerStepParams& p, Stream stream) {
  require(p.q && p.k && p.v && p.out && p.slot_mapping && p.seq_lens, "q, k, v, out, slot_mapping and seq_lens must be given", kWhere);
  const std::size_t needed = layer_step_workspace_bytes(codec, p);
  require(p.workspace && p.workspace_bytes >= needed, "the workspace is smaller than layer_step_workspace_bytes()", kWhere);
  if (decodes(p)) require(p.total == static_cast<std::int64_t>(p.num_seqs) * p.max_q_len, "total is not num_seqs * max_q_len", kWhere);
  StoreParams s;
  s.k = p.k;
  s.v = p.v;
  s.dtype = p.dtype;
  s.n = p.total;
  s.slot_mapping = p.slot_mapping;
  s.positions = p.positions;
  s.cache = p.cache;
  store(codec, s, stream);

  const std::size_t kept = kept_bytes(codec, p);
  auto* base = static_cast<std::uint8_t*>(p.workspace) + kept;
  void* out = p.out_fp8_scale ? base + (needed - kept - staging_bytes(codec, p)) : p.out;
  if (decodes(p)) {
    DecodeParams d = decode_params(p);
    d.out = out;
    const bool keeps = takes_fused(codec, p) || takes_slots(codec, p);
    d.workspace = keeps ? p.workspace : base;
    d.workspace_bytes = p.workspace_bytes - (keeps ? 0 : kept);
    decode(codec, d, stream);
  } else {
    require(p.cu_q, "cu_q must be given", kWhere);
    PrefillParams f = prefill_params(p);
    f.out = out;
    auto* prefix_lens = reinterpret_cast<std::int32_t*>(base);
    launch_prefix_lens(p.seq_lens, p.cu_q, prefix_lens, p.num_seqs, static_cast<cudaStream_t>(stream));
    f.prefix_lens = prefix_lens;
    f.workspace = base + lengths_bytes(p);
    f.workspace_bytes = p.workspace_bytes - kept - lengths_bytes(p);
    prefill(codec, f, stream);
  }
  if (p.out_fp8_scale) {
    launch_to_fp8(out, p.dtype, p.out_fp8_scale, static_cast<std::uint8_t*>(p.out), p.total * p.num_q_heads * codec.head_dim(),
                  static_cast<cudaStream_t>(stream));
  }
}

}  // namespace tq4::gpu
