// Packed codes and scales back to transformed rows. Scalar codebooks of up to 4 bits stay in registers: eight codes fit a 32-bit lane's
// worth of bits, which every lane shifts to its own code, and one permutation per 16 values looks the centroids up.
#if defined(TQ4_CPU_SIMD_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_DECODE_INL_H_
#undef TQ4_CPU_SIMD_DECODE_INL_H_
#else
#define TQ4_CPU_SIMD_DECODE_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>

#include "cpu/scalar.h"
#include "cpu/simd_convert-inl.h"
#include "cpu/simd_pack-inl.h"
#include "cpu/simd_transform-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

/// Centroids of codes [dim] in bytes, norm-corrected where the codec says so: centroids_of of scalar.h.
inline void CentroidsOf(const CodeTables& t, const std::uint8_t* codes, float* c) {
  const int dim = t.dim;
  if (t.pairs != nullptr) {
    for (int j = 0; j < dim; j += 2) std::memcpy(c + j, t.pairs + 2 * (codes[j] | codes[j + 1] << t.bits), 2 * sizeof(float));
  } else {
    for (int part = 0; part < 2; ++part) {
      const int from = part == 0 ? 0 : t.outliers, to = part == 0 ? t.outliers : dim;
      const float* table = part == 0 ? t.outlier_centroids : t.centroids;
      for (int j = from; j < to; j += 16) {
        StoreRow(Gather(table, j + 16 <= to ? LoadBytes16(codes + j) : LoadBytes8(codes + j)), c, j, to);
      }
    }
  }
  if (t.norm_correction) {
    const F32x16 inv = Set16(1.0f / std::sqrt(Dot(c, c, dim) + 1e-16f));
    for (int j = 0; j < dim; j += 16) StoreRow(Mul(LoadRow(c, j, dim), inv), c, j, dim);
  }
}

/// Lane l holds the code of coordinate l in its low bits (higher bits are not cleared: Lookup16 reads four, and tables repeat).
/// Reads 4 bytes at src and 4 at src + kBits.
template <int kBits>
HWY_INLINE I32x16 SpreadCodes(const std::uint8_t* src) {
  std::int32_t low, high;
  std::memcpy(&low, src, 4);
  std::memcpy(&high, src + kBits, 4);
  const __m256i shifts = _mm256_setr_epi32(0, kBits, 2 * kBits, 3 * kBits, 4 * kBits, 5 * kBits, 6 * kBits, 7 * kBits);
#if HWY_TARGET <= HWY_AVX3
  const __m512i words = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high);
  return I32x16{_mm512_srlv_epi32(words, _mm512_broadcast_i32x8(shifts))};
#else
  return {hn::Vec256<std::int32_t>{_mm256_srlv_epi32(_mm256_set1_epi32(low), shifts)},
          hn::Vec256<std::int32_t>{_mm256_srlv_epi32(_mm256_set1_epi32(high), shifts)}};
#endif
}

/// Rows of up to 4 bits whose reads may pass the end of a row by 4 bytes: not the last row of a plane.
template <int kBits, int kChunks>
HWY_INLINE void DecodeRow(F32x16 centroids, int any_dim, const std::uint8_t* src, float row_scale, float* y) {
  const int dim = kChunks != 0 ? 16 * kChunks : any_dim;
  const F32x16 scale = Set16(row_scale);
#pragma GCC unroll 8
  for (int j = 0; j < dim; j += 16, src += 2 * kBits) {
    const F32x16 v = Mul(Lookup16(centroids, SpreadCodes<kBits>(src)), scale);
    kChunks != 0 ? Store16(v, y + j) : StoreRow(v, y, j, dim);
  }
}

template <int kBits, int kChunks>
inline void DecodeRows(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  alignas(64) float table[16];
  for (int i = 0; i < 16; ++i) table[i] = t.centroids[i & ((1 << kBits) - 1)];
  const F32x16 centroids = Load16(table);
  const auto bytes = static_cast<std::int64_t>(t.code_bytes);
  for (std::int64_t r = 0; r + 1 < n; ++r) DecodeRow<kBits, kChunks>(centroids, t.dim, in.codes + r * bytes, in.scale[r], y + r * t.dim);
  std::uint8_t last[kMaxDim / 2 + 16] = {};
  std::memcpy(last, in.codes + (n - 1) * bytes, t.code_bytes);
  DecodeRow<kBits, kChunks>(centroids, t.dim, last, in.scale[n - 1], y + (n - 1) * t.dim);
}

template <int kBits>
inline void DecodeScalarCodes(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  switch (t.dim) {
    case 64: return DecodeRows<kBits, 4>(t, in, n, y);
    case 128: return DecodeRows<kBits, 8>(t, in, n, y);
    default: return DecodeRows<kBits, 0>(t, in, n, y);
  }
}

/// Pairs: a code of 2b bits is one 8-byte point.
inline void DecodePairs(const CodeTables& t, const std::uint8_t* row, float scale, float* y) {
  std::uint8_t codes[kMaxDim + 16];
  UnpackAnyBytes(t.bits, row, t.dim, codes);
  for (int j = 0; j < t.dim; j += 2) std::memcpy(y + j, t.pairs + 2 * (codes[j] | codes[j + 1] << t.bits), 2 * sizeof(float));
  for (int j = 0; j < t.dim; j += 16) StoreRow(Mul(LoadRow(y, j, t.dim), Set16(scale)), y, j, t.dim);
}

/// Prod: y += sqrt(pi/2)/D |r| S^T sign for a few rows; the sum over rows of S is a product with a vector of +-1, which is exact.
inline void AddResiduals(const CodeTables& t, const EncodedIn& in, int rows, float* y) {
  constexpr int kRows = 16;
  alignas(64) static thread_local float sign[kRows * kMaxDim], sum[kRows * kMaxDim];
  const int dim = t.dim;
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < dim; ++i) sign[r * dim + i] = (in.signs[r * (dim / 8) + i / 8] >> (i % 8) & 1) != 0 ? 1.0f : -1.0f;
  }
  Product(t.qjl, dim, sign, rows, sum);
  for (int r = 0; r < rows; ++r) {
    const F32x16 gain = Set16(static_cast<float>(std::sqrt(std::numbers::pi / 2.0) / dim) * in.residual_norm[r]);
    float* row = y + r * dim;
    for (int j = 0; j < dim; j += 16) StoreRow(Fma(gain, LoadRow(sum + r * dim, j, dim), LoadRow(row, j, dim)), row, j, dim);
  }
}

inline void DecodeAnyBook(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  std::uint8_t codes[kMaxDim + 16];
  for (std::int64_t r = 0; r < n; ++r) {
    float* row = y + r * t.dim;
    UnpackRow(t, in.codes + r * static_cast<std::int64_t>(t.code_bytes), codes);
    CentroidsOf(t, codes, row);
    const F32x16 scale = Set16(in.scale[r]);
    for (int j = 0; j < t.dim; j += 16) StoreRow(Mul(LoadRow(row, j, t.dim), scale), row, j, t.dim);
  }
}

inline void DecodeUniform(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  std::uint8_t codes[kMaxDim + 16];
  for (std::int64_t r = 0; r < n; ++r) {
    float* row = y + r * t.dim;
    UnpackRow(t, in.codes + r * static_cast<std::int64_t>(t.code_bytes), codes);
    const F32x16 scale = Set16(in.scale[r]), zero = Set16(in.zero[r]);
    for (int j = 0; j < t.dim; j += 16) {
      const I32x16 code = j + 16 <= t.dim ? LoadBytes16(codes + j) : LoadBytes8(codes + j);
      StoreRow(Fma(scale, ToFloat(code), zero), row, j, t.dim);
    }
  }
}

inline void Decode(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  if (n == 0) return;
  const bool plain = t.outliers == 0 && t.pairs == nullptr && !t.norm_correction && t.bits <= 4;
  switch (t.kind) {
    case CodeKind::Mse:
    case CodeKind::Prod:
    case CodeKind::Mixed:
      if (!plain) {
        DecodeAnyBook(t, in, n, y);
      } else if (t.bits == 1) {
        DecodeScalarCodes<1>(t, in, n, y);
      } else if (t.bits == 2) {
        DecodeScalarCodes<2>(t, in, n, y);
      } else if (t.bits == 3) {
        DecodeScalarCodes<3>(t, in, n, y);
      } else {
        DecodeScalarCodes<4>(t, in, n, y);
      }
      if (t.kind == CodeKind::Prod) {
        for (std::int64_t r = 0; r < n; r += 16)
          AddResiduals(t, planes_at(in, t, r), static_cast<int>(n - r < 16 ? n - r : 16), y + r * t.dim);
      }
      return;
    case CodeKind::Uniform: return DecodeUniform(t, in, n, y);
    case CodeKind::Fp8: return DecodeFp8(t.fp8, in.codes, n * t.dim, y);
    case CodeKind::Fp16: return DecodeHalf(in.codes, n * t.dim, y);
  }
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
