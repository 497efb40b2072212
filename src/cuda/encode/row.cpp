// RowCodec from a DeviceCodec.
#include "cuda/encode/row.h"

#include "core/side.h"

namespace tq4::gpu {

RowCodec row_codec(const DeviceCodec& codec, Side side) {
  const SideSpec& spec = side == Side::K ? codec.spec().k : codec.spec().v;
  RowCodec r;
  r.t = side == Side::K ? codec.k() : codec.v();
  r.kind = static_cast<int>(spec.kind);
  r.dim = codec.head_dim();
  r.bits = core::code_bits(spec);
  r.outliers = spec.kind == CodeKind::Mixed ? mixed_outlier_channels(r.dim) : 0;
  r.code_bytes = static_cast<int>(core::code_bytes(spec, r.dim));
  r.scale_rule = static_cast<int>(spec.scale_rule);
  r.scale_f16 = spec.scale_dtype == ScaleDType::F16;
  r.fp8 = static_cast<int>(spec.fp8);
  r.norm_correction = spec.norm_correction;
  r.peer_norm =
      spec.kind == CodeKind::Mse && spec.codebook == CodebookKind::TurboquantVllm && spec.scale_rule == ScaleRule::Norm && !r.t.per_head;
  r.has_scale = core::has_scale(spec);
  r.has_zero = core::has_zero(spec);
  r.has_signs = core::has_signs(spec);
  r.rope_dim = codec.rope_dim();
  return r;
}

int table_bytes(const RowCodec& r) {
  if (r.t.pair_points) return 4 * 2 * (1 << (2 * r.bits));
  if (r.bits > 8 || r.kind == static_cast<int>(CodeKind::Fp8) || r.kind == static_cast<int>(CodeKind::Uniform)) return 0;
  return 4 * 2 * ((1 << r.bits) + (r.outliers > 0 ? 2 << r.bits : 0));
}

}  // namespace tq4::gpu
