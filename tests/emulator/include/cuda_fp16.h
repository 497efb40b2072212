// Stands in for CUDA's header in builds for the emulator: __half and __half2 as storage, conversions by tq4/types.h.
#pragma once

#include "cuda_runtime.h"
#include "tq4/types.h"

struct __half {
  std::uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct __half2_raw {
  unsigned short x, y;
};

inline __half __float2half_rn(float v) { return {tq4::float_to_half(v)}; }
inline __half __float2half(float v) { return __float2half_rn(v); }
inline float __half2float(__half v) { return tq4::half_to_float(v.bits); }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float2half2_rn(float v) { return __floats2half2_rn(v, v); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short v) { return {v}; }
