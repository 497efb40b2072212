// The slots kernel's host side: which calls it serves, how a page is cut into bulk copies, the ring in shared memory, workspace, launches.
#include "cuda/decode_attention/slots.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/check.h"
#include "cuda/decode_attention/hopper_refusal.h"
#include "cuda/decode_attention/slots_launch.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "decode";
constexpr std::size_t kMostRows = 8;  // query rows a kv head, of any instance

std::size_t align(std::size_t n) { return (n + 255) / 256 * 256; }

int rows_of(const DeviceCodec& codec, const DecodeParams& p) { return p.num_q_heads / codec.num_kv_heads() * p.q_len; }

/// Whether the tokens of a page lie one behind the other with all their heads (else heads with all their tokens).
bool token_major(const PageLayout& layout) {
  return layout.num_kv_heads == 1 || layout.token_stride >= layout.head_stride * layout.num_kv_heads;
}

const fused::SlotInstance* find(const DeviceCodec& codec, const DecodeParams& p) {
  const SideSpec &k = codec.spec().k, &v = codec.spec().v;
  int k_bits = 0;
  if (k.kind == CodeKind::Mse && k.norm_correction) k_bits = k.bits;
  if (k.kind == CodeKind::Fp8 && k.fp8 == Fp8Kind::E4M3) k_bits = 8;
  const int v_bits = v.kind == CodeKind::Uniform ? v.bits : 0;
  const bool can_spread = p.cache.layout.token_stride % 4 == 0 && (k_bits != 8 || p.cache.layout.head_stride % 4 == 0);
  for (const fused::SlotInstance* table : {fused::kSlots128, fused::kSlots64, fused::kSlots256}) {
    for (const fused::SlotInstance* i = table; i->key.head_dim != 0; ++i) {
      const fused::SlotKey& key = i->key;
      if (key.head_dim != codec.head_dim() || key.k_bits != k_bits || key.v_bits != v_bits) continue;
      if (key.rows >= rows_of(codec, p) && key.warps >= codec.num_kv_heads() && (can_spread || !key.spread)) return i;
    }
  }
  return nullptr;
}

/// The ring: groups of warps, stages.
struct Ring {
  int groups, low, stages;
  std::int64_t stage_bytes;
};
Ring ring_of(const fused::SlotInstance& instance, const PageLayout& layout) {
  Ring r{};
  const std::int64_t unit = 16 * layout.token_stride * (token_major(layout) ? 1 : layout.num_kv_heads);
  r.stage_bytes = (unit + 127) / 128 * 128;
  r.groups = instance.key.warps / layout.num_kv_heads;
  r.low = static_cast<int>((fused::kSlotTables - instance.low) / r.stage_bytes);
  const int high = static_cast<int>((fused::kSlotEnd - instance.high) / r.stage_bytes);
  r.stages = std::min({r.low + high, fused::kSlotMaxStages, fused::kSlotMaxTurns * r.groups}) / r.groups * r.groups;
  return r;
}

/// Why the kernel does not serve the call; null when it does.
const char* refusal(const DeviceCodec& codec, const DecodeParams& p) {
  const PageLayout& layout = p.cache.layout;
  const SideTables &k = codec.k(), &v = codec.v();
  if (layout.kind != LayoutKind::Vllm) return "pages are not in vLLM's layout";
  if (const char* reason = hopper_refusal(codec, p)) return reason;
  if (layout.token_stride % 2 != 0 || layout.head_stride % 2 != 0) return "slots are not aligned to 2 bytes";
  if (token_major(layout)) {
    if (layout.token_stride * layout.block_size > layout.block_stride) return "the tokens of a page overlap those of the next";
  } else if (layout.head_stride % 16 != 0 || layout.head_stride < layout.token_stride * layout.block_size) {
    return "the heads of a page are not aligned to 16 bytes, or overlap";
  }
  if (p.exact.sinks > 0 || p.exact.window > 0) return "exact tokens take the general path";
  if (k.rope_mu || k.centre || v.centre || k.per_head || v.per_head) return "calibrated tables take the general path";
  if (!p.q_rotated && !k.identity && !k.hadamard) return "queries need a matrix";
  if (!p.out_rotated && !v.identity) return "values are rotated";
  if (p.num_seqs > 65535) return "more than 65,535 sequences";
  if ((p.max_seq_len / 16 + 8) * p.num_seqs >= (std::int64_t{1} << 30)) return "more than 2^30 tiles";
  if (p.cache.num_blocks * (layout.block_size / 16) >= (std::int64_t{1} << 32) - 1) return "the cache has 2^32 tiles or more";
  const fused::SlotInstance* instance = find(codec, p);
  if (!instance) return "this combination of codecs, head_dim, heads, query rows and strides is not instantiated";
  const Ring ring = ring_of(*instance, layout);
  if (ring.stages < 2 * ring.groups) return "there is no room for 16 tokens of all heads, twice a group of warps";
  return nullptr;
}

/// Of a block's part. There is room for the most query rows an instance has, so that calls with any number of them find zeros where they look for parts.
std::size_t part_words(const DeviceCodec& codec, std::size_t rows) {
  return (static_cast<std::size_t>(codec.num_kv_heads()) * rows * static_cast<std::size_t>(codec.head_dim() + 2) + 3) / 4 * 4;
}

}  // namespace

bool slots_supported(const DeviceCodec& codec, const DecodeParams& params, std::string* why) {
  const char* reason = refusal(codec, params);
  if (reason && why) *why = reason;
  return reason == nullptr;
}

std::size_t slots_kept_bytes(const DeviceCodec& codec) {
  return align(static_cast<std::size_t>(codec.device().sm_count) * part_words(codec, kMostRows) * sizeof(std::uint32_t));
}

std::size_t slots_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params) {
  const std::size_t words = part_words(codec, static_cast<std::size_t>(rows_of(codec, params)));
  return slots_kept_bytes(codec) + align(static_cast<std::size_t>(codec.device().sm_count) * words * sizeof(float));
}

void slots_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream) {
  require(params.q && params.out && params.block_table && params.seq_lens && params.cache.data, "a tensor of the call is a null pointer",
          kWhere);
  require(params.workspace && params.workspace_bytes >= slots_workspace_bytes(codec, params),
          "the workspace is smaller than decode_workspace_bytes()", kWhere);
  require((reinterpret_cast<std::uintptr_t>(params.q) | reinterpret_cast<std::uintptr_t>(params.workspace)) % 16 == 0 &&
              reinterpret_cast<std::uintptr_t>(params.out) % 4 == 0,
          "q and workspace are not aligned to 16 bytes, or out to 4", kWhere);
  require(params.fresh_tokens >= -1, "fresh_tokens is less than -1", kWhere);
  const fused::SlotInstance* instance = find(codec, params);
  const PageLayout& layout = params.cache.layout;
  const Ring ring = ring_of(*instance, layout);
  const SideTables& k = codec.k();
  const int heads = codec.num_kv_heads(), dim = codec.head_dim();
  const bool by_token = token_major(layout);

  fused::SlotParams f{};
  f.block_table = params.block_table;
  f.block_table_stride = params.block_table_stride;
  f.seq_lens = params.seq_lens;
  f.num_seqs = params.num_seqs;
  f.num_kv_heads = 1;
  f.group = params.num_q_heads / heads;
  f.group_reciprocal = (65536 + f.group - 1) / f.group;
  f.q_len = params.q_len;
  f.tiles_per_page_log2 = std::countr_zero(static_cast<unsigned>(layout.block_size / 16));
  f.q = params.q;
  f.out = params.out;
  f.lse = params.lse;
  f.q_is_bf16 = params.q_dtype == DType::BF16;
  f.k_pairs = k.pair_half2;
  f.k_table_scale = (params.sm_scale != 0 ? params.sm_scale : 1.f / std::sqrt(static_cast<float>(dim))) * 1.44269504f;
  f.window = params.window;
  f.fresh_tokens = params.fresh_tokens;
  f.pages = params.cache.data;
  f.page_stride = layout.block_stride;
  f.heads = heads;
  f.token_at = static_cast<std::uint32_t>(layout.token_stride);
  f.copies = by_token ? 1 : heads;
  f.copy_bytes = static_cast<std::uint32_t>(16 * layout.token_stride);
  f.copy_at = by_token ? 0 : static_cast<std::uint32_t>(layout.head_stride);
  f.head_at = by_token ? static_cast<std::uint32_t>(layout.head_stride) : f.copy_bytes;
  f.groups = ring.groups;
  f.stages = ring.stages;
  f.turns = ring.stages / ring.groups;
  f.low_stages = ring.low;
  f.stage_bytes = static_cast<std::uint32_t>(ring.stage_bytes);
  f.hadamard = !params.q_rotated && !k.identity;
  f.signs = k.hadamard_signs;
  f.parts = static_cast<std::uint32_t*>(params.workspace);
  f.part_words = static_cast<int>(part_words(codec, static_cast<std::size_t>(rows_of(codec, params))));
  f.openings = reinterpret_cast<float*>(static_cast<std::uint8_t*>(params.workspace) + slots_kept_bytes(codec));
  instance->launch(f, codec.device(), stream);
}

}  // namespace tq4::gpu
