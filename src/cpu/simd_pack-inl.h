// Packed rows to one byte a code and back, LSB first: eight codes of b bits are b bytes, which is one PEXT or PDEP (BMI2, part of the AVX2
// target). Where AVX-512 VBMI is at hand, 4-bit rows of 128 coordinates are packed in registers without going through bytes.
#if defined(TQ4_CPU_SIMD_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_PACK_INL_H_
#undef TQ4_CPU_SIMD_PACK_INL_H_
#else
#define TQ4_CPU_SIMD_PACK_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "cpu/scalar.h"
#include "cpu/simd_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

/// The b low bits of each of eight bytes.
constexpr std::uint64_t CodeMask(int bits) { return 0x0101010101010101u * ((1u << bits) - 1); }

/// count is a multiple of 8; exactly count * bits / 8 bytes are written or read.
template <int kBits>
HWY_INLINE void PackBytes(const std::uint8_t* codes, int count, std::uint8_t* dst) {
  for (int j = 0; j < count; j += 8, dst += kBits) {
    std::uint64_t eight;
    std::memcpy(&eight, codes + j, 8);
    const std::uint64_t packed = _pext_u64(eight, CodeMask(kBits));
    std::memcpy(dst, &packed, kBits);
  }
}
template <int kBits>
HWY_INLINE void UnpackBytes(const std::uint8_t* src, int count, std::uint8_t* codes) {
  for (int j = 0; j < count; j += 8, src += kBits) {
    std::uint64_t packed = 0;
    std::memcpy(&packed, src, kBits);
    const std::uint64_t eight = _pdep_u64(packed, CodeMask(kBits));
    std::memcpy(codes + j, &eight, 8);
  }
}
inline void PackAnyBytes(int bits, const std::uint8_t* codes, int count, std::uint8_t* dst) {
  switch (bits) {
    case 1: return PackBytes<1>(codes, count, dst);
    case 2: return PackBytes<2>(codes, count, dst);
    case 3: return PackBytes<3>(codes, count, dst);
    case 4: return PackBytes<4>(codes, count, dst);
    case 5: return PackBytes<5>(codes, count, dst);
    case 6: return PackBytes<6>(codes, count, dst);
    case 7: return PackBytes<7>(codes, count, dst);
    default: std::memcpy(dst, codes, static_cast<std::size_t>(count));
  }
}
inline void UnpackAnyBytes(int bits, const std::uint8_t* src, int count, std::uint8_t* codes) {
  switch (bits) {
    case 1: return UnpackBytes<1>(src, count, codes);
    case 2: return UnpackBytes<2>(src, count, codes);
    case 3: return UnpackBytes<3>(src, count, codes);
    case 4: return UnpackBytes<4>(src, count, codes);
    case 5: return UnpackBytes<5>(src, count, codes);
    case 6: return UnpackBytes<6>(src, count, codes);
    case 7: return UnpackBytes<7>(src, count, codes);
    default: std::memcpy(codes, src, static_cast<std::size_t>(count));
  }
}

/// A row of codes of any codec (two widths for Mixed); outliers and dim are multiples of 8.
inline void PackRow(const CodeTables& t, const std::uint8_t* codes, std::uint8_t* row) {
  PackAnyBytes(t.bits + 1, codes, t.outliers, row);
  PackAnyBytes(t.bits, codes + t.outliers, t.dim - t.outliers, row + t.outliers * (t.bits + 1) / 8);
}
inline void UnpackRow(const CodeTables& t, const std::uint8_t* row, std::uint8_t* codes) {
  UnpackAnyBytes(t.bits + 1, row, t.outliers, codes);
  UnpackAnyBytes(t.bits, row + t.outliers * (t.bits + 1) / 8, t.dim - t.outliers, codes + t.outliers);
}

/// Collects a row's codes, 16 at a time in order, and writes the packed row. kChunks = dim / 16, or 0 where dim is not known.
template <int kBits, int kChunks>
class RowPacker {
 public:
  HWY_INLINE void Put(int chunk, I32x16 codes) { StoreBytes16(codes, bytes_ + 16 * chunk); }
  HWY_INLINE void Finish(int dim, std::uint8_t* dst) const { PackBytes<kBits>(bytes_, dim, dst); }

 private:
  alignas(64) std::uint8_t bytes_[kChunks != 0 ? 16 * kChunks : kMaxDim + 16];
};

#if HWY_TARGET <= HWY_AVX3_DL
/// Byte r of every qword: nibble r of its low lane and, above it, nibble r of its high lane.
HWY_INLINE __m512i NibblePairs(__m512i nibbles) {
  // Bit offsets in a qword: byte r of `even` starts at nibble r of the low lane, byte r of `odd` ends with nibble r of the high lane.
  const __m512i even = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400), nibbles);
  const __m512i odd = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3834302c2824201c), nibbles);
  return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x0f), even, odd, 0xca);  // even where the mask is 1
}

/// 128 codes of 4 bits. Every Put shifts a nibble into the top of its lane, so that at the end nibble r of lane l is coordinate 16 r + l.
/// Byte 8 r + m of the row wants nibble r of lanes 2m and 2m + 1: both in qword m, picked by two multishifts and one byte permutation.
template <>
class RowPacker<4, 8> {
 public:
  HWY_INLINE RowPacker() : nibbles_(_mm512_setzero_si512()) {}
  HWY_INLINE void Put(int, I32x16 codes) { nibbles_ = _mm512_shrdi_epi32(nibbles_, codes.raw, 4); }
  HWY_INLINE void Finish(int, std::uint8_t* dst) const {
    _mm512_storeu_si512(dst, _mm512_permutexvar_epi8(Transpose8x8(), NibblePairs(nibbles_)));
  }

 private:
  static HWY_INLINE __m512i Transpose8x8() {
    alignas(64) std::uint8_t index[64];
    for (int i = 0; i < 64; ++i) index[i] = static_cast<std::uint8_t>(8 * (i % 8) + i / 8);
    return _mm512_load_si512(index);
  }
  __m512i nibbles_;
};
#endif

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
