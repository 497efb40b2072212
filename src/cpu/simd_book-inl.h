// A scalar codebook as the vector code wants it: 16 values to codes and centroids. "Number of boundaries <= z" is what the reference
// counts with 2^b - 1 comparisons; here it is one look-up in a uniform grid and one comparison (AVX-512, up to 4 bits), a binary search in
// registers (up to 4 bits) or in memory (5 to 8 bits). All three are exact, for any ascending boundaries.
#if defined(TQ4_CPU_SIMD_BOOK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_BOOK_INL_H_
#undef TQ4_CPU_SIMD_BOOK_INL_H_
#else
#define TQ4_CPU_SIMD_BOOK_INL_H_
#endif

#include <cmath>
#include <limits>

#include "cpu/simd_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

/// Up to 4 bits, by binary search: boundaries padded with infinity, centroids repeated to 16.
struct SearchBook {
  F32x16 boundaries, centroids, middle;
  int half;  ///< 2^(bits-1)

  HWY_INLINE I32x16 Code(F32x16 z) const {
    // `at` is the boundary to compare with; a step of s moves it by -s/2 or, past the boundary, by +s/2.
    I32x16 at = SetI16(half - 1);
    Mask16 above = GreaterEqual(z, middle);
    for (int s = half; s > 1; s /= 2) {
      at = MaskedAdd(above, AddI(at, SetI16(-s / 2)), SetI16(s));
      above = GreaterEqual(z, Lookup16(boundaries, at));
    }
    return MaskedAdd(above, at, SetI16(1));
  }
  HWY_INLINE F32x16 Centroid(I32x16 code) const { return Lookup16(centroids, code); }
};

HWY_INLINE SearchBook MakeSearchBook(const float* boundaries, const float* centroids, int bits) {
  alignas(64) float b[16], c[16];
  for (int i = 0; i < 16; ++i) {
    b[i] = i < (1 << bits) - 1 ? boundaries[i] : std::numeric_limits<float>::infinity();
    c[i] = centroids[i & ((1 << bits) - 1)];
  }
  const int half = 1 << (bits - 1);
  return {Load16(b), Load16(c), Set16(b[half - 1]), half};
}

#if HWY_TARGET <= HWY_AVX3
/// Up to 4 bits: 32 cells of equal width, clamped at both ends, at most one boundary in each. The cell of z is a nondecreasing function
/// of z whatever the rounding, so boundaries in lower cells are <= z, those in higher cells are > z, and the cell's own is compared.
/// The centroid comes from the 4 low bits of the code.
struct GridBook {
  __m512 bound_lo, bound_hi;   ///< the boundary of a cell, infinity where there is none
  __m512i start_lo, start_hi;  ///< boundaries in lower cells
  F32x16 slope, offset, limit, centroids;

  /// fma(z, slope, offset) lies in [2^23, 2^23 + 32): the low bits of the float are the cell.
  HWY_INLINE I32x16 Code(F32x16 z) const {
    const __m512 clamped = _mm512_range_ps(z.raw, limit.raw, 0x2);  // the smaller magnitude, the sign of z
    const __m512i cell = _mm512_castps_si512(_mm512_fmadd_ps(clamped, slope.raw, offset.raw));
    const __m512 bound = _mm512_permutex2var_ps(bound_lo, cell, bound_hi);
    const __m512i start = _mm512_permutex2var_epi32(start_lo, cell, start_hi);
    return MaskedAdd(GreaterEqual(z, F32x16{bound}), I32x16{start}, SetI16(1));
  }
  HWY_INLINE F32x16 Centroid(I32x16 code) const { return Lookup16(centroids, code); }
};

/// False where two boundaries would share a cell (no Lloyd-Max codebook; possible in a file's table): use SearchBook then.
HWY_INLINE bool MakeGridBook(const float* boundaries, const float* centroids, int bits, GridBook& book) {
  const int count = (1 << bits) - 1;
  const float reach = std::fmax(std::fabs(boundaries[0]), std::fabs(boundaries[count - 1]));
  if (!(reach > 1e-30f) || !(reach < 1e30f)) return false;
  const float slope = 15.4f / reach, offset = 8388608.0f + 16.0f;  // cells 1 to 31 between the outermost boundaries
  alignas(64) float bound[32], centroid[16];
  for (float& b : bound) b = std::numeric_limits<float>::infinity();
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), one = _mm512_set1_epi32(1);
  __m512i start_lo = _mm512_setzero_si512(), start_hi = start_lo;
  for (int i = 0; i < count; ++i) {
    const int cell = static_cast<int>(std::fma(boundaries[i], slope, offset) - 8388608.0f);
    if (cell < 0 || cell > 31 || bound[cell] != std::numeric_limits<float>::infinity()) return false;
    bound[cell] = boundaries[i];
    const __m512i at = _mm512_set1_epi32(cell);
    start_lo = _mm512_mask_add_epi32(start_lo, _mm512_cmplt_epi32_mask(at, lane), start_lo, one);
    start_hi = _mm512_mask_add_epi32(start_hi, _mm512_cmplt_epi32_mask(_mm512_sub_epi32(at, _mm512_set1_epi32(16)), lane), start_hi, one);
  }
  for (int i = 0; i < 16; ++i) centroid[i] = centroids[i & count];
  book = {_mm512_load_ps(bound), _mm512_load_ps(bound + 16), start_lo, start_hi, Set16(slope), Set16(offset), Set16(reach),
          Load16(centroid)};
  return true;
}
#endif

/// 1 to 8 bits, tables in memory.
struct MemoryBook {
  const float* boundaries;
  const float* centroids;
  int bits;

  HWY_INLINE I32x16 Code(F32x16 z) const {
    I32x16 code = SetI16(0);
    for (int s = 1 << (bits - 1); s > 0; s /= 2) {
      code = MaskedAdd(GreaterEqual(z, Gather(boundaries, AddI(code, SetI16(s - 1)))), code, SetI16(s));
    }
    return code;
  }
  HWY_INLINE F32x16 Centroid(I32x16 code) const { return Gather(centroids, code); }
};

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
