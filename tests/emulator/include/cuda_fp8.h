// Stands in for CUDA's header in builds for the emulator.
#pragma once

#include "cuda_fp16.h"

using __nv_fp8x2_storage_t = unsigned short;
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t v, __nv_fp8_interpretation_t kind) {
  if (kind != __NV_E4M3) ::tq4::emulator::fail("only E4M3 is emulated");
  return {tq4::float_to_half(tq4::e4m3_to_float(static_cast<std::uint8_t>(v))),
          tq4::float_to_half(tq4::e4m3_to_float(static_cast<std::uint8_t>(v >> 8)))};
}
