// What a warp does with one row: transformed row to codes, scale, zero, and codes back to the row. Every sum and every rounding is that of
// the scalar reference (cpu/scalar_encode.cpp, cpu/scalar_decode.cpp), so that codes and scales are equal bit for bit.
#pragma once

#include <cuda_fp16.h>

#include "cuda/encode/row.h"
#include "cuda/views.cuh"

namespace tq4::gpu {

/// Tables in shared memory: [boundaries, padded to 2^b | centroids] (Mixed: then those of the outliers), or pair points.
struct RowTables {
  const float *boundaries, *centroids, *outlier_boundaries, *outlier_centroids;
  const float2* pairs;
};

/// All threads of the block; the caller synchronises.
__device__ inline RowTables load_tables(const RowCodec& r, float* memory, int thread, int threads) {
  RowTables t{};
  if (r.t.pair_points) {
    for (int i = thread; i < 2 << (2 * r.bits); i += threads) memory[i] = r.t.pair_points[i];
    t.pairs = reinterpret_cast<const float2*>(memory);
    return t;
  }
  if (!r.t.centroids) return t;
  const auto fill = [&](const float* boundaries, const float* centroids, int bits, float* to) {
    for (int i = thread; i < 1 << bits; i += threads) {
      to[i] = i < (1 << bits) - 1 ? boundaries[i] : 0.0f;
      to[(1 << bits) + i] = centroids[i];
    }
  };
  fill(r.t.boundaries, r.t.centroids, r.bits, memory);
  t.boundaries = memory;
  t.centroids = memory + (1 << r.bits);
  if (r.outliers > 0) {
    float* more = memory + (2 << r.bits);
    fill(r.t.outlier_boundaries, r.t.outlier_centroids, r.bits + 1, more);
    t.outlier_boundaries = more;
    t.outlier_centroids = more + (2 << r.bits);
  }
  return t;
}

/// sum a[j] b[j] as the reference adds: 16 partial sums, then a tree. Lanes 0..15 take (a, b), lanes 16..31 (c, d); both sums to all lanes.
__device__ __forceinline__ float2 two_dots(const float* a, const float* b, const float* c, const float* d, int dim, int lane) {
  const float *u = lane < 16 ? a : c, *v = lane < 16 ? b : d;
  float p = 0.0f;
  for (int j = lane & 15; j < dim; j += 16) p = __fmaf_rn(u[j], v[j], p);
  for (int half = 8; half > 0; half /= 2) p = __fadd_rn(p, __shfl_down_sync(~0u, p, half, 16));
  return make_float2(__shfl_sync(~0u, p, 0), __shfl_sync(~0u, p, 16));
}

__device__ __forceinline__ float round_scale(const RowCodec& r, float v) {
  if (!r.scale_f16 || !isfinite(v)) return v;
  return __half2float(__float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f)));
}

/// Number of the 2^bits - 1 boundaries <= z.
__device__ __forceinline__ int code_of(float z, const float* boundaries, int bits) {
  int code = 0;
  for (int step = 1 << (bits - 1); step > 0; step >>= 1) {
    if (boundaries[code + step - 1] <= z) code += step;
  }
  return code;
}

__device__ inline int nearest_pair(const float2* pairs, int count, float z0, float z1) {
  int best = 0;
  float best_distance = INFINITY;
  for (int code = 0; code < count; ++code) {
    const float2 p = pairs[code];
    const float dx = __fsub_rn(z0, p.x), dy = __fsub_rn(z1, p.y);
    const float distance = __fmaf_rn(dx, dx, __fmul_rn(dy, dy));
    if (distance < best_distance) {
      best_distance = distance;
      best = code;
    }
  }
  return best;
}

__device__ __forceinline__ unsigned shift_round_even(unsigned v, int shift) {
  return (v + ((1u << (shift - 1)) - 1u) + ((v >> shift) & 1u)) >> shift;
}

__device__ inline unsigned fp8_bits(int fp8_kind, float value) {
  const unsigned bits = __float_as_uint(value), sign = (bits & 0x80000000u) >> 24, magnitude = bits & 0x7fffffffu;
  if (fp8_kind == static_cast<int>(Fp8Kind::E4M3)) {
    if (magnitude > 0x7f800000u) return 0x7fu;
    if (magnitude >= 0x43e00000u) return sign | 0x7eu;
    if (magnitude >= 0x3c800000u) return sign | (shift_round_even(magnitude, 20) - (120u << 3));
    const int exponent = static_cast<int>(magnitude >> 23);
    if (exponent < 117) return sign;
    return sign | shift_round_even((magnitude & 0x7fffffu) | 0x800000u, 141 - exponent);
  }
  const unsigned half = __half_as_ushort(__float2half_rn(value));
  unsigned m = half & 0x7fffu;
  if (m > 0x3f80u) m = 0x3f80u;
  return ((half & 0x8000u) >> 8) | ((m * 2u + 0x80u) >> 8);
}

/// x minus its centre is what a row starts from. Centring before RoPE: the centre of position p is R_p mu (turns in units of 2^-64).
__device__ __forceinline__ float centre_at(const RowCodec& r, int head, std::int64_t position, int j) {
  if (!r.t.rope_mu) return r.t.centre ? r.t.centre[head * r.dim + j] : 0.0f;
  const float* mu = r.t.rope_mu + head * r.dim;
  if (j >= r.rope_dim) return mu[j];
  const int half = r.rope_dim / 2, i = j < half ? j : j - half;
  const std::uint64_t phase = static_cast<std::uint64_t>(position) * r.t.rope_turns[i];
  double s, c;
  sincospi(static_cast<double>(static_cast<std::int64_t>(phase)) * 0x1p-63, &s, &c);
  const double a = mu[i], b = mu[i + half];
  return static_cast<float>(j < half ? a * c - b * s : b * c + a * s);
}

struct RowScales {
  float scale, zero, residual_norm;
};

/// Centroids of codes[dim] to c[dim], norm-corrected where the codec says so.
__device__ inline void centroids_of(const RowCodec& r, const RowTables& t, const unsigned char* codes, float* c, int lane) {
  for (int j = lane; j < r.dim; j += 32) {
    if (t.pairs) {
      const float2 p = t.pairs[codes[j & ~1] | codes[j | 1] << r.bits];
      c[j] = (j & 1) != 0 ? p.y : p.x;
    } else {
      c[j] = j < r.outliers ? t.outlier_centroids[codes[j]] : t.centroids[codes[j]];
    }
  }
  __syncwarp();
  if (!r.norm_correction) return;
  const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(two_dots(c, c, c, c, r.dim, lane).x, 1e-16f)));
  for (int j = lane; j < r.dim; j += 32) c[j] = __fmul_rn(c[j], inverse);
  __syncwarp();
}

/// y [dim] to codes [dim], a byte a coordinate (Fp16: two bytes). x is the row before its transform (peer_norm), c [dim] is scratch and may be x.
/// Prod leaves the residual in c. One warp; shared memory; the warp is synchronised on return.
__device__ inline RowScales quantize_row(const RowCodec& r, const RowTables& t, const float* y, const float* x, float* c,
                                         unsigned char* codes, int lane) {
  RowScales out{0.0f, 0.0f, 0.0f};
  switch (static_cast<CodeKind>(r.kind)) {
    case CodeKind::Mse:
    case CodeKind::Prod:
    case CodeKind::Mixed: {
      float peer = 0.0f;
      if (r.peer_norm) {
        float p = 0.0f;
        for (int j = lane & 7; j < r.dim; j += 8) p = __fadd_rn(p, __fmul_rn(x[j], x[j]));
        for (int l = 0; l < 8; ++l) peer = __fadd_rn(peer, __shfl_sync(~0u, p, l));
        peer = __fsqrt_rn(peer);
      }
      const float yy = two_dots(y, y, y, y, r.dim, lane).x;
      const float norm = __fsqrt_rn(yy), inverse = norm == 0.0f ? 0.0f : __fdiv_rn(1.0f, norm);
      if (t.pairs) {
        const int mask = (1 << r.bits) - 1;
        for (int j = 2 * lane; j < r.dim; j += 64) {
          const int pair = nearest_pair(t.pairs, 1 << (2 * r.bits), __fmul_rn(y[j], inverse), __fmul_rn(y[j + 1], inverse));
          codes[j] = static_cast<unsigned char>(pair & mask);
          codes[j + 1] = static_cast<unsigned char>(pair >> r.bits);
        }
      } else {
        for (int j = lane; j < r.dim; j += 32) {
          const float z = __fmul_rn(y[j], inverse);
          codes[j] =
              static_cast<unsigned char>(j < r.outliers ? code_of(z, t.outlier_boundaries, r.bits + 1) : code_of(z, t.boundaries, r.bits));
        }
      }
      __syncwarp();
      centroids_of(r, t, codes, c, lane);
      float scale = norm;
      if (norm != 0.0f && isfinite(norm)) {
        const float2 d = two_dots(y, c, c, c, r.dim, lane);
        if (r.scale_rule == static_cast<int>(ScaleRule::LeastSquares)) scale = __fdiv_rn(d.x, d.y);
        if (r.scale_rule == static_cast<int>(ScaleRule::Unbiased)) scale = __fdiv_rn(yy, d.x);
      }
      out.scale = round_scale(r, r.peer_norm ? peer : scale);
      if (r.has_signs) {
        const float s = round_scale(r, scale);
        for (int j = lane; j < r.dim; j += 32) c[j] = __fmaf_rn(-s, c[j], y[j]);
        __syncwarp();
        out.residual_norm = round_scale(r, __fsqrt_rn(two_dots(c, c, c, c, r.dim, lane).x));
      }
      break;
    }
    case CodeKind::Uniform: {
      float lo = y[0], hi = y[0];
      for (int j = lane; j < r.dim; j += 32) lo = fminf(lo, y[j]), hi = fmaxf(hi, y[j]);
      for (int o = 16; o > 0; o /= 2) {
        lo = fminf(lo, __shfl_xor_sync(~0u, lo, o));
        hi = fmaxf(hi, __shfl_xor_sync(~0u, hi, o));
      }
      const float top = static_cast<float>((1 << r.bits) - 1), step = __fdiv_rn(__fsub_rn(hi, lo), top);
      for (int j = lane; j < r.dim; j += 32) {
        const float index = step == 0.0f ? 0.0f : floorf(__fadd_rn(__fdiv_rn(__fsub_rn(y[j], lo), step), 0.5f));
        codes[j] = static_cast<unsigned char>(fminf(fmaxf(index, 0.0f), top));
      }
      out.scale = round_scale(r, step);
      out.zero = round_scale(r, lo);
      break;
    }
    case CodeKind::Fp8:
      for (int j = lane; j < r.dim; j += 32) codes[j] = static_cast<unsigned char>(fp8_bits(r.fp8, y[j]));
      break;
    case CodeKind::Fp16:
      for (int j = lane; j < r.dim; j += 32) {
        reinterpret_cast<__half*>(codes)[j] = __float2half_rn(fminf(fmaxf(y[j], -65504.0f), 65504.0f));
      }
      break;
  }
  __syncwarp();
  return out;
}

/// Bytes and bits of group g (8 coordinates) in a row: (byte offset, bits a code).
__device__ __forceinline__ int2 group_place(const RowCodec& r, int g) {
  if (g * 8 < r.outliers) return make_int2(g * (r.bits + 1), r.bits + 1);
  return make_int2(g * r.bits + r.outliers / 8, r.bits);
}
/// Eight codes as bits, LSB first (nibbles_high: turboquant-vllm's order).
__device__ __forceinline__ unsigned long long pack_group(const unsigned char* codes, int bits, bool nibbles_high) {
  unsigned long long out = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) out |= static_cast<unsigned long long>(codes[k]) << (nibbles_high ? 4 * (k ^ 1) : bits * k);
  return out;
}
/// Stores the low `bytes` bytes of bits, as wide as the address allows.
__device__ __forceinline__ void put_bytes(unsigned char* p, unsigned long long bits, int bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (bytes == 4 && address % 4 == 0) {
    *reinterpret_cast<unsigned*>(p) = static_cast<unsigned>(bits);
  } else if (bytes == 8 && address % 8 == 0) {
    *reinterpret_cast<unsigned long long*>(p) = bits;
  } else if (bytes % 2 == 0 && address % 2 == 0) {
    for (int b = 0; b < bytes; b += 2) *reinterpret_cast<unsigned short*>(p + b) = static_cast<unsigned short>(bits >> (8 * b));
  } else {
    for (int b = 0; b < bytes; ++b) p[b] = static_cast<unsigned char>(bits >> (8 * b));
  }
}
__device__ __forceinline__ unsigned long long get_bytes(const unsigned char* p, int bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (bytes == 4 && address % 4 == 0) return *reinterpret_cast<const unsigned*>(p);
  if (bytes == 8 && address % 8 == 0) return *reinterpret_cast<const unsigned long long*>(p);
  unsigned long long bits = 0;
  if (bytes % 2 == 0 && address % 2 == 0) {
    for (int b = 0; b < bytes; b += 2) bits |= static_cast<unsigned long long>(*reinterpret_cast<const unsigned short*>(p + b)) << (8 * b);
  } else {
    for (int b = 0; b < bytes; ++b) bits |= static_cast<unsigned long long>(p[b]) << (8 * b);
  }
  return bits;
}

/// Prod: signs of S r, 8 coordinates a byte, by one warp (qjl_t is S transposed; r in shared memory).
__device__ inline void sketch_signs(const RowCodec& r, const float* residual, unsigned char* signs, int lane) {
  for (int i = lane; i < (r.dim + 31) / 32 * 32; i += 32) {
    float acc = 0.0f;
    if (i < r.dim) {
      for (int j = 0; j < r.dim; ++j) acc = __fmaf_rn(r.t.qjl_t[j * r.dim + i], residual[j], acc);
    }
    const unsigned ballot = __ballot_sync(~0u, i < r.dim && acc >= 0.0f);
    const int first = i - lane;
    if (lane < 4 && first + lane * 8 < r.dim) signs[first / 8 + lane] = static_cast<unsigned char>(ballot >> (8 * lane));
  }
}

/// Rows of x minus their centres to shared memory [R][dim], 8 coordinates a thread. `row_of(r)` gives the index of the first element (< 0: the
/// row becomes 0) and `position_of(r)` the token's position.
template <int R, class RowOf, class PositionOf>
__device__ inline void load_rows(const RowCodec& codec, const void* x, DType dtype, int head, const RowOf& row_of,
                                 const PositionOf& position_of, float* to, int thread, int threads) {
  const int groups = codec.dim / 8;
  const bool centred = codec.t.centre != nullptr || codec.t.rope_mu != nullptr;
  for (int i = thread; i < R * groups; i += threads) {
    const int r = i / groups, g = i - r * groups;
    const std::int64_t at = row_of(r);
    float v[8] = {};
    if (at >= 0) {
      const auto* p = static_cast<const unsigned short*>(x) + at + g * 8;
      if (dtype != DType::F32 && reinterpret_cast<std::uintptr_t>(p) % 16 == 0) {
        const uint4 raw = *reinterpret_cast<const uint4*>(p);
        const unsigned w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float2 f;
          if (dtype == DType::F16) {
            f = __half22float2(*reinterpret_cast<const __half2*>(&w[k]));
          } else {
            f = make_float2(__uint_as_float(w[k] << 16), __uint_as_float(w[k] & 0xffff0000u));
          }
          v[2 * k] = f.x;
          v[2 * k + 1] = f.y;
        }
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = load_element(x, dtype, at + g * 8 + k);
      }
      if (centred) {
        const std::int64_t position = position_of(r);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = __fsub_rn(v[k], centre_at(codec, head, position, g * 8 + k));
      }
    }
    auto* out = reinterpret_cast<float4*>(to + r * codec.dim + g * 8);
    out[0] = make_float4(v[0], v[1], v[2], v[3]);
    out[1] = make_float4(v[4], v[5], v[6], v[7]);
  }
}

}  // namespace tq4::gpu
