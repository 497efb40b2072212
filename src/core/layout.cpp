// Which specs a layout has room for, and the sizes that follow. The bytes are moved in layout_pages.cpp.
#include "tq4/layout.h"

#include <bit>
#include <cctype>
#include <string>

#include "core/side.h"
#include "core/units.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

[[noreturn]] void unsupported(LayoutKind kind, const std::string& why) {
  throw Error(ErrorCode::Unsupported, why, "layout " + std::string(layout_name(kind)));
}

std::int64_t code_bytes(const SideSpec& side, int head_dim) { return static_cast<std::int64_t>(core::code_bytes(side, head_dim)); }

/// Bytes of scale and zero of one vector.
std::int64_t side_bytes(const SideSpec& side) {
  return static_cast<std::int64_t>(core::scale_bytes(side)) * ((core::has_scale(side) ? 1 : 0) + (core::has_zero(side) ? 1 : 0));
}

void check_native(const CodecSpec& spec, int head_dim) {
  for (const SideSpec* side : {&spec.k, &spec.v}) {
    if (core::has_signs(*side)) unsupported(LayoutKind::Native, "pages have no place for the residual signs of prod codecs");
    if (core::has_scale(*side) && side->scale_dtype != ScaleDType::F16) unsupported(LayoutKind::Native, "pages hold scales in float16");
  }
  if (core::has_zero(spec.k)) unsupported(LayoutKind::Native, "pages have no place for the zeros of uniform keys");
  if (code_bytes(spec.v, head_dim) % 8 != 0) {
    // A lane of the decode kernel owns D/8 coordinates of a V row, in bytes of its own: 10 coordinates of 3 bits have none.
    unsupported(LayoutKind::Native, "a row of value codes must be a multiple of 8 bytes, not " +
                                        std::to_string(code_bytes(spec.v, head_dim)) + " (head_dim " + std::to_string(head_dim) +
                                        "): an eighth of the head takes whole bytes; 4-bit values do at multiples of 16");
  }
}

void check_turboquant_vllm(const CodecSpec& spec) {
  for (const SideSpec* side : {&spec.k, &spec.v}) {
    if (side->kind != CodeKind::Mse || side->bits < 2 || side->bits > 4) {
      unsupported(LayoutKind::TurboquantVllm, "rows hold mse codes of 2 to 4 bits, one nibble a coordinate");
    }
    if (side->scale_dtype != ScaleDType::F32) unsupported(LayoutKind::TurboquantVllm, "rows hold norms in float32");
  }
}

void check_vllm(const CodecSpec& spec) {
  if (spec.k.kind != CodeKind::Mse && spec.k.kind != CodeKind::Fp8) unsupported(LayoutKind::Vllm, "keys must be mse codes or fp8");
  if (spec.v.kind != CodeKind::Uniform) unsupported(LayoutKind::Vllm, "values must be uniform codes with scale and zero");
  if (spec.v.scale_dtype != ScaleDType::F16 || (core::has_scale(spec.k) && spec.k.scale_dtype != ScaleDType::F16)) {
    unsupported(LayoutKind::Vllm, "slots hold norms, scales and zeros in float16");
  }
}

}  // namespace

std::string_view layout_name(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::Native: return "native";
    case LayoutKind::TurboquantVllm: return "turboquant-vllm";
    case LayoutKind::Vllm: return "vllm";
  }
  throw Error(ErrorCode::Usage, "unknown layout kind");
}

LayoutKind layout_from_name(std::string_view name) {
  std::string lower(name);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const LayoutKind kind : {LayoutKind::Native, LayoutKind::TurboquantVllm, LayoutKind::Vllm}) {
    if (lower == layout_name(kind)) return kind;
  }
  throw Error(ErrorCode::Usage, "unknown layout '" + std::string(name) + "': native, turboquant-vllm and vllm are known");
}

NativeTile native_tile(const CodecSpec& spec, int head_dim) {
  validate(spec.k, head_dim);
  validate(spec.v, head_dim);
  check_native(spec, head_dim);
  NativeTile tile{};
  tile.k_row = static_cast<int>(code_bytes(spec.k, head_dim));
  tile.v_piece = static_cast<int>(code_bytes(spec.v, head_dim)) / 8;
  tile.k_offset = 0;
  tile.v_offset = 16 * tile.k_row;
  tile.bytes = tile.v_offset + 16 * 8 * tile.v_piece;
  constexpr int kScales = 8 * 4 * 2, kZeros = 8 * 2 * 2;
  tile.scale_offset = 0;
  tile.zero_offset = core::has_zero(spec.v) ? kScales : -1;
  tile.scale_bytes = core::has_zero(spec.v) ? kScales + kZeros : kScales;
  tile.k_units = core::in_units(spec.k, head_dim);
  tile.v_units = core::in_units(spec.v, head_dim);
  return tile;
}

PageLayout make_layout(LayoutKind kind, const CodecSpec& spec, int num_kv_heads, int head_dim, int block_size) {
  validate(spec.k, head_dim);
  validate(spec.v, head_dim);
  if (num_kv_heads < 1 || block_size < 1) {
    throw Error(ErrorCode::Usage, "a page needs at least one kv head and one token, not " + std::to_string(num_kv_heads) + " and " +
                                      std::to_string(block_size));
  }
  PageLayout layout;
  layout.kind = kind;
  layout.spec = spec;
  layout.num_kv_heads = num_kv_heads;
  layout.head_dim = head_dim;
  layout.block_size = block_size;
  switch (kind) {
    case LayoutKind::Native:
      if (block_size % 16 != 0)
        throw Error(ErrorCode::Usage, "block_size of native pages must be a multiple of 16, not " + std::to_string(block_size));
      layout.block_stride = page_bytes(layout);
      break;
    case LayoutKind::TurboquantVllm:
      check_turboquant_vllm(spec);
      layout.token_stride = static_cast<std::int64_t>(num_kv_heads) * 2 * (head_dim / 2 + 4);
      layout.block_stride = block_size * layout.token_stride;
      break;
    case LayoutKind::Vllm: {
      check_vllm(spec);
      const std::int64_t slot = code_bytes(spec.k, head_dim) + side_bytes(spec.k) + code_bytes(spec.v, head_dim) + side_bytes(spec.v);
      layout.head_stride = (slot + 1) / 2 * 2;
      layout.token_stride = num_kv_heads * layout.head_stride;
      layout.block_stride = block_size * layout.token_stride;
      break;
    }
  }
  return layout;
}

PageLayout padded_turboquant_vllm_layout(const CodecSpec& spec, int num_kv_heads, int head_dim, int block_size) {
  PageLayout layout = make_layout(LayoutKind::TurboquantVllm, spec, num_kv_heads, head_dim, block_size);
  layout.token_stride = num_kv_heads * static_cast<std::int64_t>(std::bit_ceil(static_cast<unsigned>(2 * (head_dim / 2 + 4))));
  layout.block_stride = block_size * layout.token_stride;
  return layout;
}

std::int64_t page_bytes(const PageLayout& layout) {
  switch (layout.kind) {
    case LayoutKind::Native: {
      const NativeTile tile = native_tile(layout.spec, layout.head_dim);
      return static_cast<std::int64_t>(layout.num_kv_heads) * (layout.block_size / 16) * (tile.bytes + tile.scale_bytes);
    }
    case LayoutKind::TurboquantVllm: return layout.block_size * layout.token_stride;
    case LayoutKind::Vllm: {
      // Dense whichever of the token and head axes is the outer one.
      const PageLayout dense = make_layout(layout.kind, layout.spec, layout.num_kv_heads, layout.head_dim, layout.block_size);
      return dense.block_stride;
    }
  }
  throw Error(ErrorCode::Usage, "unknown layout kind");
}

std::int64_t token_head_bytes(const PageLayout& layout) {
  if (layout.kind == LayoutKind::TurboquantVllm) return 2 * (layout.head_dim / 2 + 4);
  return code_bytes(layout.spec.k, layout.head_dim) + side_bytes(layout.spec.k) + code_bytes(layout.spec.v, layout.head_dim) +
         side_bytes(layout.spec.v);
}

}  // namespace tq4
