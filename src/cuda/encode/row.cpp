// RowCodec from a DeviceCodec, and which of them the tensor cores serve.
#include "cuda/encode/row.h"

#include "core/side.h"
#include "cuda/encode/rotate.h"
#include "cuda/tiles/image.h"

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

bool rotate_serves(const RowCodec& r, const void* x, DType dtype, std::int64_t n, int heads, std::int64_t token_stride,
                   std::int64_t head_stride) {
  const bool fp8 = r.kind == static_cast<int>(CodeKind::Fp8) && r.fp8 == static_cast<int>(Fp8Kind::E4M3);
  const bool mse = r.kind == static_cast<int>(CodeKind::Mse) && r.t.cells && !r.t.pair_points && (r.scale_f16 || r.peer_norm);
  const bool uniform = r.kind == static_cast<int>(CodeKind::Uniform) && (r.bits <= 4 || r.bits == 8);
  const bool rotated = (mse || fp8) && r.t.forward_image, unrotated = (uniform || fp8) && r.t.identity && !r.t.centre && has_image(r.dim);
  if (!(rotated || unrotated) || r.t.rope_mu || n > (std::int64_t{1} << 31) / heads - 64 * heads) return false;
  const auto unit = static_cast<std::int64_t>(16 / dtype_size(dtype));
  return reinterpret_cast<std::uintptr_t>(x) % 16 == 0 && token_stride % unit == 0 && head_stride % unit == 0;
}

}  // namespace tq4::gpu
