// |x| as turboquant-vllm stores it, byte for byte (cpu/codec_run.cpp): partial sum k adds the squares of coordinates k, k + 8, k + 16, .. in turn, then the
// eight partial sums are added in turn. That order leaves eight chains a row to work on side by side: where rows lie in shared memory, four lanes take
// two chains each, and sum while the tensor cores turn the row; where they lie in registers, lanes trade squares first.
#pragma once

#include "cuda/encode/row.h"
#include "cuda/ptx.cuh"
#include "cuda/tiles/hadamard.cuh"
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

/// Of rows g and g + 8 of a warp's 16 (from row `first` on) among fp16 or bf16 rows that lie in shared memory as image_byte(64, row, column) says. A
/// square of fp16 is exact in fp32, so that fma rounds as the sum does; one of bf16 where it is not tiny.
template <int D, bool Bf16>
__device__ __forceinline__ void norms_of_tile(float (&norm)[2], std::uint32_t rows, int first, int g, int t) {
  const std::uint32_t at = rows + static_cast<std::uint32_t>((first + g) * 128 + (g & 7) * 16 + 4 * t);
  float partial[2][2] = {};
#pragma unroll
  for (int i = 0; i < D / 8; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t word = lds32((at ^ static_cast<std::uint32_t>(i % 8 * 16)) + static_cast<std::uint32_t>(i / 8 * 8192 + r * 1024));
      const float2 x = Bf16 ? make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u))
                            : __half22float2(*reinterpret_cast<const __half2*>(&word));
      const auto add = [](float sum, float v) { return Bf16 ? __fadd_rn(sum, __fmul_rn(v, v)) : __fmaf_rn(v, v, sum); };
      partial[r][0] = add(partial[r][0], x.x), partial[r][1] = add(partial[r][1], x.y);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) norm[r] = norm_of_partials(partial[r]);
}

/// Of a row of which lane t of four has coordinates 32 c + 8 t + k as v[c][k]: lanes trade squares until each has those of its two partial sums.
template <int Chunks>
__device__ __forceinline__ float norm_of_chunks(const float (&v)[Chunks][8], int t) {
  float partial[2] = {};
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      unsigned square[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) square[k] = __float_as_uint(__fmul_rn(v[c][2 * k + e], v[c][2 * k + e]));
      trade_words(square, t);
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[e] = __fadd_rn(partial[e], __uint_as_float(square[i]));
    }
  }
  return norm_of_partials(partial);
}

}  // namespace tq4::gpu
