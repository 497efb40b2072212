// Rotated coordinates in registers to codes: `Lanes` neighbouring lanes share a row, each with N coordinates whose codes are neighbours. Scalar codebooks
// of up to 4 bits, and fp8. A code costs two shuffles and no search: coordinates are cut in 32 equal cells with at most one boundary each, lane c
// knows cell c.
//
// A cell's word is the boundary in it with its last four bits replaced by 14 - (the code below it) modulo 16 (the nearest such number: off by at
// most 8 units in the last place, 1e-7 of a boundary), so that the word plus 1 where z is below ends in the code's complement; sums are in
// another order than the CPU's. Codes are therefore those of row.cuh but for coordinates that close to a boundary.
#pragma once

#include "cuda/encode/row.cuh"
#include "cuda/ptx.cuh"

namespace tq4::gpu {

struct CodeCells {
  float cell, centroid;  ///< of this lane's cell, and of the code whose complement is this lane's number
  float scale, offset;   ///< cell of z = round(31 * clamp(scale z + offset, 0, 1))
};
__device__ __forceinline__ CodeCells load_cells(const SideTables& t, int lane) {
  if (t.cells == nullptr) return {0.0f, 0.0f, 0.0f, 0.0f};
  return {__ldg(t.cells + lane), __ldg(t.cells + 32 + lane), t.cell_scale, t.cell_offset};
}

/// Codes of N coordinates: group i of 8 as 8 bits: bits [0, 32) in low[i], fp8's upper four in high[i].
template <int N>
struct LaneCodes {
  unsigned low[N / 8], high[N / 8];
  float scale, zero;
};

/// What fp8_bits() gives for E4M3, without branches: below its normal numbers the sum with 2^14 rounds to multiples of 2^-9.
__device__ __forceinline__ unsigned e4m3_bits(float x) {
  const unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  const unsigned normal = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  const unsigned small = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0x1p14f)) - 0x46800000u;
  const unsigned code = magnitude < 0x3c800000u ? small : min(normal, 0x7eu);
  return magnitude > 0x7f800000u ? 0x7fu : code | (bits & 0x80000000u) >> 24;
}
/// Two numbers as E4M3, the first in the lower byte.
__device__ __forceinline__ unsigned short e4m3x2_bits(float x, float y) {
  if (converts_to_e4m3()) return to_e4m3x2(x, y);
  return static_cast<unsigned short>(e4m3_bits(x) | e4m3_bits(y) << 8);
}

template <int Lanes>
__device__ __forceinline__ float sum_lanes(float v) {
#pragma unroll
  for (int o = 1; o < Lanes; o *= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

/// x / y to half a unit in the last place and a little, where neither is tiny or huge: coordinates' sums next to a unit vector's. `inverse`: about 1 / y.
__device__ __forceinline__ float quotient(float x, float y, float inverse) {
  const float q = x * inverse;
  return __fmaf_rn(__fmaf_rn(-q, y, x), inverse, q);
}

/// Of a row y whose `square` is the sum of y^2 and whose coordinates are y * factor.
struct RowNorm {
  float square, seen, inverse;  ///< `seen` is the CPU's square
  bool regular;                 ///< neither 0 nor not finite
};
__device__ __forceinline__ RowNorm row_norm(float square, float factor) {
  const float seen = __fmul_rn(__fmul_rn(square, factor), factor);
  const bool regular = seen > 0.0f && seen < INFINITY;
  float inverse = rsqrtf(square);
  inverse *= __fmaf_rn(-0.5f * square * inverse, inverse, 1.5f);
  return {square, seen, regular ? inverse : 0.0f, regular};
}
/// dot: y with the centroids, `centroids`: they with themselves.
__device__ __forceinline__ float row_scale(const RowCodec& r, const RowNorm& norm, float dot, float centroids, float factor) {
  if (r.norm_correction) {
    const float k = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(centroids, 1e-16f)));
    dot *= k;
    centroids *= k * k;
  }
  float scale;
  if (r.scale_rule == static_cast<int>(ScaleRule::LeastSquares)) {
    scale = __fmul_rn(quotient(dot, centroids, inverse_fast(centroids)), factor);
  } else if (r.scale_rule == static_cast<int>(ScaleRule::Unbiased)) {
    scale = __fmul_rn(quotient(norm.square, dot, __fdividef(1.0f, dot)), factor);
  } else {
    scale = __fsqrt_rn(norm.seen);
  }
  return round_scale(r, norm.regular ? scale : norm.seen);  // 0, infinite and no number are their own roots
}
/// y(i) * factor as E4M3.
template <int N, class Y>
__device__ __forceinline__ LaneCodes<N> fp8_lanes(const Y& y, float factor) {
  LaneCodes<N> out;
  out.scale = 1.0f, out.zero = 0.0f;
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    (i % 8 == 0 ? out.low : out.high)[i / 8] = e4m3x2_bits(__fmul_rn(y(i), factor), __fmul_rn(y(i + 1), factor)) |
                                               static_cast<unsigned>(e4m3x2_bits(__fmul_rn(y(i + 2), factor), __fmul_rn(y(i + 3), factor)))
                                                   << 16;
  }
  return out;
}
/// sum y^2 over a lane's part of a row, and over the row.
template <int N, class Y>
__device__ __forceinline__ float square_part(const Y& y) {
  float yy[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < N; ++i) yy[i & 3] = __fmaf_rn(y(i), y(i), yy[i & 3]);
  return (yy[0] + yy[1]) + (yy[2] + yy[3]);
}
template <int N, int Lanes, class Y>
__device__ __forceinline__ float square_of(const Y& y) {
  return sum_lanes<Lanes>(square_part<N>(y));
}

/// y(i) * factor is coordinate i of this lane's N; all lanes of the warp. Scaled: else Mse codes alone.
template <int N, int Lanes, bool Scaled = true, class Y>
__device__ __forceinline__ LaneCodes<N> code_lanes(const RowCodec& r, const CodeCells& cells, const Y& y, float factor) {
  constexpr int kBatch = 4;
  if (Scaled && r.kind == static_cast<int>(CodeKind::Fp8)) return fp8_lanes<N>(y, factor);
  LaneCodes<N> out;
  out.zero = 0.0f;
  const RowNorm norm = row_norm(square_of<N, Lanes>(y), factor);
  const float to_place = norm.inverse * cells.scale;
  float yc[2] = {0.0f, 0.0f}, cc[2] = {0.0f, 0.0f}, cell[2][kBatch];
  // Shuffles keep their order, so a batch's second ones follow the next batch's first: no code waits for its own.
  const auto look_up = [&](int b) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const float place = __fmaf_rn(__saturatef(__fmaf_rn(y(kBatch * b + k), to_place, cells.offset)), 31.0f, 8388608.0f);
      cell[b % 2][k] = __shfl_sync(~0u, cells.cell, __float_as_int(place));
    }
  };
  unsigned word = 0;
  look_up(0);
#pragma unroll
  for (int b = 0; b < N / kBatch; ++b) {
    unsigned code[kBatch];
    if (b + 1 < N / kBatch) look_up(b + 1);
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const float mine = cell[b % 2][k];
      code[k] =
          __float_as_uint(mine) + (__float_as_uint(__fmaf_rn(y(kBatch * b + k), norm.inverse, -mine)) >> 31);  // ends in the complement
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if constexpr (Scaled) {
        const float centroid = __shfl_sync(~0u, cells.centroid, static_cast<int>(code[k]));
        yc[k & 1] = __fmaf_rn(y(kBatch * b + k), centroid, yc[k & 1]);
        cc[k & 1] = __fmaf_rn(centroid, centroid, cc[k & 1]);
      }
      word = __funnelshift_r(word, code[k], static_cast<unsigned>(r.bits));
    }
    if ((b + 1) * kBatch % 8 == 0) {
      out.low[(b * kBatch) / 8] = ~word >> (32 - 8 * r.bits);
      out.high[(b * kBatch) / 8] = 0;
    }
  }
  if constexpr (Scaled) out.scale = row_scale(r, norm, sum_lanes<Lanes>(yc[0] + yc[1]), sum_lanes<Lanes>(cc[0] + cc[1]), factor);
  return out;
}

/// G groups of `bits` bytes each to p, which is as aligned as G * bits is (to 16 at most).
template <int G>
__device__ __forceinline__ void put_aligned(unsigned char* p, const unsigned (&low)[G], const unsigned (&high)[G], int bits) {
  constexpr int k1 = G > 1 ? 1 : 0, k2 = G > 2 ? 2 : 0, k3 = G > 3 ? 3 : 0;
  static_assert(G == 1 || G == 2 || G == 4 || G == 8);
  if constexpr (G == 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = 4 * half;
      const unsigned low4[4] = {low[i], low[i + 1], low[i + 2], low[i + 3]}, high4[4] = {high[i], high[i + 1], high[i + 2], high[i + 3]};
      put_aligned(p + i * bits, low4, high4, bits);
    }
  } else if (bits == 4) {
    if constexpr (G == 4) *reinterpret_cast<uint4*>(p) = make_uint4(low[0], low[k1], low[k2], low[k3]);
    if constexpr (G == 2) *reinterpret_cast<uint2*>(p) = make_uint2(low[0], low[k1]);
    if constexpr (G == 1) *reinterpret_cast<unsigned*>(p) = low[0];
  } else if (bits == 3) {
    if constexpr (G == 4) {
      auto* w = reinterpret_cast<unsigned*>(p);
      w[0] = low[0] | low[k1] << 24, w[1] = low[k1] >> 8 | low[k2] << 16, w[2] = low[k2] >> 16 | low[k3] << 8;
    } else if constexpr (G == 2) {
      auto* w = reinterpret_cast<unsigned short*>(p);
      w[0] = static_cast<unsigned short>(low[0]), w[1] = static_cast<unsigned short>(low[0] >> 16 | low[k1] << 8),
      w[2] = static_cast<unsigned short>(low[k1] >> 8);
    } else {
      p[0] = static_cast<unsigned char>(low[0]), p[1] = static_cast<unsigned char>(low[0] >> 8),
      p[2] = static_cast<unsigned char>(low[0] >> 16);
    }
  } else if (bits == 2) {
    if constexpr (G == 4) *reinterpret_cast<uint2*>(p) = make_uint2(low[0] | low[k1] << 16, low[k2] | low[k3] << 16);
    if constexpr (G == 2) *reinterpret_cast<unsigned*>(p) = low[0] | low[k1] << 16;
    if constexpr (G == 1) *reinterpret_cast<unsigned short*>(p) = static_cast<unsigned short>(low[0]);
  } else if (bits == 8) {
#pragma unroll
    for (int g = 0; g < G; ++g) reinterpret_cast<uint2*>(p)[g] = make_uint2(low[g], high[g]);
  } else {
#pragma unroll
    for (int g = 0; g < G; ++g) p[g] = static_cast<unsigned char>(low[g]);
  }
}
/// The same wherever p points.
template <int G>
__device__ __forceinline__ void put_groups(unsigned char* p, const unsigned (&low)[G], const unsigned (&high)[G], int bits) {
  const unsigned address = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(p)), bytes = static_cast<unsigned>(G * bits);
  if ((address & (bits == 8 ? 7u : (bytes & (0u - bytes)) - 1u)) == 0) {
    put_aligned(p, low, high, bits);
    return;
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    for (int b = 0; b < bits; ++b) p[g * bits + b] = static_cast<unsigned char>((b < 4 ? low[g] : high[g]) >> (b % 4 * 8));
  }
}

}  // namespace tq4::gpu
