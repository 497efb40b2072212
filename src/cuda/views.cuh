// Device side of views.h: addresses of a token's parts in pages, stored scales, and the fp8 and fp16 conversions of tq4/types.h.
#pragma once

#include <cuda_fp16.h>

#include "core/units.h"
#include "cuda/views.h"

namespace tq4::gpu {

/// A token's place: the page's token (row layouts) or its code tile and scale block (native), and the token's index in the tile.
struct TokenRef {
  std::uint8_t* base;
  std::uint8_t* scales;  ///< row layouts: base
  int t;
};

__device__ __forceinline__ TokenRef token_ref(const CacheView& c, std::int64_t page, int offset, int head) {
  std::uint8_t* base = c.data + page * c.block_stride;
  if (c.native) {
    const std::int64_t tile = static_cast<std::int64_t>(head) * (c.block_size >> 4) + (offset >> 4);
    return {base + tile * c.tile_bytes, base + c.scale_blocks + tile * c.scale_bytes, offset & 15};
  }
  base += offset * c.token_stride;
  return {base, base, 0};
}

/// Row layouts: first byte of the codes.
__device__ __forceinline__ std::uint8_t* codes_row(const PartView& part, const TokenRef& ref, int head) {
  return ref.base + part.codes + head * part.codes_head;
}
/// Byte `i` of a vector's codes in a native tile. V is cut in 8 pieces, token = 8 i0 + 2 i2 + i3 (tq4/layout.h).
__device__ __forceinline__ int native_k_byte(int row_bytes, int t, int i) { return t * row_bytes + i; }
__device__ __forceinline__ int native_v_byte(int v_piece, int t, int i) {
  const int piece = i / v_piece;
  return ((((t >> 3) * 8 + piece) * 4 + ((t >> 1) & 3)) * 2 + (t & 1)) * v_piece + (i - piece * v_piece);
}
__device__ __forceinline__ std::uint8_t* code_byte(const CacheView& c, const PartView& part, bool key, int row_bytes, const TokenRef& ref,
                                                   int head, int i) {
  if (!c.native) return codes_row(part, ref, head) + i;
  return ref.base + part.codes + (key ? native_k_byte(row_bytes, ref.t, i) : native_v_byte(c.v_piece, ref.t, i));
}

/// Of a side whose codes lie in units (core/units.h): the first of the three bytes of 8 codes, and those codes' 24 bits as rows hold them.
__device__ __forceinline__ int unit_byte(int head_dim, bool key, int t, int group) {
  return key ? core::key_unit_byte(head_dim, t, group) : core::value_unit_byte(head_dim, t, group);
}
__device__ __forceinline__ void put_unit_group(std::uint8_t* unit, std::uint32_t row) {
  const std::uint32_t bytes = core::group_to_unit(row);
#pragma unroll
  for (int p = 0; p < 3; ++p) unit[4 * p] = static_cast<std::uint8_t>(bytes >> 8 * p);
}
__device__ __forceinline__ std::uint32_t get_unit_group(const std::uint8_t* unit) {
  return core::group_from_unit(unit[0] | unit[4] << 8 | static_cast<std::uint32_t>(unit[8]) << 16);
}
__device__ __forceinline__ bool in_units(const CacheView& c, bool key) { return (key ? c.k_units : c.v_units) != 0; }

__device__ __forceinline__ std::uint8_t* scale_ptr(const CacheView& c, const PartView& part, const TokenRef& ref, int head) {
  if (c.native) return ref.scales + part.scale + ((ref.t & 7) * 4 + (ref.t >> 3)) * 2;
  return ref.scales + part.scale + head * part.scale_head;
}
__device__ __forceinline__ std::uint8_t* zero_ptr(const CacheView& c, const PartView& part, const TokenRef& ref, int head) {
  if (c.native) return ref.scales + part.zero + ((ref.t & 7) * 2 + (ref.t >> 3)) * 2;
  return ref.scales + part.zero + head * part.scale_head;
}
__device__ __forceinline__ float load_scale(const PartView& part, const std::uint8_t* p) {
  if (part.scale_f32) return *reinterpret_cast<const float*>(p);
  return __half2float(*reinterpret_cast<const __half*>(p));
}

/// FP8 to fp32, exact (tq4/types.h).
__device__ __forceinline__ float fp8_value(int fp8_kind, unsigned byte) {
  const unsigned sign = (byte & 0x80u) << 24, exponent = (byte >> 3) & 15u, mantissa = byte & 7u;
  const int bias = fp8_kind == static_cast<int>(Fp8Kind::E4M3) ? 7 : 15;
  if (bias == 7 && (byte & 0x7fu) == 0x7fu) return __uint_as_float(0x7fc00000u);
  float value = exponent == 0 ? static_cast<float>(mantissa) * 0.125f * __uint_as_float(static_cast<unsigned>(127 + 1 - bias) << 23)
                              : __uint_as_float(((exponent + 127 - static_cast<unsigned>(bias)) << 23) | mantissa << 20);
  return __uint_as_float(__float_as_uint(value) | sign);
}

__device__ __forceinline__ float load_element(const void* p, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::F16: return __half2float(static_cast<const __half*>(p)[i]);
    case DType::BF16: return __uint_as_float(static_cast<unsigned>(static_cast<const unsigned short*>(p)[i]) << 16);
    default: return static_cast<const float*>(p)[i];
  }
}
__device__ __forceinline__ unsigned short to_bf16_bits(float v) {
  const unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>((u >> 16) | 0x40u);
  return static_cast<unsigned short>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
/// (x, y) to two fp16, x in the lower half.
__device__ __forceinline__ std::uint32_t half2_bits(float x, float y) {
  const __half2 h = __floats2half2_rn(x, y);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}
__device__ __forceinline__ void store_element(void* p, DType dtype, std::int64_t i, float v) {
  switch (dtype) {
    case DType::F16: static_cast<__half*>(p)[i] = __float2half_rn(v); break;
    case DType::BF16: static_cast<unsigned short*>(p)[i] = to_bf16_bits(v); break;
    default: static_cast<float*>(p)[i] = v;
  }
}

}  // namespace tq4::gpu
