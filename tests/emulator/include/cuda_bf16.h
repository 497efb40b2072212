// Stands in for CUDA's header in builds for the emulator.
#pragma once

#include "cuda_runtime.h"
#include "tq4/types.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {tq4::float_to_bf16(v)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
