// A block turns a few rows in shared memory by a dense matrix or by Hadamard butterflies, with the order of additions that the scalar
// reference on the CPU has: sequential over j for a dense product, strides 1, 2, 4, ... for butterflies. Results are equal bit for bit.
#pragma once

#include <cstdint>

#include "cuda/views.h"

namespace tq4::gpu {

/// y = M x. `matrix_t` is M transposed, [D, D] (of the row's head).
struct RowTransform {
  const float* matrix_t;
  const float* signs;  ///< butterflies: [D] or null
  bool butterflies, identity, signs_last;
};

__host__ __device__ inline RowTransform forward_transform(const SideTables& t, int head, int dim) {
  const std::int64_t at = t.per_head ? static_cast<std::int64_t>(head) * dim * dim : 0;
  return {t.forward_t + at, t.hadamard_signs, t.butterflies, t.identity, false};
}
/// What queries are multiplied by: inverse^T.
__host__ __device__ inline RowTransform query_transform(const SideTables& t, int head, int dim) {
  const std::int64_t at = t.per_head ? static_cast<std::int64_t>(head) * dim * dim : 0;
  return {t.inverse + at, t.hadamard_signs, t.butterflies, t.identity, false};
}
__host__ __device__ inline RowTransform inverse_transform(const SideTables& t, int head, int dim) {
  const std::int64_t at = t.per_head ? static_cast<std::int64_t>(head) * dim * dim : 0;
  return {t.inverse_t + at, t.hadamard_signs, t.butterflies, t.identity, true};
}

/// The power-of-two block (offset, size) of a Hadamard of order dim that coordinate j is in.
__device__ __forceinline__ void hadamard_block(int dim, int j, int& offset, int& size) {
  offset = 0;
  size = 1 << (31 - __clz(dim));
  while (j >= offset + size) {
    offset += size;
    dim -= size;
    size = 1 << (31 - __clz(dim));
  }
}
/// float(1 / sqrt(size)) of a power of two.
__device__ __forceinline__ float hadamard_scale(int size) {
  const int e = 31 - __clz(size);
  const float power = __uint_as_float(static_cast<unsigned>(127 - (e >> 1)) << 23);
  return (e & 1) != 0 ? power * 0.70710678118654752f : power;
}

/// rows [n][dim] fp32 in shared memory, in place; all `threads` threads of the block call it; synchronised before and after.
__device__ inline void block_butterflies(float* rows, int n, int dim, const float* signs, bool signs_last, int thread, int threads) {
  __syncthreads();
  if (signs && !signs_last) {
    for (int i = thread; i < n * dim; i += threads) rows[i] = __fmul_rn(rows[i], signs[i % dim]);
    __syncthreads();
  }
  const int half = dim / 2;
  for (int h = 1; h < dim; h *= 2) {
    for (int i = thread; i < n * half; i += threads) {
      const int r = i / half, q = i - r * half;
      int offset, size;
      hadamard_block(dim, 2 * q, offset, size);
      if (h < size) {
        const int k = q - offset / 2;
        float* v = rows + r * dim + offset + (k & ~(h - 1)) * 2 + (k & (h - 1));
        const float a = v[0], b = v[h];
        v[0] = __fadd_rn(a, b);
        v[h] = __fsub_rn(a, b);
      }
    }
    __syncthreads();
  }
  for (int i = thread; i < n * dim; i += threads) {
    int offset, size;
    hadamard_block(dim, i % dim, offset, size);
    float v = __fmul_rn(rows[i], hadamard_scale(size));
    if (signs && signs_last) v = __fmul_rn(v, signs[i % dim]);
    rows[i] = v;
  }
  __syncthreads();
}

/// The same for one row of a power of two of at least 32 coordinates by one warp, in registers: coordinate 32 k + lane. Additions are those of
/// block_butterflies, so the bits are too.
template <int N>
__device__ __forceinline__ void warp_butterflies(const float* in, float* out, const float* signs, bool signs_last, int lane) {
  float v[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    v[k] = in[k * 32 + lane];
    if (signs && !signs_last) v[k] = __fmul_rn(v[k], signs[k * 32 + lane]);
  }
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float other = __shfl_xor_sync(~0u, v[k], h);
      v[k] = (lane & h) != 0 ? __fsub_rn(other, v[k]) : __fadd_rn(v[k], other);
    }
  }
#pragma unroll
  for (int h = 1; h < N; h *= 2) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if ((k & h) == 0) {
        const float a = v[k], b = v[k | h];
        v[k] = __fadd_rn(a, b);
        v[k | h] = __fsub_rn(a, b);
      }
    }
  }
  const float scale = hadamard_scale(32 * N);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    v[k] = __fmul_rn(v[k], scale);
    if (signs && signs_last) v[k] = __fmul_rn(v[k], signs[k * 32 + lane]);
    out[k * 32 + lane] = v[k];
  }
}

/// rows [R][dim] of `in` by butterflies to `out`, the whole block; the fast form where dim allows it.
template <int R>
__device__ inline void block_hadamard(const float* in, float* out, int dim, const float* signs, bool signs_last, int thread, int threads) {
  if ((dim & (dim - 1)) == 0) {
    for (int r = thread >> 5; r < R; r += threads >> 5) {
      const float* from = in + r * dim;
      float* to = out + r * dim;
      switch (dim) {
        case 32: warp_butterflies<1>(from, to, signs, signs_last, thread & 31); break;
        case 64: warp_butterflies<2>(from, to, signs, signs_last, thread & 31); break;
        case 128: warp_butterflies<4>(from, to, signs, signs_last, thread & 31); break;
        case 256: warp_butterflies<8>(from, to, signs, signs_last, thread & 31); break;
        default: warp_butterflies<16>(from, to, signs, signs_last, thread & 31);
      }
    }
    return;
  }
  for (int i = thread; i < R * dim; i += threads) out[i] = in[i];
  block_butterflies(out, R, dim, signs, signs_last, thread, threads);
}

/// in [R][dim] to out [R][dim], both shared (dim a multiple of 4, 16-byte aligned).
template <int R>
__device__ inline void block_transform(const RowTransform& t, const float* in, float* out, int dim, int thread, int threads) {
  __syncthreads();
  if (t.identity || t.butterflies) {
    if (t.butterflies) {
      block_hadamard<R>(in, out, dim, t.signs, t.signs_last, thread, threads);
    } else {
      for (int i = thread; i < R * dim; i += threads) out[i] = in[i];
    }
    __syncthreads();
    return;
  }
  for (int i = thread; i < dim; i += threads) {
    float acc[R];
#pragma unroll
    for (int r = 0; r < R; ++r) acc[r] = 0.0f;
    const float* column = t.matrix_t + i;
#pragma unroll(R <= 4 ? 8 : 4)
    for (int j = 0; j < dim; j += 4) {
      float m[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) m[k] = __ldg(column + static_cast<std::int64_t>(j + k) * dim);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(in + r * dim + j);
        acc[r] = __fmaf_rn(m[0], x.x, acc[r]);
        acc[r] = __fmaf_rn(m[1], x.y, acc[r]);
        acc[r] = __fmaf_rn(m[2], x.z, acc[r]);
        acc[r] = __fmaf_rn(m[3], x.w, acc[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) out[r * dim + i] = acc[r];
  }
  __syncthreads();
}

/// block_transform for queries and outputs, where the order of additions is free: groups of threads share the sum over j. `scratch` holds
/// [parts][R][dim] fp32, parts = split_parts(dim, threads).
__host__ __device__ inline int split_parts(int dim, int threads) {
  const int lanes = (dim + 31) / 32 * 32;
  return threads / lanes > 1 ? threads / lanes : 1;
}
template <int R>
__device__ inline void block_transform_split(const RowTransform& t, const float* in, float* out, float* scratch, int dim, int thread,
                                             int threads) {
  const int parts = split_parts(dim, threads);
  if (t.identity || t.butterflies || parts == 1) {
    block_transform<R>(t, in, out, dim, thread, threads);
    return;
  }
  __syncthreads();
  const int lanes = (dim + 31) / 32 * 32, part = thread / lanes, i = thread - part * lanes;
  const int steps = (dim / 4 + parts - 1) / parts, begin = part * steps * 4, end = min(dim, begin + steps * 4);
  if (part < parts && i < dim) {
    float acc[R];
#pragma unroll
    for (int r = 0; r < R; ++r) acc[r] = 0.0f;
#pragma unroll 8
    for (int j = begin; j < end; j += 4) {
      float m[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) m[k] = __ldg(t.matrix_t + static_cast<std::int64_t>(j + k) * dim + i);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(in + r * dim + j);
        acc[r] = fmaf(m[0], x.x, fmaf(m[1], x.y, fmaf(m[2], x.z, fmaf(m[3], x.w, acc[r]))));
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) scratch[(part * R + r) * dim + i] = acc[r];
  }
  __syncthreads();
  for (int k = thread; k < R * dim; k += threads) {
    float sum = 0.0f;
    for (int q = 0; q < parts; ++q) sum += scratch[q * R * dim + k];
    out[k] = sum;
  }
  __syncthreads();
}

}  // namespace tq4::gpu
