// |x| as turboquant-vllm stores it, byte for byte (cpu/codec_run.cpp): partial sum k adds the squares of coordinates k, k + 8, k + 16, .. in turn, then the
// eight partial sums are added in turn. That order leaves eight chains a row to work on side by side: where rows lie in shared memory, or are read
// again, four lanes take two chains each, and sum while the tensor cores turn the row.
#pragma once

#include "cuda/encode/row.h"
#include "cuda/ptx.cuh"
#include "cuda/tiles/image.h"
#include "cuda/views.cuh"

namespace tq4::gpu {

/// Whether a sink wants scales that are such norms; its codecs are Mse then.
template <class Sink>
constexpr bool kPeerNorm = requires {
  typename Sink::PeerNorm;
};

/// Lane k of each eight neighbours has partial sum k.
__device__ __forceinline__ float norm_of_partials(float partial) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum = __fadd_rn(sum, __shfl_sync(~0u, partial, k, 8));
  return __fsqrt_rn(sum);
}
/// Lane t of each four has partial sums 2 t and 2 t + 1.
__device__ __forceinline__ float norm_of_partials(const float (&partial)[2]) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum = __fadd_rn(sum, __shfl_sync(~0u, partial[k % 2], k / 2, 4));
  return __fsqrt_rn(sum);
}

/// Of a row whose squares lie in shared memory; `lane` counts the row's lanes, a multiple of eight.
template <int D>
__device__ __forceinline__ float norm_of_squares(const float* squares, int lane) {
  float partial = 0.0f;
#pragma unroll
  for (int i = 0; i < D / 8; ++i) partial = __fadd_rn(partial, squares[8 * i + lane % 8]);
  return norm_of_partials(partial);
}

/// Of rows g and g + 8 of a warp's 16 (from row `first` on) among fp16 rows that lie in shared memory as image_byte(64, row, column) says. A square of
/// fp16 is exact in fp32, so that fma rounds as the sum does.
template <int D>
__device__ __forceinline__ void norms_of_tile(float (&norm)[2], std::uint32_t rows, int first, int g, int t) {
  const std::uint32_t at = rows + static_cast<std::uint32_t>((first + g) * 128 + (g & 7) * 16 + 4 * t);
  float partial[2][2] = {};
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t word = lds32((at ^ static_cast<std::uint32_t>(i % 8 * 16)) + static_cast<std::uint32_t>(i / 8 * 8192 + r * 1024));
      const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&word));
      partial[r][0] = __fmaf_rn(x.x, x.x, partial[r][0]), partial[r][1] = __fmaf_rn(x.y, x.y, partial[r][1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) norm[r] = norm_of_partials(partial[r]);
}

/// Of the row at x[at ..] minus its centre, whatever its dtype; at < 0: 0. Four lanes.
template <int D>
__device__ __forceinline__ float norm_in_memory(const void* x, DType dtype, std::int64_t at, const float* centre, int t) {
  float partial[2] = {};
  if (at >= 0) {
#pragma unroll 4
    for (int i = 0; i < D / 8; ++i) {
      const std::int64_t here = at + 8 * i + 2 * t;
      float2 v;
      if (dtype == DType::F32) {
        v = *reinterpret_cast<const float2*>(static_cast<const float*>(x) + here);
      } else {
        const unsigned word = *reinterpret_cast<const unsigned*>(static_cast<const unsigned short*>(x) + here);
        v = dtype == DType::F16 ? __half22float2(*reinterpret_cast<const __half2*>(&word))
                                : make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
      }
      if (centre) v = make_float2(__fsub_rn(v.x, centre[8 * i + 2 * t]), __fsub_rn(v.y, centre[8 * i + 2 * t + 1]));
      partial[0] = __fadd_rn(partial[0], __fmul_rn(v.x, v.x)), partial[1] = __fadd_rn(partial[1], __fmul_rn(v.y, v.y));
    }
  }
  return norm_of_partials(partial);
}

}  // namespace tq4::gpu
