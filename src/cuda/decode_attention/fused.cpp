// The fused decode kernel's host side: which calls it serves, its workspace, its launch.
#include "cuda/decode_attention/fused.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/check.h"
#include "cuda/decode_attention/fused_launch.h"
#include "cuda/decode_attention/hopper_refusal.h"

namespace tq4::gpu {
namespace {

bool has_exact(const DecodeParams& p) { return p.exact.sinks > 0 || p.exact.window > 0; }

/// 2, 3, 4 for a table, 8 for FP8 E4M3, 0 for what the kernel does not read.
int table_bits(const SideSpec& side) {
  if (side.kind == CodeKind::Mse && side.bits >= 2 && side.bits <= 4 && !side.norm_correction) return side.bits;
  if (side.kind == CodeKind::Fp8 && side.fp8 == Fp8Kind::E4M3) return 8;
  return 0;
}

const fused::Instance* find(const DeviceCodec& codec, const DecodeParams& p) {
  const int rows = p.num_q_heads / codec.num_kv_heads() * p.q_len;
  fused::InstanceKey key{codec.head_dim(), table_bits(codec.spec().k), table_bits(codec.spec().v),
                         rows <= 4   ? 4
                         : rows <= 8 ? 8
                                     : 16,
                         has_exact(p)};
  for (const fused::Instance* table :
       {fused::kInstances128, fused::kInstances128Exact, fused::kInstances64, fused::kInstances96, fused::kInstances256}) {
    for (const fused::Instance* i = table; i->key.head_dim != 0; ++i) {
      if (i->key == key) return i;
    }
  }
  return nullptr;
}

/// Why the kernel does not serve the call; null when it does.
const char* refusal(const DeviceCodec& codec, const DecodeParams& p) {
  const PageLayout& layout = p.cache.layout;
  const SideTables &k = codec.k(), &v = codec.v();
  if (layout.kind != LayoutKind::Native) return "pages are not in the native layout";
  if (const char* reason = hopper_refusal(codec, p)) return reason;
  if (layout.block_stride >= (std::int64_t{1} << 32)) return "a page has 4 GiB or more";
  if (k.rope_mu) return "centring before RoPE takes the general path";
  if (p.num_q_heads / codec.num_kv_heads() * p.q_len > 16) return "more than 16 query rows a kv head";
  if (has_exact(p) && !p.exact.rotated) return "the exact tokens are in original space";
  if (p.q_rotated && k.centre && p.lse) return "lse with centred keys needs queries in original space";
  if (!p.out_rotated && v.identity && v.centre) return "centred values without a rotation take the general path";
  if ((p.max_seq_len / 16 + (p.exact.sinks + p.exact.window) / 4 + 8) * p.num_seqs * codec.num_kv_heads() >= (std::int64_t{1} << 30))
    return "more than 2^30 tiles";
  if (!find(codec, p)) return "this combination of codecs, head_dim and query rows is not instantiated";
  return nullptr;
}

}  // namespace

bool fused_supported(const DeviceCodec& codec, const DecodeParams& params, std::string* why) {
  const char* reason = refusal(codec, params);
  if (reason && why) *why = reason;
  return reason == nullptr;
}

std::size_t fused_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params) {
  const fused::Instance* instance = find(codec, params);
  if (!instance) return 0;
  return static_cast<std::size_t>(codec.device().sm_count) * instance->part_words * sizeof(std::uint32_t);
}

void fused_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream) {
  constexpr const char* kWhere = "decode";
  require(params.q && params.out && params.block_table && params.seq_lens && params.cache.data, "a tensor of the call is a null pointer",
          kWhere);
  require(params.workspace && params.workspace_bytes >= fused_workspace_bytes(codec, params),
          "the workspace is smaller than decode_workspace_bytes()", kWhere);
  const auto aligned = [](const void* address, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(address) % bytes == 0; };
  require(aligned(params.q, 16) && aligned(params.workspace, 16) && aligned(params.out, 4),
          "q and workspace are not aligned to 16 bytes, or out to 4", kWhere);
  const ExactPart& exact = params.exact;
  require(exact.sinks >= 0 && exact.window >= 0, "sinks and window of the exact part are not negative", kWhere);
  require(exact.sinks == 0 || (exact.sink_k && exact.sink_v), "the exact part has sinks but no buffers for them", kWhere);
  require(exact.window == 0 || (exact.window_k && exact.window_v), "the exact part has a window but no buffers for it", kWhere);
  require(aligned(exact.sink_k, 16) && aligned(exact.sink_v, 16) && aligned(exact.window_k, 16) && aligned(exact.window_v, 16),
          "the exact part's buffers are not aligned to 16 bytes", kWhere);
  require(params.fresh_tokens >= -1, "fresh_tokens is less than -1", kWhere);
  const fused::Instance* instance = find(codec, params);
  const PageLayout& layout = params.cache.layout;
  const NativeTile tile = native_tile(layout.spec, layout.head_dim);
  const SideTables &k = codec.k(), &v = codec.v();
  const int heads = codec.num_kv_heads(), dim = codec.head_dim(), tiles = layout.block_size / 16;
  require(layout.num_kv_heads == heads && layout.head_dim == dim, "the cache is not the codec's", kWhere);

  fused::Params f{};
  f.codes = params.cache.data;
  f.scales = params.cache.data + static_cast<std::int64_t>(heads) * tiles * tile.bytes;
  f.code_stride = f.scale_stride = static_cast<std::uint32_t>(layout.block_stride);
  f.block_table = params.block_table;
  f.block_table_stride = params.block_table_stride;
  f.seq_lens = params.seq_lens;
  f.num_seqs = params.num_seqs;
  f.num_kv_heads = heads;
  f.group = params.num_q_heads / heads;
  f.group_reciprocal = (65536 + f.group - 1) / f.group;
  f.q_len = params.q_len;
  f.tiles_per_page_log2 = std::countr_zero(static_cast<unsigned>(tiles));
  f.tile_in_page = tiles - 1;
  f.q = params.q;
  f.out = params.out;
  f.lse = params.lse;
  f.q_is_bf16 = params.q_dtype == DType::BF16;
  const std::int64_t square = static_cast<std::int64_t>(dim) * dim;
  f.query_matrix = params.q_rotated || k.identity ? nullptr : k.query_hi;
  f.query_head_stride = f.query_matrix && k.per_head ? square : 0;
  f.inverse_matrix = params.out_rotated || v.identity ? nullptr : v.inverse_hi;
  f.inverse_head_stride = f.inverse_matrix && v.per_head ? square : 0;
  f.k_centre = k.centre;
  f.v_centre = v.centre;
  f.k_pairs = k.pair_half2;
  f.v_pairs = v.pair_half2;
  f.k_table_scale = (params.sm_scale != 0 ? params.sm_scale : 1.f / std::sqrt(static_cast<float>(dim))) * 1.44269504f;
  f.window = params.window;
  f.sinks = params.exact.sinks;
  f.recent = params.exact.window;
  f.sink_k = params.exact.sink_k;
  f.sink_v = params.exact.sink_v;
  f.recent_k = params.exact.window_k;
  f.recent_v = params.exact.window_v;
  f.fresh_tokens = params.fresh_tokens;
  f.parts = static_cast<std::uint32_t*>(params.workspace);
  instance->launch(f, codec.device(), stream);
}

}  // namespace tq4::gpu
