// Sixteen lanes at a time: the small vector vocabulary of the SIMD row kernels. The numerics contract sums in 16 partial sums, so one
// F32x16 holds exactly one set of partials: one register on AVX-512, two on AVX2. Included once per Highway target (no include guard
// in the usual sense); only targets with a true fused multiply-add are compiled, see simd_kernels.cpp.
#if defined(TQ4_CPU_SIMD_OPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_OPS_INL_H_
#undef TQ4_CPU_SIMD_OPS_INL_H_
#else
#define TQ4_CPU_SIMD_OPS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET <= HWY_AVX3

using F32x16 = hn::Vec512<float>;
using I32x16 = hn::Vec512<std::int32_t>;
using Mask16 = __mmask16;
inline constexpr hn::Full512<float> kF;
inline constexpr hn::Full512<std::int32_t> kI;

HWY_INLINE F32x16 Zero16() { return hn::Zero(kF); }
HWY_INLINE F32x16 Set16(float v) { return hn::Set(kF, v); }
HWY_INLINE I32x16 SetI16(std::int32_t v) { return hn::Set(kI, v); }
HWY_INLINE F32x16 Load16(const float* p) { return hn::LoadU(kF, p); }
HWY_INLINE I32x16 LoadI16(const std::int32_t* p) { return hn::LoadU(kI, p); }
/// Eight values, and zeros in lanes 8 to 15.
HWY_INLINE F32x16 Load8(const float* p) { return hn::ZeroExtendVector(kF, hn::LoadU(hn::Full256<float>(), p)); }
HWY_INLINE void Store16(F32x16 v, float* p) { hn::StoreU(v, kF, p); }
HWY_INLINE void Store8(F32x16 v, float* p) { hn::StoreU(hn::LowerHalf(v), hn::Full256<float>(), p); }
HWY_INLINE F32x16 Add(F32x16 a, F32x16 b) { return hn::Add(a, b); }
HWY_INLINE F32x16 Sub(F32x16 a, F32x16 b) { return hn::Sub(a, b); }
HWY_INLINE F32x16 Mul(F32x16 a, F32x16 b) { return hn::Mul(a, b); }
HWY_INLINE F32x16 Div(F32x16 a, F32x16 b) { return hn::Div(a, b); }
HWY_INLINE F32x16 Sqrt16(F32x16 a) { return hn::Sqrt(a); }
HWY_INLINE F32x16 Floor16(F32x16 a) { return hn::Floor(a); }
/// Operands as minps and maxps take them: the second where either is NaN or both are zero.
HWY_INLINE F32x16 Min16(F32x16 a, F32x16 b) { return hn::Min(a, b); }
HWY_INLINE F32x16 Max16(F32x16 a, F32x16 b) { return hn::Max(a, b); }
HWY_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return hn::MulAdd(a, b, c); }
HWY_INLINE I32x16 AddI(I32x16 a, I32x16 b) { return hn::Add(a, b); }
HWY_INLINE I32x16 BitsOf(F32x16 v) { return hn::BitCast(kI, v); }
HWY_INLINE I32x16 ToInt(F32x16 v) { return hn::ConvertTo(kI, v); }
HWY_INLINE F32x16 ToFloat(I32x16 v) { return hn::ConvertTo(kF, v); }
HWY_INLINE F32x16 ZeroUpperHalf(F32x16 v) { return hn::ZeroExtendVector(kF, hn::LowerHalf(v)); }

HWY_INLINE Mask16 GreaterEqual(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.raw, b.raw, _CMP_GE_OQ); }
HWY_INLINE Mask16 Less(F32x16 a, F32x16 b) { return _mm512_cmp_ps_mask(a.raw, b.raw, _CMP_LT_OQ); }
HWY_INLINE unsigned MaskBits(Mask16 m) { return static_cast<unsigned>(m); }
/// a + b where m, else a.
HWY_INLINE I32x16 MaskedAdd(Mask16 m, I32x16 a, I32x16 b) { return I32x16{_mm512_mask_add_epi32(a.raw, m, a.raw, b.raw)}; }
HWY_INLINE F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) { return F32x16{_mm512_mask_mov_ps(no.raw, m, yes.raw)}; }
HWY_INLINE I32x16 SelectI(Mask16 m, I32x16 yes, I32x16 no) { return I32x16{_mm512_mask_mov_epi32(no.raw, m, yes.raw)}; }

/// table[index mod 16].
HWY_INLINE F32x16 Lookup16(F32x16 table, I32x16 index) { return F32x16{_mm512_permutexvar_ps(index.raw, table.raw)}; }
HWY_INLINE F32x16 Gather(const float* table, I32x16 index) { return F32x16{_mm512_i32gather_ps(index.raw, table, 4)}; }

/// The low bytes of 16 lanes, and back.
HWY_INLINE void StoreBytes16(I32x16 v, std::uint8_t* p) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v.raw)); }
HWY_INLINE void StoreBytes8(I32x16 v, std::uint8_t* p) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v.raw)); }
HWY_INLINE I32x16 LoadBytes16(const std::uint8_t* p) {
  return I32x16{_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
HWY_INLINE I32x16 LoadBytes8(const std::uint8_t* p) {
  return I32x16{_mm512_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
/// fp16 values of 16 lanes (round to nearest even), and back.
HWY_INLINE void StoreHalf16(F32x16 v, void* p) { _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(v.raw, _MM_FROUND_NO_EXC)); }
HWY_INLINE F32x16 LoadHalf16(const void* p) { return F32x16{_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
HWY_INLINE F32x16 LoadBrain16(const void* p) {
  return F32x16{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16))};
}
/// The first two steps of the tree: p[l] += p[l + 8], p[l] += p[l + 4]; four sums are left.
HWY_INLINE hn::Vec128<float> Fold4(F32x16 p) {
  const auto eight = hn::Add(hn::LowerHalf(p), hn::UpperHalf(hn::Full256<float>(), p));
  return hn::Add(hn::LowerHalf(eight), hn::UpperHalf(hn::Full128<float>(), eight));
}

#else  // AVX2: two registers of eight

struct F32x16 {
  hn::Vec256<float> lo, hi;
};
struct I32x16 {
  hn::Vec256<std::int32_t> lo, hi;
};
struct Mask16 {
  __m256 lo, hi;
};
inline constexpr hn::Full256<float> kF;
inline constexpr hn::Full256<std::int32_t> kI;

HWY_INLINE F32x16 Zero16() { return {hn::Zero(kF), hn::Zero(kF)}; }
HWY_INLINE F32x16 Set16(float v) { return {hn::Set(kF, v), hn::Set(kF, v)}; }
HWY_INLINE I32x16 SetI16(std::int32_t v) { return {hn::Set(kI, v), hn::Set(kI, v)}; }
HWY_INLINE F32x16 Load16(const float* p) { return {hn::LoadU(kF, p), hn::LoadU(kF, p + 8)}; }
HWY_INLINE I32x16 LoadI16(const std::int32_t* p) { return {hn::LoadU(kI, p), hn::LoadU(kI, p + 8)}; }
HWY_INLINE F32x16 Load8(const float* p) { return {hn::LoadU(kF, p), hn::Zero(kF)}; }
HWY_INLINE void Store16(F32x16 v, float* p) {
  hn::StoreU(v.lo, kF, p);
  hn::StoreU(v.hi, kF, p + 8);
}
HWY_INLINE void Store8(F32x16 v, float* p) { hn::StoreU(v.lo, kF, p); }
HWY_INLINE F32x16 Add(F32x16 a, F32x16 b) { return {hn::Add(a.lo, b.lo), hn::Add(a.hi, b.hi)}; }
HWY_INLINE F32x16 Sub(F32x16 a, F32x16 b) { return {hn::Sub(a.lo, b.lo), hn::Sub(a.hi, b.hi)}; }
HWY_INLINE F32x16 Mul(F32x16 a, F32x16 b) { return {hn::Mul(a.lo, b.lo), hn::Mul(a.hi, b.hi)}; }
HWY_INLINE F32x16 Div(F32x16 a, F32x16 b) { return {hn::Div(a.lo, b.lo), hn::Div(a.hi, b.hi)}; }
HWY_INLINE F32x16 Sqrt16(F32x16 a) { return {hn::Sqrt(a.lo), hn::Sqrt(a.hi)}; }
HWY_INLINE F32x16 Floor16(F32x16 a) { return {hn::Floor(a.lo), hn::Floor(a.hi)}; }
HWY_INLINE F32x16 Min16(F32x16 a, F32x16 b) { return {hn::Min(a.lo, b.lo), hn::Min(a.hi, b.hi)}; }
HWY_INLINE F32x16 Max16(F32x16 a, F32x16 b) { return {hn::Max(a.lo, b.lo), hn::Max(a.hi, b.hi)}; }
HWY_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return {hn::MulAdd(a.lo, b.lo, c.lo), hn::MulAdd(a.hi, b.hi, c.hi)}; }
HWY_INLINE I32x16 AddI(I32x16 a, I32x16 b) { return {hn::Add(a.lo, b.lo), hn::Add(a.hi, b.hi)}; }
HWY_INLINE I32x16 BitsOf(F32x16 v) { return {hn::BitCast(kI, v.lo), hn::BitCast(kI, v.hi)}; }
HWY_INLINE I32x16 ToInt(F32x16 v) { return {hn::ConvertTo(kI, v.lo), hn::ConvertTo(kI, v.hi)}; }
HWY_INLINE F32x16 ToFloat(I32x16 v) { return {hn::ConvertTo(kF, v.lo), hn::ConvertTo(kF, v.hi)}; }
HWY_INLINE F32x16 ZeroUpperHalf(F32x16 v) { return {v.lo, hn::Zero(kF)}; }

HWY_INLINE Mask16 GreaterEqual(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo.raw, b.lo.raw, _CMP_GE_OQ), _mm256_cmp_ps(a.hi.raw, b.hi.raw, _CMP_GE_OQ)};
}
HWY_INLINE Mask16 Less(F32x16 a, F32x16 b) {
  return {_mm256_cmp_ps(a.lo.raw, b.lo.raw, _CMP_LT_OQ), _mm256_cmp_ps(a.hi.raw, b.hi.raw, _CMP_LT_OQ)};
}
HWY_INLINE unsigned MaskBits(Mask16 m) {
  return static_cast<unsigned>(_mm256_movemask_ps(m.lo)) | static_cast<unsigned>(_mm256_movemask_ps(m.hi)) << 8;
}
HWY_INLINE I32x16 MaskedAdd(Mask16 m, I32x16 a, I32x16 b) {
  return {hn::Vec256<std::int32_t>{_mm256_add_epi32(a.lo.raw, _mm256_and_si256(_mm256_castps_si256(m.lo), b.lo.raw))},
          hn::Vec256<std::int32_t>{_mm256_add_epi32(a.hi.raw, _mm256_and_si256(_mm256_castps_si256(m.hi), b.hi.raw))}};
}
HWY_INLINE F32x16 Select(Mask16 m, F32x16 yes, F32x16 no) {
  return {hn::Vec256<float>{_mm256_blendv_ps(no.lo.raw, yes.lo.raw, m.lo)},
          hn::Vec256<float>{_mm256_blendv_ps(no.hi.raw, yes.hi.raw, m.hi)}};
}
HWY_INLINE I32x16 SelectI(Mask16 m, I32x16 yes, I32x16 no) {
  return {hn::Vec256<std::int32_t>{_mm256_blendv_epi8(no.lo.raw, yes.lo.raw, _mm256_castps_si256(m.lo))},
          hn::Vec256<std::int32_t>{_mm256_blendv_epi8(no.hi.raw, yes.hi.raw, _mm256_castps_si256(m.hi))}};
}

HWY_INLINE hn::Vec256<float> Lookup16Half(F32x16 table, hn::Vec256<std::int32_t> index) {
  // vpermps reads the low three bits of an index; bit 3 becomes the sign that blendv looks at.
  const __m256 low = _mm256_permutevar8x32_ps(table.lo.raw, index.raw), high = _mm256_permutevar8x32_ps(table.hi.raw, index.raw);
  return hn::Vec256<float>{_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index.raw, 28)))};
}
HWY_INLINE F32x16 Lookup16(F32x16 table, I32x16 index) { return {Lookup16Half(table, index.lo), Lookup16Half(table, index.hi)}; }
HWY_INLINE F32x16 Gather(const float* table, I32x16 index) {
  return {hn::Vec256<float>{_mm256_i32gather_ps(table, index.lo.raw, 4)}, hn::Vec256<float>{_mm256_i32gather_ps(table, index.hi.raw, 4)}};
}

HWY_INLINE __m128i LowBytes16(I32x16 v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(v.lo.raw, v.hi.raw), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
HWY_INLINE void StoreBytes16(I32x16 v, std::uint8_t* p) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), LowBytes16(v)); }
HWY_INLINE void StoreBytes8(I32x16 v, std::uint8_t* p) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), LowBytes16(v)); }
HWY_INLINE hn::Vec256<std::int32_t> Bytes8(const std::uint8_t* p) {
  return hn::Vec256<std::int32_t>{_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
HWY_INLINE I32x16 LoadBytes16(const std::uint8_t* p) { return {Bytes8(p), Bytes8(p + 8)}; }
HWY_INLINE I32x16 LoadBytes8(const std::uint8_t* p) { return {Bytes8(p), hn::Zero(kI)}; }
HWY_INLINE void StoreHalf16(F32x16 v, void* p) {
  auto* to = static_cast<__m128i*>(p);
  _mm_storeu_si128(to, _mm256_cvtps_ph(v.lo.raw, _MM_FROUND_NO_EXC));
  _mm_storeu_si128(to + 1, _mm256_cvtps_ph(v.hi.raw, _MM_FROUND_NO_EXC));
}
HWY_INLINE F32x16 LoadHalf16(const void* p) {
  const auto* from = static_cast<const __m128i*>(p);
  return {hn::Vec256<float>{_mm256_cvtph_ps(_mm_loadu_si128(from))}, hn::Vec256<float>{_mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
}
HWY_INLINE hn::Vec256<float> Brain8(const __m128i* p) {
  return hn::Vec256<float>{_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16))};
}
HWY_INLINE F32x16 LoadBrain16(const void* p) {
  const auto* from = static_cast<const __m128i*>(p);
  return {Brain8(from), Brain8(from + 1)};
}
HWY_INLINE hn::Vec128<float> Fold4(F32x16 p) {
  const auto eight = hn::Add(p.lo, p.hi);
  return hn::Add(hn::LowerHalf(eight), hn::UpperHalf(hn::Full128<float>(), eight));
}

#endif

/// The whole tree.
HWY_INLINE float Fold(F32x16 p) {
  alignas(16) float q[4];
  hn::Store(Fold4(p), hn::Full128<float>(), q);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

/// 16 values of a row from j on, or its last 8.
HWY_INLINE F32x16 LoadRow(const float* row, int j, int dim) { return j + 16 <= dim ? Load16(row + j) : Load8(row + j); }
HWY_INLINE void StoreRow(F32x16 v, float* row, int j, int dim) { j + 16 <= dim ? Store16(v, row + j) : Store8(v, row + j); }

/// dot16 of scalar.h; dim is a multiple of 8.
HWY_INLINE float Dot(const float* a, const float* b, int dim) {
  F32x16 p = Zero16();
  for (int j = 0; j < dim; j += 16) p = Fma(LoadRow(a, j, dim), LoadRow(b, j, dim), p);
  return Fold(p);
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
