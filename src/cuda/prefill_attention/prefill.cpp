// Prefill and the layer step on the host: checks, the workspace's parts, the launches (tq4/prefill.h).
#include "tq4/prefill.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cuda/check.h"
#include "cuda/dequant/dequant_pages.h"
#include "cuda/prefill_attention/hopper.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "prefill";

std::size_t align(std::size_t n) { return (n + 255) / 256 * 256; }

/// Rows of a head in the workspace: whole tiles of the Hopper kernel, one where there are no keys at all.
std::int64_t capacity(const PrefillParams& p) { return (std::max<std::int64_t>(p.max_kv_len, 1) + kTileKeys - 1) / kTileKeys * kTileKeys; }
/// Rows of K (or V) of every sequence, and their bytes as fp16.
std::size_t side_rows(const DeviceCodec& codec, const PrefillParams& p) {
  return static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(capacity(p)) * static_cast<std::size_t>(codec.num_kv_heads());
}
std::size_t side_bytes(const DeviceCodec& codec, const PrefillParams& p) {
  return align(side_rows(codec, p) * static_cast<std::size_t>(codec.head_dim()) * 2);
}
/// Rows of queries there may be.
std::size_t query_rows(const PrefillParams& p) {
  return static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.max_q_len) * static_cast<std::size_t>(p.num_q_heads);
}

/// All but the keys and values.
FlashArgs flash_args(const DeviceCodec& codec, const PrefillParams& p) {
  const bool planes = p.k_planes.codes != nullptr, prefix = !planes && p.cache.data != nullptr && p.prefix_lens != nullptr;
  FlashArgs f{};
  f.q = p.q;
  f.out = p.out;
  f.lse = p.lse;
  f.dtype = static_cast<int>(p.dtype);
  f.capacity = capacity(p);
  f.cu_q = p.cu_q;
  f.cu_k = planes ? p.cu_k : nullptr;
  f.prefix_lens = prefix ? p.prefix_lens : nullptr;
  f.num_seqs = p.num_seqs;
  f.max_q_len = p.max_q_len;
  f.num_q_heads = p.num_q_heads;
  f.num_kv_heads = codec.num_kv_heads();
  f.head_dim = codec.head_dim();
  f.causal = p.causal;
  // Kernels take it from positions, which begin at -max_q_len where there are fewer keys than queries: the difference is an int.
  f.window = std::min(p.window, std::numeric_limits<int>::max() - p.max_q_len);
  f.sm_scale = p.sm_scale != 0 ? p.sm_scale : 1.0f / std::sqrt(static_cast<float>(codec.head_dim()));
  f.soft_cap = p.soft_cap;
  f.alibi_slopes = p.alibi_slopes;
  f.sink_logits = p.sink_logits;
  return f;
}

/// Whether the Hopper kernel serves the call; refuses int8 logits where it does not.
bool takes_hopper(const DeviceCodec& codec, const PrefillParams& p) {
  const char* lacks = p.general_path ? "general_path off" : hopper_flash_lacks(flash_args(codec, p), codec.device());
  if (p.qk_int8 && lacks) refuse(std::string("qk_int8 needs ") + lacks, kWhere);
  if (p.qk_int8 && codec.head_dim() != 128) refuse("qk_int8 needs head_dim 128", kWhere);
  return lacks == nullptr;
}

/// Of the Hopper kernel, behind everything else.
constexpr std::size_t kCounterBytes = 256;

/// K and V, then what int8 logits need: 4 parts after one another.
struct Int8Parts {
  std::size_t keys, key_scales, queries, query_scales;
};
Int8Parts int8_parts(const DeviceCodec& codec, const PrefillParams& p) {
  return {align(side_rows(codec, p) * 128), align(side_rows(codec, p) * 4), align(query_rows(p) * 128), align(query_rows(p) * 4)};
}

void attend_on_hopper(const DeviceCodec& codec, const PrefillParams& p, const FlashArgs& flash, const bool (&tiled)[2],
                      std::uint8_t* workspace, cudaStream_t stream) {
  const std::size_t side = side_bytes(codec, p);
  HopperFlashArgs h{};
  h.flash = flash;
  h.tiles.k = workspace;
  h.tiles.v = workspace + side;
  h.tiles.tiles = flash.capacity / kTileKeys;
  launch_tile_rows(flash, h.tiles, !tiled[0], !tiled[1], stream);
  if (p.qk_int8) {
    const Int8Parts parts = int8_parts(codec, p);
    std::uint8_t* at = workspace + 2 * side;
    h.tiles.k8 = reinterpret_cast<std::int8_t*>(at);
    h.tiles.k8_scale = reinterpret_cast<float*>(at += parts.keys);
    h.tiles.q8 = reinterpret_cast<std::int8_t*>(at += parts.key_scales);
    h.tiles.q8_scale = reinterpret_cast<float*>(at += parts.queries);
    launch_quantize_queries(flash, h.tiles, stream);
    launch_quantize_keys(flash, h.tiles, stream);
  }
  launch_hopper_flash(h, codec.device(), stream);
}

void check_params(const DeviceCodec& codec, const PrefillParams& p) {
  if (codec.head_dim() > 256 || codec.head_dim() % 8 != 0) refuse("head_dim must be a multiple of 8 up to 256", kWhere);
  if (p.dtype != DType::F16 && p.dtype != DType::BF16) refuse("queries must be float16 or bfloat16", kWhere);
  require(p.num_seqs >= 0 && p.max_q_len >= 0 && p.max_kv_len >= 0, "num_seqs, max_q_len and max_kv_len are not negative", kWhere);
  if (p.num_seqs > 65535) refuse("at most 65535 sequences a call", kWhere);
  require(p.num_q_heads >= 1 && p.num_q_heads % codec.num_kv_heads() == 0, "num_q_heads must be a multiple of num_kv_heads", kWhere);
  require(p.window >= 0 && p.soft_cap >= 0, "window and soft_cap are not negative", kWhere);
  require(p.k_planes.codes || (p.k_new && p.v_new), "either planes or new tokens must be given", kWhere);
  require(!p.k_planes.codes || (p.v_planes.codes && p.cu_k), "planes need both sides and cu_k", kWhere);
}

}  // namespace

std::size_t prefill_workspace_bytes(const DeviceCodec& codec, const PrefillParams& params) {
  const std::size_t sides = 2 * side_bytes(codec, params) + kCounterBytes;
  if (!params.qk_int8) return sides;
  const Int8Parts parts = int8_parts(codec, params);
  return sides + parts.keys + parts.key_scales + parts.queries + parts.query_scales;
}

std::string prefill_path(const DeviceCodec& codec, const PrefillParams& params) {
  if (!takes_hopper(codec, params)) return "general";
  return params.qk_int8 ? "hopper-int8" : "hopper";
}

void prefill(const DeviceCodec& codec, const PrefillParams& p, Stream stream) {
  check_params(codec, p);
  if (p.num_seqs == 0 || p.max_q_len == 0) return;
  require(p.q && p.out && p.cu_q, "q, out and cu_q must be given", kWhere);
  require(p.workspace && p.workspace_bytes >= prefill_workspace_bytes(codec, p), "the workspace is smaller than prefill_workspace_bytes()",
          kWhere);
  const bool hopper = takes_hopper(codec, p);
  const auto aligned = [](const void* address) { return reinterpret_cast<std::uintptr_t>(address) % 16 == 0; };
  require(aligned(p.q) && aligned(p.workspace) && (!hopper || aligned(p.out)), "q, out and workspace are not aligned to 16 bytes", kWhere);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  auto* k = static_cast<std::uint16_t*>(p.workspace);
  auto* v = reinterpret_cast<std::uint16_t*>(static_cast<std::uint8_t*>(p.workspace) + side_bytes(codec, p));
  FlashArgs f = flash_args(codec, p);
  if (hopper) {
    f.next_work =
        reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(p.workspace) + prefill_workspace_bytes(codec, p) - kCounterBytes);
  }
  bool tiled[2] = {};
  const bool planes = p.k_planes.codes != nullptr;
  const bool prefix = !planes && p.cache.data != nullptr && p.prefix_lens != nullptr;
  if (planes) {
    launch_unpack_planes(codec, {p.k_planes, p.v_planes}, p.high_nibble_first, f, std::max<std::int64_t>(p.max_kv_len, 1), {k, v}, hopper,
                         tiled, cuda_stream);
  } else {
    bool tiles = hopper;
    if (prefix) {
      DequantPagesParams d;
      d.cache = p.cache;
      d.block_table = p.block_table;
      d.block_table_stride = p.block_table_stride;
      d.seq_lens = p.prefix_lens;
      d.num_seqs = p.num_seqs;
      d.max_seq_len = capacity(p);
      d.k_out = k;
      d.v_out = v;
      d.rotated = false;
      tiles = tiles && dequant_pages_to_tiles(codec, d, stream);
      if (!tiles) dequant_pages(codec, d, stream);
    }
    tiled[0] = tiled[1] = tiles;
    AppendArgs a{};
    const std::int64_t dim = codec.head_dim(), heads = codec.num_kv_heads();
    const bool k_dense = p.k_token_stride == 0 && p.k_head_stride == 0, v_dense = p.v_token_stride == 0 && p.v_head_stride == 0;
    a.k = p.k_new;
    a.v = p.v_new;
    a.dtype = static_cast<int>(p.dtype);
    a.k_token_stride = k_dense ? heads * dim : p.k_token_stride;
    a.k_head_stride = k_dense ? dim : p.k_head_stride;
    a.v_token_stride = v_dense ? heads * dim : p.v_token_stride;
    a.v_head_stride = v_dense ? dim : p.v_head_stride;
    a.k_out = k;
    a.v_out = v;
    a.capacity = capacity(p);
    a.cu_q = p.cu_q;
    a.prefix_lens = prefix ? p.prefix_lens : nullptr;
    a.num_seqs = p.num_seqs;
    a.max_q_len = p.max_q_len;
    a.num_kv_heads = codec.num_kv_heads();
    a.head_dim = codec.head_dim();
    a.tiled = tiles;
    a.next_work = f.next_work;
    launch_append(a, cuda_stream);
  }
  if (hopper) {
    attend_on_hopper(codec, p, f, tiled, static_cast<std::uint8_t*>(p.workspace), cuda_stream);
    return;
  }
  f.k = k;
  f.v = v;
  launch_flash(f, codec.device(), cuda_stream);
}

}  // namespace tq4::gpu
