// Builds the plain structs kernels take from specs and layouts, and refuses by name what no kernel reads.
#include "cuda/views.h"

#include <bit>

#include "cuda/check.h"

namespace tq4::gpu {

SideView attention_side(const DeviceCodec& codec, Side side, bool nibbles_high_first, const char* where) {
  const SideSpec& spec = side == Side::K ? codec.spec().k : codec.spec().v;
  const SideTables& tables = side == Side::K ? codec.k() : codec.v();
  SideView view;
  view.kind = static_cast<int>(spec.kind);
  view.fp8 = static_cast<int>(spec.fp8);
  switch (spec.kind) {
    case CodeKind::Mse:
    case CodeKind::Uniform: view.code_bits = spec.bits; break;
    case CodeKind::Fp8: view.code_bits = 8; break;
    case CodeKind::Fp16: view.code_bits = 16; break;
    case CodeKind::Prod:
    case CodeKind::Mixed: refuse("the GPU kernels serve Mse, Uniform, Fp8 and Fp16 codecs, not Prod or Mixed", where);
  }
  view.row_bits = nibbles_high_first ? 4 : view.code_bits;
  if (nibbles_high_first && (spec.kind != CodeKind::Mse || spec.bits > 4)) refuse("nibble rows hold Mse codes of at most 4 bits", where);
  view.mode = view.row_bits <= 4 ? kPair : view.row_bits <= 8 ? kSingle : kHalf;
  view.row_bytes = (codec.head_dim() * view.row_bits + 7) / 8;
  view.high_first = nibbles_high_first;
  view.has_scale = spec.kind == CodeKind::Mse || spec.kind == CodeKind::Uniform;
  view.has_zero = spec.kind == CodeKind::Uniform;
  view.norm_correction = spec.kind == CodeKind::Mse && spec.norm_correction;
  view.level_offset = view.has_zero ? 0.5f * static_cast<float>((1 << spec.bits) - 1) : 0.0f;
  view.pair_half2 = tables.pair_half2;
  view.centroids = tables.centroids;
  view.pair_points = tables.pair_points;
  return view;
}

SideView attention_side(const DeviceCodec& codec, Side side, const PagedCache& cache, const char* where) {
  return attention_side(codec, side, cache.layout.kind == LayoutKind::TurboquantVllm, where);
}

CacheView cache_view(const DeviceCodec& codec, const PagedCache& cache, const char* where) {
  const PageLayout& layout = cache.layout;
  require(cache.data != nullptr && cache.num_blocks > 0, "the cache has no pages", where);
  require(layout.head_dim == codec.head_dim() && layout.num_kv_heads == codec.num_kv_heads(),
          "the layout is for another shape than the codec", where);
  require(layout.spec.k == codec.spec().k && layout.spec.v == codec.spec().v, "the layout is for another codec", where);
  require(layout.block_size > 0 && layout.block_stride > 0, "the layout has no block size or stride", where);
  CacheView view;
  view.data = cache.data;
  view.end = cache.data + cache.num_blocks * layout.block_stride;
  view.num_blocks = cache.num_blocks;
  view.block_stride = layout.block_stride;
  view.token_stride = layout.token_stride;
  view.block_size = layout.block_size;
  if (std::has_single_bit(static_cast<unsigned>(layout.block_size)))
    view.block_shift = std::countr_zero(static_cast<unsigned>(layout.block_size));
  view.num_kv_heads = layout.num_kv_heads;
  view.head_dim = layout.head_dim;
  if (layout.kind == LayoutKind::Native) {
    const NativeTile tile = native_tile(layout.spec, layout.head_dim);
    require(layout.block_size % 16 == 0, "native pages hold a multiple of 16 tokens", where);
    require(reinterpret_cast<std::uintptr_t>(cache.data) % 16 == 0 && layout.block_stride % 16 == 0, "native pages must be 16-byte aligned",
            where);
    view.native = 1;
    view.tile_bytes = tile.bytes;
    view.v_piece = tile.v_piece;
    view.scale_bytes = tile.scale_bytes;
    view.k_units = tile.k_units;
    view.v_units = tile.v_units;
    view.scale_blocks = static_cast<std::int64_t>(layout.num_kv_heads) * (layout.block_size / 16) * tile.bytes;
    view.k.codes = tile.k_offset;
    view.v.codes = tile.v_offset;
    view.k.scale = tile.scale_offset;
    view.v.scale = tile.scale_offset + 4;  // [8][4]: K of g, of g + 8, V of g, of g + 8
    view.k.zero = view.v.zero = tile.zero_offset;
    return view;
  }
  const SideView k = attention_side(codec, Side::K, cache, where), v = attention_side(codec, Side::V, cache, where);
  if (layout.kind == LayoutKind::TurboquantVllm) {
    const std::int64_t heads = layout.num_kv_heads;
    view.k.codes_head = k.row_bytes;
    view.k.scale = heads * k.row_bytes;
    view.v.codes = view.k.scale + heads * 4;
    view.v.codes_head = v.row_bytes;
    view.v.scale = view.v.codes + heads * v.row_bytes;
    view.k.scale_head = view.v.scale_head = 4;
    view.k.scale_f32 = view.v.scale_f32 = 1;
    require(layout.token_stride % 4 == 0 && layout.block_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(cache.data) % 4 == 0,
            "turboquant-vllm pages must be 4-byte aligned", where);
    return view;
  }
  // Vllm: one slot a token and head: K codes | K scale | V codes | V scale | V zero.
  view.k.scale = k.row_bytes;
  view.k.zero = view.k.scale + 2 * k.has_scale;
  view.v.codes = view.k.zero + 2 * k.has_zero;
  view.v.scale = view.v.codes + v.row_bytes;
  view.v.zero = view.v.scale + 2 * v.has_scale;
  view.k.codes_head = view.k.scale_head = view.v.codes_head = view.v.scale_head = layout.head_stride;
  require(layout.token_stride % 2 == 0 && layout.head_stride % 2 == 0 && layout.block_stride % 2 == 0 && view.k.scale % 2 == 0 &&
              view.v.codes % 2 == 0 && view.v.scale % 2 == 0,
          "vllm slots must be 2-byte aligned", where);
  return view;
}

}  // namespace tq4::gpu
