// A block turns a few rows in shared memory by a dense matrix or by Hadamard butterflies, with the order of additions that the scalar
// reference on the CPU has: sequential over j for a dense product, strides 1, 2, 4, ... for butterflies. Results are equal bit for bit.
#pragma once

#include <cstdint>

#include "cuda/views.h"

namespace tq4::gpu {

/// y = M x. `matrix_t` is M transposed, [D, D] (of the row's head).
struct RowTransform {
  const float* matrix_t;
  const float* signs;    ///< butterflies: [D] or null
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

/// in [R][dim] to out [R][dim], both shared (dim a multiple of 4, 16-byte aligned). Butterflies and the identity copy first.
template <int R>
__device__ inline void block_transform(const RowTransform& t, const float* in, float* out, int dim, int thread, int threads) {
  __syncthreads();
  if (t.identity || t.butterflies) {
    for (int i = thread; i < R * dim; i += threads) out[i] = in[i];
    if (t.butterflies) block_butterflies(out, R, dim, t.signs, t.signs_last, thread, threads);
    __syncthreads();
    return;
  }
  for (int i = thread; i < dim; i += threads) {
    float acc[R];
#pragma unroll
    for (int r = 0; r < R; ++r) acc[r] = 0.0f;
    const float* column = t.matrix_t + i;
#pragma unroll 4
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

}  // namespace tq4::gpu
