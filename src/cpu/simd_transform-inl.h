// A block of rows through a dense matrix or through Hadamard butterflies. The dense product is a register-tiled matrix product whose lanes
// run over outputs, so every output still sums over j = 0, 1, ... in order, each step one fused multiply-add: the reference's bits.
#if defined(TQ4_CPU_SIMD_TRANSFORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_TRANSFORM_INL_H_
#undef TQ4_CPU_SIMD_TRANSFORM_INL_H_
#else
#define TQ4_CPU_SIMD_TRANSFORM_INL_H_
#endif

#include <cmath>

#include "cpu/scalar.h"
#include "cpu/simd_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

/// kRows rows of x times kVectors vectors of columns; the accumulators live in registers.
/// matrix_t points at the first column: element (j, i) at matrix_t[j * dim + i].
template <int kRows, int kVectors, class D>
HWY_INLINE void ProductTile(D d, const float* HWY_RESTRICT matrix_t, int dim, const float* HWY_RESTRICT x, float* HWY_RESTRICT y) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  hn::Vec<D> acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(d);
  }
  // Rows come from memory and go to it, one tile after the other: ask now for the lines this tile will store to, and with every step
  // for a line of the rows of the next tile (past the last row that is a wish for the next block, or nothing).
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(y + r * dim + v * kLanes, 1);
  }
  const char* next = reinterpret_cast<const char*>(x + kRows * dim);
  for (int j = 0; j < dim; ++j) {
    if constexpr (kRows > 4) __builtin_prefetch(next + 64 * static_cast<std::ptrdiff_t>(j));
    hn::Vec<D> m[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) m[v] = hn::LoadU(d, matrix_t + v * kLanes);
    matrix_t += dim;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const hn::Vec<D> value = hn::Set(d, x[r * dim + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(m[v], value, acc[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) hn::StoreU(acc[r][v], d, y + r * dim + v * kLanes);
  }
}

/// All rows against one panel of columns, the panel staying in the first-level cache.
template <int kRows, int kVectors, class D>
HWY_INLINE void ProductPanel(D d, const float* matrix_t, int dim, const float* x, std::int64_t n, float* y) {
  std::int64_t r = 0;
  for (; r + kRows <= n; r += kRows) ProductTile<kRows, kVectors>(d, matrix_t, dim, x + r * dim, y + r * dim);
  for (; r + 4 <= n; r += 4) ProductTile<4, kVectors>(d, matrix_t, dim, x + r * dim, y + r * dim);
  for (; r < n; ++r) ProductTile<1, kVectors>(d, matrix_t, dim, x + r * dim, y + r * dim);
}

/// y[r][i] = sum over j of matrix_t[j][i] x[r][j], sequential in j.
inline void Product(const float* matrix_t, int dim, const float* x, std::int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  constexpr int kRows = kLanes == 16 ? 12 : 6;  // 12 x 2 accumulators of 32 registers, 6 x 2 of 16
  if (n < 4) {                                  // few rows: more columns at once instead, to hide the latency of the chain over j
    constexpr int kWide = kLanes == 16 ? 8 : 4;
    int i = 0;
    for (; i + kWide * kLanes <= dim; i += kWide * kLanes) ProductPanel<1, kWide>(d, matrix_t + i, dim, x, n, y + i);
    for (; i + 8 <= dim; i += 8) ProductPanel<1, 1>(hn::CappedTag<float, 8>(), matrix_t + i, dim, x, n, y + i);
    return;
  }
  int i = 0;
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) ProductPanel<kRows, 2>(d, matrix_t + i, dim, x, n, y + i);
  for (; i + kLanes <= dim; i += kLanes) ProductPanel<kRows, 1>(d, matrix_t + i, dim, x, n, y + i);
  for (; i + 8 <= dim; i += 8) ProductPanel<kRows, 1>(hn::CappedTag<float, 8>(), matrix_t + i, dim, x, n, y + i);
}

/// One stage of the butterflies inside a vector: lane l meets lane l ^ h. sign is +1 in the lanes of a and -1 in those of b, so that
/// sign * v + partner is a + b and a - b, rounded once.
template <int h>
HWY_INLINE F32x16 ButterflyInside(F32x16 v, F32x16 sign) {
#if HWY_TARGET <= HWY_AVX3
  __m512 partner;
  if constexpr (h == 1) partner = _mm512_permute_ps(v.raw, 0xb1);
  if constexpr (h == 2) partner = _mm512_permute_ps(v.raw, 0x4e);
  if constexpr (h == 4) partner = _mm512_shuffle_f32x4(v.raw, v.raw, 0xb1);
  if constexpr (h == 8) partner = _mm512_shuffle_f32x4(v.raw, v.raw, 0x4e);
  return Fma(v, sign, F32x16{partner});
#else
  if constexpr (h == 8) return {hn::Add(v.lo, v.hi), hn::Sub(v.lo, v.hi)};
  F32x16 partner = v;
  if constexpr (h == 1)
    partner = {hn::Vec256<float>{_mm256_permute_ps(v.lo.raw, 0xb1)}, hn::Vec256<float>{_mm256_permute_ps(v.hi.raw, 0xb1)}};
  if constexpr (h == 2)
    partner = {hn::Vec256<float>{_mm256_permute_ps(v.lo.raw, 0x4e)}, hn::Vec256<float>{_mm256_permute_ps(v.hi.raw, 0x4e)}};
  if constexpr (h == 4) {
    partner = {hn::Vec256<float>{_mm256_permute2f128_ps(v.lo.raw, v.lo.raw, 1)},
               hn::Vec256<float>{_mm256_permute2f128_ps(v.hi.raw, v.hi.raw, 1)}};
  }
  return Fma(v, sign, partner);
#endif
}

struct ButterflySigns {
  F32x16 one, two, four, eight;
};
HWY_INLINE ButterflySigns MakeButterflySigns() {
  alignas(64) float s[4][16];
  for (int k = 0; k < 4; ++k) {
    for (int l = 0; l < 16; ++l) s[k][l] = (l >> k & 1) != 0 ? -1.0f : 1.0f;
  }
  return {Load16(s[0]), Load16(s[1]), Load16(s[2]), Load16(s[3])};
}

/// How far ahead of the butterflies rows are asked for, in bytes: about a block of rows.
inline constexpr std::ptrdiff_t kAhead = 16384;

/// A block of 16 * kVectors values in registers: strides 1, 2, 4, 8 inside vectors, then across them. kPre and kPost: `signs` multiply
/// before the butterflies or after them; scaled unless the caller still has stages to do.
template <int kVectors, bool kPre, bool kPost>
HWY_INLINE void ButterfliesInRegisters(const ButterflySigns& lanes, const float* x, const float* signs, float scale, float* y) {
  F32x16 v[kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) {
    __builtin_prefetch(reinterpret_cast<const char*>(x + 16 * k) + kAhead);
    v[k] = Load16(x + 16 * k);
    if constexpr (kPre) v[k] = Mul(v[k], Load16(signs + 16 * k));
    v[k] = ButterflyInside<1>(v[k], lanes.one);
    v[k] = ButterflyInside<2>(v[k], lanes.two);
    v[k] = ButterflyInside<4>(v[k], lanes.four);
    v[k] = ButterflyInside<8>(v[k], lanes.eight);
  }
#pragma GCC unroll 4
  for (int h = 1; h < kVectors; h *= 2) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k) {
      if ((k & h) == 0) {
        const F32x16 a = v[k], b = v[k + h];
        v[k] = Add(a, b);
        v[k + h] = Sub(a, b);
      }
    }
  }
  const F32x16 s = Set16(scale);
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) {
    v[k] = Mul(v[k], s);
    if constexpr (kPost) v[k] = Mul(v[k], Load16(signs + 16 * k));
    Store16(v[k], y + 16 * k);
  }
}

/// Any size from 8 on: pieces of 64 in registers, then the larger strides through memory. y and x may be the same.
inline void ButterfliesGeneral(const ButterflySigns& lanes, const float* x, int size, const float* pre, const float* post, float* y) {
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));
  for (int j = 0; j < size; j += 16) {
    F32x16 v = LoadRow(x, j, size);
    if (pre != nullptr) v = Mul(v, LoadRow(pre, j, size));
    v = ButterflyInside<1>(v, lanes.one);
    v = ButterflyInside<2>(v, lanes.two);
    v = ButterflyInside<4>(v, lanes.four);
    if (size > 8) v = ButterflyInside<8>(v, lanes.eight);
    StoreRow(v, y, j, size);
  }
  for (int h = 16; h < size; h *= 2) {
    for (int i = 0; i < size; i += 2 * h) {
      for (int j = i; j < i + h; j += 16) {
        const F32x16 a = Load16(y + j), b = Load16(y + j + h);
        Store16(Add(a, b), y + j);
        Store16(Sub(a, b), y + j + h);
      }
    }
  }
  for (int j = 0; j < size; j += 16) {
    F32x16 v = Mul(LoadRow(y, j, size), Set16(scale));
    if (post != nullptr) v = Mul(v, LoadRow(post, j, size));
    StoreRow(v, y, j, size);
  }
}

template <int kVectors>
inline void ButterflyRows(const float* x, std::int64_t n, int stride, const float* pre, const float* post, float* y) {
  const ButterflySigns lanes = MakeButterflySigns();
  const float scale = static_cast<float>(1.0 / std::sqrt(16.0 * kVectors));
  if (pre != nullptr) {
    for (std::int64_t r = 0; r < n; ++r) ButterfliesInRegisters<kVectors, true, false>(lanes, x + r * stride, pre, scale, y + r * stride);
  } else if (post != nullptr) {
    for (std::int64_t r = 0; r < n; ++r) ButterfliesInRegisters<kVectors, false, true>(lanes, x + r * stride, post, scale, y + r * stride);
  } else {
    for (std::int64_t r = 0; r < n; ++r)
      ButterfliesInRegisters<kVectors, false, false>(lanes, x + r * stride, nullptr, scale, y + r * stride);
  }
}

/// The orthonormal Sylvester Hadamard transform of every diagonal block; signs before (pre) or after it (post), or null.
inline void Butterflies(const TransformTables& t, const float* x, std::int64_t n, const float* pre, const float* post, float* y) {
  int at = 0;
  for (int b = 0; b < t.block_count; at += t.blocks[b], ++b) {
    const float* pre_b = pre != nullptr ? pre + at : nullptr;
    const float* post_b = post != nullptr ? post + at : nullptr;
    const int size = t.blocks[b];
    if (size == 128) {
      ButterflyRows<8>(x + at, n, t.dim, pre_b, post_b, y + at);
    } else if (size == 64) {
      ButterflyRows<4>(x + at, n, t.dim, pre_b, post_b, y + at);
    } else if (size == 32) {
      ButterflyRows<2>(x + at, n, t.dim, pre_b, post_b, y + at);
    } else {
      const ButterflySigns lanes = MakeButterflySigns();
      for (std::int64_t r = 0; r < n; ++r) ButterfliesGeneral(lanes, x + r * t.dim + at, size, pre_b, post_b, y + r * t.dim + at);
    }
  }
}

/// Tables read from a file may have blocks shorter than half a vector.
inline bool HasTinyBlock(const TransformTables& t) {
  for (int b = 0; b < t.block_count; ++b) {
    if (t.blocks[b] < 8) return true;
  }
  return false;
}

inline void Transform(const TransformTables& t, const float* x, std::int64_t n, float* y) {
  if (t.kind == TransformKind::Hadamard && HasTinyBlock(t)) return scalar_transform(t, x, n, y);
  if (t.kind == TransformKind::Dense) return Product(t.forward_t, t.dim, x, n, y);
  if (t.kind == TransformKind::Hadamard) return Butterflies(t, x, n, t.signs, nullptr, y);
  std::memcpy(y, x, static_cast<std::size_t>(n) * static_cast<std::size_t>(t.dim) * sizeof(float));
}

inline void InverseTransform(const TransformTables& t, const float* y, std::int64_t n, float* x) {
  if (t.kind == TransformKind::Hadamard && HasTinyBlock(t)) return scalar_inverse_transform(t, y, n, x);
  if (t.kind == TransformKind::Dense) return Product(t.inverse_t, t.dim, y, n, x);
  if (t.kind == TransformKind::Hadamard) return Butterflies(t, y, n, nullptr, t.signs, x);
  std::memcpy(x, y, static_cast<std::size_t>(n) * static_cast<std::size_t>(t.dim) * sizeof(float));
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
