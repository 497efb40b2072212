// Rows that no rotation turns, as the kernels of encode and store that have the tensor cores do them beside others: fp8 (E4M3) and uniform codes, D / 8
// neighbouring lanes a row, 8 coordinates a lane. No sum is taken, so that bytes are the CPU's.
#pragma once

#include "cuda/encode/lanes.cuh"
#include "cuda/tiles/rows.cuh"

namespace tq4::gpu {

/// x / y as a division rounds it, from `inverse`, 1 / y so rounded, for y neither tiny nor huge nor all ones (Markstein: a quotient off by at most one unit
/// in the last place, corrected by its exact remainder; the first correction makes it such). One that underflows is about 0.
__device__ __forceinline__ float right_quotient(float x, float y, float inverse) {
  float q = __fmul_rn(x, inverse);
  q = __fmaf_rn(__fmaf_rn(-q, y, x), inverse, q);
  return __fmaf_rn(__fmaf_rn(-q, y, x), inverse, q);
}

/// 8 coordinates of a row that `Lanes` lanes share; all lanes of the warp. Quick: levels by a division a row where that gives those of a division each.
template <int Lanes, bool Quick>
__device__ __forceinline__ LaneCodes<8> unrotated_codes(const RowCodec& r, const float (&v)[8]) {
  LaneCodes<8> out;
  out.scale = 1.0f, out.zero = 0.0f, out.low[0] = 0, out.high[0] = 0;
  if (r.kind == static_cast<int>(CodeKind::Fp8)) {
    out.low[0] = e4m3x2_bits(v[0], v[1]) | static_cast<unsigned>(e4m3x2_bits(v[2], v[3])) << 16;
    out.high[0] = e4m3x2_bits(v[4], v[5]) | static_cast<unsigned>(e4m3x2_bits(v[6], v[7])) << 16;
    return out;
  }
  float lo = v[0], hi = v[0];
#pragma unroll
  for (int k = 1; k < 8; ++k) lo = fminf(lo, v[k]), hi = fmaxf(hi, v[k]);
#pragma unroll
  for (int o = 1; o < Lanes; o *= 2) lo = fminf(lo, __shfl_xor_sync(~0u, lo, o)), hi = fmaxf(hi, __shfl_xor_sync(~0u, hi, o));
  const float top = static_cast<float>((1 << r.bits) - 1), step = __fdiv_rn(__fsub_rn(hi, lo), top);
  out.scale = round_scale(r, step);
  out.zero = round_scale(r, lo);
  const auto put = [&](int k, float index) {
    const auto code = static_cast<unsigned>(fminf(fmaxf(index, 0.0f), top));  // not negative: the cast is the floor
    if (r.bits == 8) {
      (k < 4 ? out.low : out.high)[0] |= code << (8 * (k % 4));
    } else {
      out.low[0] |= code << (r.bits * k);
    }
  };
  if constexpr (Quick) {
    const unsigned bits = __float_as_uint(step);
    if (__all_sync(~0u, step == 0.0f || (step > 0x1p-100f && step < 0x1p100f && (bits & 0x7fffffu) != 0x7fffffu))) {
      const float inverse = step == 0.0f ? 0.0f : __fdiv_rn(1.0f, step);
#pragma unroll
      for (int k = 0; k < 8; ++k) put(k, __fadd_rn(right_quotient(__fsub_rn(v[k], lo), step, inverse), 0.5f));
      return out;
    }
  }
#pragma unroll
  for (int k = 0; k < 8; ++k) put(k, step == 0.0f ? 0.0f : floorf(__fadd_rn(__fdiv_rn(__fsub_rn(v[k], lo), step), 0.5f)));
  return out;
}

/// Rows first, first + 1, .. of the block's warps and every `step` rows on. Args is RotateArgs (rotate.cuh).
template <int D, int Threads, class Args, class Side>
__device__ __forceinline__ void unrotated_rows(const Args& a, const Side& side, bool key, unsigned block, unsigned blocks) {
  constexpr int kLanes = D / 8, kBatch = 2, kWarpRows = 32 / kLanes * kBatch;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, chunk = lane % kLanes;
  const bool wide = static_cast<DType>(a.dtype) == DType::F32;
  const unsigned rows = row_count(a);
  for (unsigned first = (static_cast<unsigned>(thread) / 32 * blocks + block) * kWarpRows; first < rows;
       first += Threads / 32 * blocks * kWarpRows) {
    uint4 raw[kBatch][2] = {};
    decltype(row_place(a, 0u)) place[kBatch];
    [[maybe_unused]] std::int64_t slot[kBatch];  // of pages
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const unsigned row = first + static_cast<unsigned>(b * (32 / kLanes) + lane / kLanes);
      place[b] = row < rows ? row_place(a, row) : decltype(row_place(a, 0u)){-1, 0};
      const std::int64_t at = row < rows ? place[b].token * side.token_stride + place[b].head * side.head_stride : 0;
      const auto* x = reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(side.x) + (wide ? 4 : 2) * (at + 8 * chunk));
      if constexpr (decltype(a.sink)::kSides == 2) slot[b] = a.sink.fetch(place[b]);
      raw[b][0] = __ldcs(x);
      if (wide) raw[b][1] = __ldcs(x + 1);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float v[8];
      eight_numbers(v, raw[b][0], raw[b][1], static_cast<DType>(a.dtype));
      if constexpr (decltype(a.sink)::kSides == 1) slot[b] = a.sink.fetch(place[b]);
      a.sink.template put<8>(side.codec, key, a.sink.slot(slot[b]), place[b].head, 8 * chunk,
                             unrotated_codes<kLanes, decltype(a.sink)::kSides == 2>(side.codec, v));
    }
  }
}

constexpr int kUnrotatedThreads = 256;
/// Where no side is turned.
template <int D, class Args>
__global__ void __launch_bounds__(kUnrotatedThreads, 4) unrotated_kernel(const __grid_constant__ Args a) {
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens
  unrotated_rows<D, kUnrotatedThreads>(a, a.side[decltype(a.sink)::kSides == 1 ? 0 : blockIdx.z], blockIdx.z == 0, blockIdx.x, gridDim.x);
}

}  // namespace tq4::gpu
