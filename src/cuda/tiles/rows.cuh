// Rows of x on their way to the tensor cores: fp16 as it is, anything else (bf16, fp32, centred) times a power of two of the row's own and split in
// two fp16 parts, hi + lo = 22 bits of every coordinate within 2^-16 of the row's largest.
#pragma once

#include <cuda_fp16.h>

#include "cuda/encode/row.h"
#include "cuda/tiles/image.h"
#include "cuda/views.cuh"

namespace tq4::gpu {

/// Eight numbers of 16 bytes (fp32: and of 16 more).
__device__ __forceinline__ void eight_numbers(float (&v)[8], const uint4& raw, const uint4& more, DType dtype) {
  if (dtype == DType::F32) {
    v[0] = __uint_as_float(raw.x), v[1] = __uint_as_float(raw.y), v[2] = __uint_as_float(raw.z), v[3] = __uint_as_float(raw.w);
    v[4] = __uint_as_float(more.x), v[5] = __uint_as_float(more.y), v[6] = __uint_as_float(more.z), v[7] = __uint_as_float(more.w);
    return;
  }
  const unsigned w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 f = dtype == DType::F16 ? __half22float2(*reinterpret_cast<const __half2*>(&w[k]))
                                         : make_float2(__uint_as_float(w[k] << 16), __uint_as_float(w[k] & 0xffff0000u));
    v[2 * k] = f.x, v[2 * k + 1] = f.y;
  }
}
/// Eight coordinates at x[at .. at + 7] minus the centre's, in fp32. at < 0: zeros. 16-byte aligned.
__device__ __forceinline__ void load_eight(float (&v)[8], const void* x, DType dtype, std::int64_t at, const float* centre) {
#pragma unroll
  for (float& f : v) f = 0.0f;
  if (at < 0) return;
  const bool wide = dtype == DType::F32;
  const auto* p = reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(x) + (wide ? 4 : 2) * at);
  eight_numbers(v, __ldcs(p), wide ? __ldcs(p + 1) : make_uint4(0, 0, 0, 0), dtype);
  if (centre == nullptr) return;
#pragma unroll
  for (int k = 0; k < 8; ++k) v[k] = __fsub_rn(v[k], __ldg(centre + k));
}

/// The power of two that takes a row whose largest magnitude is `largest` to [2^13, 2^14), and its inverse. 1 where that is not finite.
__device__ __forceinline__ float2 row_power(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23);
  if (exponent >= 255) return make_float2(1.0f, 1.0f);
  const int up = min(267 - exponent, 253);
  return make_float2(__uint_as_float(static_cast<unsigned>(up) << 23), __uint_as_float(static_cast<unsigned>(254 - up) << 23));
}
__device__ __forceinline__ float largest_of(float largest, float v) {
  const float m = fabsf(v);
  return m <= 3.4028235e38f ? fmaxf(largest, m) : INFINITY;  // NaN counts as infinity: the row stays what it is
}
/// (x, y) = hi + lo, each a half2.
__device__ __forceinline__ void split_pair(float x, float y, std::uint32_t& hi, std::uint32_t& lo) {
  hi = half2_bits(x, y);
  const float2 back = __half22float2(*reinterpret_cast<const __half2*>(&hi));
  lo = half2_bits(__fsub_rn(x, back.x), __fsub_rn(y, back.y));
}

/// Is x fp16 that the tensor cores take as it is?
__device__ __host__ __forceinline__ bool plain_rows(const RowCodec& codec, DType dtype) {
  return dtype == DType::F16 && codec.t.centre == nullptr;
}

}  // namespace tq4::gpu
