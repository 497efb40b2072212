// General decode attention on the host: what it serves, how the context is split, where the workspace's parts lie, the three launches.
#include "cuda/decode_attention/general.h"

#include <algorithm>
#include <cmath>

#include "cuda/check.h"
#include "cuda/decode_attention/splits.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "decode";

bool has_exact(const DecodeParams& p) { return p.exact.sinks > 0 || p.exact.window > 0; }

std::size_t align(std::size_t n) { return (n + 255) / 256 * 256; }

}  // namespace

GeneralPlan general_plan(const DeviceCodec& codec, const DecodeParams& p) {
  GeneralPlan plan{};
  const std::int64_t heads = codec.num_kv_heads(), dim = codec.head_dim(), group = std::max<std::int64_t>(p.num_q_heads / heads, 1);
  const std::int64_t rows = static_cast<std::int64_t>(p.num_seqs) * p.q_len * p.num_q_heads;
  plan.row_tiles = static_cast<int>((group * p.q_len + 15) / 16);
  plan.v_chunk = static_cast<int>(std::min<std::int64_t>(dim, 256));
  plan.v_chunks = static_cast<int>((dim + plan.v_chunk - 1) / plan.v_chunk);
  std::int64_t longest = std::max<std::int64_t>(p.max_seq_len, 1);
  if (p.window > 0) longest = std::min<std::int64_t>(longest, static_cast<std::int64_t>(p.window) + p.q_len);
  const std::int64_t blocks = std::max<std::int64_t>(p.num_seqs, 1) * heads * plan.row_tiles * plan.v_chunks;
  const std::int64_t slots = static_cast<std::int64_t>(codec.device().sm_count) * (plan.v_chunk <= 128 ? 4 : 2);
  plan.splits = p.splits > 0 ? std::min(p.splits, most_splits(longest)) : best_splits(blocks, slots, longest);
  plan.parts = plan.splits + (has_exact(p) ? 1 : 0);
  std::size_t at = 0;
  const auto take = [&](std::size_t& offset, std::size_t bytes) {
    offset = at;
    at += align(bytes);
  };
  const std::size_t n = static_cast<std::size_t>(rows), d = static_cast<std::size_t>(dim), parts = static_cast<std::size_t>(plan.parts);
  take(plan.q_rot, n * d * 2);
  take(plan.q_exact, has_exact(p) ? n * d * 2 : 0);
  take(plan.q_info, n * sizeof(float) * 4);
  take(plan.part_ml, n * parts * sizeof(float) * 2);
  take(plan.part_out, n * parts * d * sizeof(float));
  plan.bytes = at;
  return plan;
}

void general_check(const DeviceCodec& codec, const DecodeParams& p) {
  const int dim = codec.head_dim();
  if (dim % 8 != 0 || dim < 32 || dim > 512) refuse("head_dim must be a multiple of 8 from 32 to 512", kWhere);
  if (p.q_dtype != DType::F16 && p.q_dtype != DType::BF16) refuse("queries must be float16 or bfloat16", kWhere);
  require(p.num_seqs >= 0 && p.q_len >= 1, "num_seqs must be at least 0 and q_len at least 1", kWhere);
  if (p.q_len > 16) refuse("q_len is at most 16 (prefill attention takes more)", kWhere);
  if (p.num_seqs > 65535) refuse("at most 65535 sequences a call", kWhere);
  require(p.num_q_heads >= 1 && p.num_q_heads % codec.num_kv_heads() == 0, "num_q_heads must be a multiple of num_kv_heads", kWhere);
  require(p.window >= 0 && p.soft_cap >= 0, "window and soft_cap are not negative", kWhere);
  require(p.max_seq_len >= 0 && p.max_seq_len < (std::int64_t{1} << 30), "max_seq_len must be below 2^30", kWhere);
  const bool exact = has_exact(p);
  if (exact && !p.exact.rotated && (p.q_rotated || p.out_rotated))
    refuse("exact tokens in original space need queries and output there too", kWhere);
  if (p.q_rotated && codec.k().rope_mu) refuse("centring before RoPE needs queries in original space", kWhere);
  require(p.exact.sinks >= 0 && p.exact.window >= 0, "sinks and window of the exact part are not negative", kWhere);
  require(p.exact.sinks == 0 || (p.exact.sink_k && p.exact.sink_v), "the exact part has sinks but no buffers for them", kWhere);
  require(p.exact.window == 0 || (p.exact.window_k && p.exact.window_v), "the exact part has a window but no buffers for it", kWhere);
  attention_side(codec, Side::K, p.cache, kWhere);
  attention_side(codec, Side::V, p.cache, kWhere);
  cache_view(codec, p.cache, kWhere);
}

void general_decode(const DeviceCodec& codec, const DecodeParams& p, Stream stream) {
  general_check(codec, p);
  if (p.num_seqs == 0) return;
  require(p.q && p.out && p.block_table && p.seq_lens, "q, out, block_table and seq_lens must be given", kWhere);
  const GeneralPlan plan = general_plan(codec, p);
  require(p.workspace && p.workspace_bytes >= plan.bytes, "the workspace is smaller than decode_workspace_bytes()", kWhere);
  auto* base = static_cast<std::uint8_t*>(p.workspace);
  GeneralArgs a{};
  a.cache = cache_view(codec, p.cache, kWhere);
  a.k = attention_side(codec, Side::K, p.cache, kWhere);
  a.v = attention_side(codec, Side::V, p.cache, kWhere);
  a.k_tables = codec.k();
  a.v_tables = codec.v();
  a.q = p.q;
  a.out = p.out;
  a.lse = p.lse;
  a.q_dtype = static_cast<int>(p.q_dtype);
  a.num_seqs = p.num_seqs;
  a.q_len = p.q_len;
  a.num_q_heads = p.num_q_heads;
  a.num_kv_heads = codec.num_kv_heads();
  a.group = p.num_q_heads / codec.num_kv_heads();
  a.head_dim = codec.head_dim();
  a.block_table = p.block_table;
  a.block_table_stride = p.block_table_stride;
  a.seq_lens = p.seq_lens;
  a.sm_scale = p.sm_scale != 0 ? p.sm_scale : 1.0f / std::sqrt(static_cast<float>(a.head_dim));
  a.window = p.window;
  a.soft_cap = p.soft_cap;
  a.alibi_slopes = p.alibi_slopes;
  a.sink_logits = p.sink_logits;
  a.q_rotated = p.q_rotated;
  a.out_rotated = p.out_rotated;
  a.exact = p.exact;
  a.rope_dim = codec.k().rope_mu ? codec.rope_dim() : 0;
  a.splits = plan.splits;
  a.parts = plan.parts;
  a.row_tiles = plan.row_tiles;
  a.v_chunks = plan.v_chunks;
  a.v_chunk = plan.v_chunk;
  a.q_rot = reinterpret_cast<std::uint16_t*>(base + plan.q_rot);
  a.q_exact = plan.parts > plan.splits && !p.exact.rotated ? reinterpret_cast<std::uint16_t*>(base + plan.q_exact) : nullptr;
  a.q_info = reinterpret_cast<float4*>(base + plan.q_info);
  a.part_ml = reinterpret_cast<float2*>(base + plan.part_ml);
  a.part_out = reinterpret_cast<float*>(base + plan.part_out);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  launch_general_pre(a, cuda_stream);
  launch_general_split(a, codec.device(), cuda_stream);
  launch_general_merge(a, cuda_stream);
}

}  // namespace tq4::gpu
