// What one encoded vector of a side consists of, from its spec alone: codecs, layouts and containers size their buffers by the same rule.
#pragma once

#include <cstddef>

#include "core/pack.h"
#include "tq4/spec.h"

namespace tq4::core {

/// Bits of one stored code: Prod spends one of its bits on the sign of the residual. Mixed: the lower of its two widths.
inline int code_bits(const SideSpec& side) {
  switch (side.kind) {
    case CodeKind::Prod: return side.bits - 1;
    case CodeKind::Fp8: return 8;
    case CodeKind::Fp16: return 16;
    default: return side.bits;
  }
}

inline bool has_codebook(const SideSpec& side) {
  return side.kind == CodeKind::Mse || side.kind == CodeKind::Prod || side.kind == CodeKind::Mixed;
}
inline bool has_zero(const SideSpec& side) { return side.kind == CodeKind::Uniform; }
inline bool has_scale(const SideSpec& side) { return has_codebook(side) || has_zero(side); }
inline bool has_signs(const SideSpec& side) { return side.kind == CodeKind::Prod; }
inline std::size_t scale_bytes(const SideSpec& side) { return side.scale_dtype == ScaleDType::F16 ? 2 : 4; }

/// Bytes of a row of codes. Mixed: its outlier channels are a multiple of 8, so one bit more of each is whole bytes.
inline std::size_t code_bytes(const SideSpec& side, int head_dim) {
  const std::size_t more = side.kind == CodeKind::Mixed ? static_cast<std::size_t>(mixed_outlier_channels(head_dim) / 8) : 0;
  return packed_bytes(static_cast<std::size_t>(head_dim), code_bits(side)) + more;
}

}  // namespace tq4::core
