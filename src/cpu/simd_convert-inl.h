// Element conversions of whole blocks: fp16 and bf16 to fp32, fp32 to fp16 and FP8 bytes, the search for NaN and infinity. Each gives the
// bits of the scalar functions in tq4/types.h (a NaN may come out with another payload; the codec refuses or replaces NaN anyway).
#if defined(TQ4_CPU_SIMD_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_CONVERT_INL_H_
#undef TQ4_CPU_SIMD_CONVERT_INL_H_
#else
#define TQ4_CPU_SIMD_CONVERT_INL_H_
#endif

#include <array>
#include <cstdint>
#include <cstring>

#include "cpu/scalar.h"
#include "cpu/simd_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

inline void LoadRows(const void* src, DType dtype, std::size_t count, float* dst) {
  const auto* bytes = static_cast<const unsigned char*>(src);
  std::size_t i = 0;
  if (dtype == DType::F16) {
    for (; i + 16 <= count; i += 16) Store16(LoadHalf16(bytes + 2 * i), dst + i);
  } else if (dtype == DType::BF16) {
    for (; i + 16 <= count; i += 16) Store16(LoadBrain16(bytes + 2 * i), dst + i);
  } else {
    return scalar_load(src, dtype, count, dst);  // a copy
  }
  scalar_load(bytes + 2 * i, dtype, count - i, dst + i);
}

inline std::int64_t FindNonfinite(const float* x, std::size_t count) {
  // x * 0 is NaN for NaN and infinity, else a zero. A block with a hit is searched again for the place.
  constexpr std::size_t kBlock = 1024;
  const F32x16 zero = Zero16();
  for (std::size_t from = 0; from < count; from += kBlock) {
    const std::size_t to = from + kBlock < count ? from + kBlock : count;
    F32x16 a = zero, b = zero, c = zero, d = zero;
    std::size_t i = from;
    for (; i + 64 <= to; i += 64) {
      a = Fma(Load16(x + i), zero, a);
      b = Fma(Load16(x + i + 16), zero, b);
      c = Fma(Load16(x + i + 32), zero, c);
      d = Fma(Load16(x + i + 48), zero, d);
    }
    const bool clean = MaskBits(GreaterEqual(Add(Add(a, b), Add(c, d)), zero)) == 0xffffu;
    const std::int64_t at = scalar_find_nonfinite(x + (clean ? i : from), to - (clean ? i : from));
    if (at >= 0) return at + static_cast<std::int64_t>(clean ? i : from);
  }
  return -1;
}

/// Fp16 codes, clamped to the finite range. A NaN keeps its place in the scalar path.
inline void EncodeHalf(const float* y, std::int64_t count, std::uint8_t* dst) {
  for (std::int64_t i = 0; i < count; i += 8) {
    const bool whole = i + 16 <= count;
    const F32x16 v = whole ? Load16(y + i) : Load8(y + i);
    alignas(32) std::uint16_t half[16];
    // minps gives its second operand where one is NaN: v last keeps the NaN.
    StoreHalf16(Max16(Set16(-65504.0f), Min16(Set16(65504.0f), v)), half);
    std::memcpy(dst + 2 * i, half, whole ? 32 : 16);
    if (whole) i += 8;
  }
}

inline void DecodeHalf(const std::uint8_t* src, std::int64_t count, float* y) {
  LoadRows(src, DType::F16, static_cast<std::size_t>(count), y);
}

/// 16 values to E4M3 (round to nearest even, saturating) or E4B15 (through fp16, halves away from zero), as float_to_e4m3 and float_to_e4b15.
HWY_INLINE __m256i Eight8(Fp8Kind kind, hn::Vec256<float> v) {
  const __m256i bits = _mm256_castps_si256(v.raw);
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
  __m256i magnitude;
  if (kind == Fp8Kind::E4M3) {
    const __m256i abs = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(abs, 20), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(abs, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7ffff))), 20);
    const __m256i normal = _mm256_sub_epi32(rounded, _mm256_set1_epi32(120 << 3));
    // Below 2^-6 the format has a fixed step of 2^-9: the conversion to integer rounds to nearest even.
    const __m256i small = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_castsi256_ps(abs), _mm256_set1_ps(512.0f)));
    const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), abs);
    const __m256i is_large = _mm256_cmpgt_epi32(abs, _mm256_set1_epi32(0x43dfffff));
    const __m256i is_nan = _mm256_cmpgt_epi32(abs, _mm256_set1_epi32(0x7f800000));
    magnitude = _mm256_blendv_epi8(_mm256_blendv_epi8(normal, small, is_small), _mm256_set1_epi32(0x7e), is_large);
    return _mm256_blendv_epi8(_mm256_or_si256(magnitude, sign), _mm256_set1_epi32(0x7f), is_nan);
  }
  const __m256i half = _mm256_cvtepu16_epi32(_mm256_cvtps_ph(v.raw, _MM_FROUND_NO_EXC));
  magnitude = _mm256_min_epu32(_mm256_and_si256(half, _mm256_set1_epi32(0x7fff)), _mm256_set1_epi32(0x3f80));
  return _mm256_or_si256(_mm256_srli_epi32(_mm256_add_epi32(_mm256_slli_epi32(magnitude, 1), _mm256_set1_epi32(0x80)), 8), sign);
}

inline void EncodeFp8(Fp8Kind kind, const float* y, std::int64_t count, std::uint8_t* dst) {
  const hn::Full256<float> d;
  for (std::int64_t i = 0; i < count; i += 8) {  // rows are multiples of 8
    const __m256i words = Eight8(kind, hn::LoadU(d, y + i));
    const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(dst + i), _mm_packus_epi16(pairs, pairs));
  }
}

inline const float* Fp8Values(Fp8Kind kind) {
  static const std::array<std::array<float, 256>, 2> kTables = [] {
    std::array<std::array<float, 256>, 2> t{};
    for (int b = 0; b < 256; ++b) {
      t[0][static_cast<std::size_t>(b)] = e4m3_to_float(static_cast<std::uint8_t>(b));
      t[1][static_cast<std::size_t>(b)] = e4b15_to_float(static_cast<std::uint8_t>(b));
    }
    return t;
  }();
  return kTables[kind == Fp8Kind::E4M3 ? 0 : 1].data();
}

inline void DecodeFp8(Fp8Kind kind, const std::uint8_t* src, std::int64_t count, float* y) {
  const float* values = Fp8Values(kind);
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16) Store16(Gather(values, LoadBytes16(src + i)), y + i);
  for (; i < count; ++i) y[i] = values[src[i]];
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
