// Hadamard butterflies and quantizer in one pass, for rows of 64 and 128 coordinates and scalar codebooks of up to 4 bits (AVX-512 with VBMI2):
// the path that a rotated cache takes most. A row stays in registers from its load to its norm; while the butterflies of one row run, which
// shuffle and add, another row two groups behind is quantized, which multiplies and looks up: together they fill the pipes of the core.
// Every sum keeps the order of the contract, so the bytes are those of the separate steps and of the scalar reference.
#if defined(TQ4_CPU_SIMD_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_HADAMARD_INL_H_
#undef TQ4_CPU_SIMD_HADAMARD_INL_H_
#else
#define TQ4_CPU_SIMD_HADAMARD_INL_H_
#endif

#include <cmath>
#include <limits>

#include "cpu/scalar.h"
#include "cpu/simd_encode-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

#if HWY_TARGET <= HWY_AVX3_DL

/// A codebook of up to 4 bits over [-1, 1], where the coordinates of a unit vector lie: 128 cells of equal width with at most one boundary
/// each. The cell gives the number of boundaries in lower cells, that number the next boundary, and one comparison the code.
struct CellBook {
  __m512i start_lo, start_hi;  ///< a byte a cell
  __m512 boundaries, centroids;

  /// fma(z, slope, offset), rounded to an integer between 2^23 and 2^23 + 128, has the cell in its low bits.
  static constexpr float kSlope = 63.25f, kOffset = 8388608.0f + 64.0f;

  /// 16 codes; only the low 4 bits of a lane count (the look-up goes byte by byte, and the float's top byte looks up something too).
  HWY_INLINE __m512i Code(__m512 z) const {
    const __m512i cell = _mm512_castps_si512(_mm512_fmadd_ps(z, _mm512_set1_ps(kSlope), _mm512_set1_ps(kOffset)));
    const __m512i start = _mm512_permutex2var_epi8(start_lo, cell, start_hi);
    const __m512 next = _mm512_permutexvar_ps(start, boundaries);
    return _mm512_mask_add_epi32(start, _mm512_cmp_ps_mask(z, next, _CMP_GE_OQ), start, _mm512_set1_epi32(1));
  }
};

/// False where two boundaries share a cell or one lies outside [-1, 1]: no Lloyd-Max codebook of these sizes; possible in a file's table.
HWY_INLINE bool MakeCellBook(const CodeTables& t, CellBook& book) {
  const int count = (1 << t.bits) - 1;
  alignas(64) std::uint8_t start[128];
  alignas(64) float boundaries[16], centroids[16];
  int cell = 0;
  for (int i = 0; i < 16; ++i) {
    boundaries[i] = i < count ? t.boundaries[i] : std::numeric_limits<float>::infinity();
    centroids[i] = t.centroids[i & count];
    if (i >= count) continue;
    if (!(std::fabs(boundaries[i]) <= 1.0f)) return false;
    const int own = static_cast<int>(std::fma(boundaries[i], CellBook::kSlope, CellBook::kOffset) - 8388608.0f);
    if (i > 0 && own < cell) return false;
    for (; cell <= own; ++cell) start[cell] = static_cast<std::uint8_t>(i);
  }
  for (; cell < 128; ++cell) start[cell] = static_cast<std::uint8_t>(count);
  book = {_mm512_load_si512(start), _mm512_load_si512(start + 64), _mm512_load_ps(boundaries), _mm512_load_ps(centroids)};
  return true;
}

/// The butterflies of one row. A stage of stride 1, 2, 4 or 8 would meet lanes of one register; instead two registers (coordinates 16 apart)
/// exchange half their lanes, so that the stage adds and subtracts whole registers. Five exchanges later the pair is back, with the bits of
/// a lane's number permuted: lane (l3 l2 l1 l0) holds coordinate (l1 l3 l2 l0) of its 16. Sums and packing below know that.
template <int kVectors>
struct ButterflyRow {
  __m512 v[kVectors];

  template <bool kSigned>
  HWY_INLINE void Load(int k, const float* x, const float* signs) {
    v[k] = _mm512_loadu_ps(x + 16 * k);
    if constexpr (kSigned) v[k] = _mm512_mul_ps(v[k], _mm512_loadu_ps(signs + 16 * k));
  }
  HWY_INLINE void Stage(int a, int b) {
    const __m512 sum = _mm512_add_ps(v[a], v[b]);
    v[b] = _mm512_sub_ps(v[a], v[b]);
    v[a] = sum;
  }
  /// Exchange elements within quarters, then a stage.
  HWY_INLINE void Element(int k) {
    const __m512 even = _mm512_shuffle_ps(v[k], v[k + 1], 0x88);
    v[k + 1] = _mm512_shuffle_ps(v[k], v[k + 1], 0xdd);
    v[k] = even;
    Stage(k, k + 1);
  }
  /// Exchange quarters, then a stage.
  HWY_INLINE void Quarter(int k) {
    const __m512 even = _mm512_shuffle_f32x4(v[k], v[k + 1], 0x88);
    v[k + 1] = _mm512_shuffle_f32x4(v[k], v[k + 1], 0xdd);
    v[k] = even;
    Stage(k, k + 1);
  }
  template <bool kSigned>
  HWY_INLINE void LoadStride1And2(const float* x, const float* signs) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; k += 2) {
      Load<kSigned>(k, x, signs);
      Load<kSigned>(k + 1, x, signs);
      Element(k);
      Element(k);
    }
  }
  HWY_INLINE void Stride4() {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; k += 2) Quarter(k);
  }
  HWY_INLINE void Stride8And16() {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; k += 2) {
      Quarter(k);
      Element(k);
    }
  }
  HWY_INLINE void Across(int h) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k) {
      if ((k & h) == 0) Stage(k, k + h);
    }
  }
  /// The last scaling; the row goes to `y`, its 16 partial sums of squares to `squares`.
  HWY_INLINE void Finish(float* y, float* squares) {
    const __m512 scale = _mm512_set1_ps(static_cast<float>(1.0 / std::sqrt(16.0 * kVectors)));
    __m512 p = _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k) {
      v[k] = _mm512_mul_ps(v[k], scale);
      p = _mm512_fmadd_ps(v[k], v[k], p);
      _mm512_store_ps(y + 16 * k, v[k]);
    }
    _mm512_store_ps(squares, p);
  }
};

/// Packs codes that come in the lane order of ButterflyRow.
template <int kBits, int kVectors>
class ButterflyPacker {
 public:
  HWY_INLINE void Put(int chunk, __m512i codes) {
    const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    packer_.Put(chunk, I32x16{_mm512_and_si512(_mm512_permutexvar_epi32(order, codes), _mm512_set1_epi32(0xf))});
  }
  HWY_INLINE void Finish(std::uint8_t* dst) const { packer_.Finish(16 * kVectors, dst); }

 private:
  RowPacker<kBits, kVectors> packer_;
};
/// As RowPacker<4, 8>, with another last permutation.
template <>
class ButterflyPacker<4, 8> {
 public:
  HWY_INLINE ButterflyPacker() : nibbles_(_mm512_setzero_si512()) {}
  HWY_INLINE void Put(int, __m512i codes) { nibbles_ = _mm512_shrdi_epi32(nibbles_, codes, 4); }
  HWY_INLINE void Finish(std::uint8_t* dst) const { _mm512_storeu_si512(dst, _mm512_permutexvar_epi8(Order(), NibblePairs(nibbles_))); }

 private:
  static HWY_INLINE __m512i Order() {
    alignas(64) std::uint8_t index[64];
    for (int i = 0; i < 64; ++i) {
      const int lanes = (i >> 2 & 1) | (i & 1) << 1 | (i >> 1 & 1) << 2;  // the pair of lanes with coordinates 2 (i mod 8) and the next
      index[i] = static_cast<std::uint8_t>(8 * lanes + i / 8);
    }
    return _mm512_load_si512(index);
  }
  __m512i nibbles_;
};

/// A row of y on its way to codes and the two sums of its scale.
template <int kBits, int kVectors>
struct QuantizerRow {
  const CellBook& book;
  const float* y;
  __m512 inverse;
  __m512 yc = _mm512_setzero_ps(), cc = _mm512_setzero_ps();
  ButterflyPacker<kBits, kVectors> packer;

  HWY_INLINE QuantizerRow(const CellBook& codebook, const float* row, float inverse_norm)
      : book(codebook), y(row), inverse(_mm512_set1_ps(inverse_norm)) {}
  /// The eighth part `part` of the row: a vector of 128 coordinates, nothing at every other part of 64.
  HWY_INLINE void Part(int part) {
    if (kVectors == 4 && part % 2 == 0) return;
    const int k = kVectors == 8 ? part : part / 2;
    const __m512 v = _mm512_load_ps(y + 16 * k);
    const __m512i code = book.Code(_mm512_mul_ps(v, inverse));
    const __m512 c = _mm512_permutexvar_ps(code, book.centroids);
    yc = _mm512_fmadd_ps(v, c, yc);
    cc = _mm512_fmadd_ps(c, c, cc);
    packer.Put(k, code);
  }
};

/// The rest of the tree for four rows of 16 partial sums in the lane order of ButterflyRow.
HWY_INLINE __m128 SumFour(const float* partials) {
  const __m512 p0 = _mm512_load_ps(partials), p1 = _mm512_load_ps(partials + 16), p2 = _mm512_load_ps(partials + 32),
               p3 = _mm512_load_ps(partials + 48);
  const __m512 p01 = _mm512_add_ps(_mm512_shuffle_ps(p0, p1, 0x44), _mm512_shuffle_ps(p0, p1, 0xee));
  const __m512 p23 = _mm512_add_ps(_mm512_shuffle_ps(p2, p3, 0x44), _mm512_shuffle_ps(p2, p3, 0xee));
  const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(p01, p23, 0x44), _mm512_shuffle_f32x4(p01, p23, 0xee));
  const __m256 lo = _mm512_castps512_ps256(four), hi = _mm512_extractf32x8_ps(four, 1);
  const __m256 two = _mm256_add_ps(_mm256_permute2f128_ps(lo, hi, 0x20), _mm256_permute2f128_ps(lo, hi, 0x31));
  const __m128 a = _mm256_castps256_ps128(two), b = _mm256_extractf128_ps(two, 1);
  return _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xdd));
}

/// The rows of one call, four at a time: group g is quantized while group g + 2 is transformed; the sums of a group are finished after the
/// first row of the next, when they no longer hold anything up.
template <int kBits, int kVectors, bool kSigned>
class HadamardEncoder {
 public:
  HWY_INLINE HadamardEncoder(const TransformTables& f, const CodeTables& t, const float* x, const EncodedOut& out)
      : f_(f), t_(t), x_(x), out_(out) {}

  /// groups >= 2 groups of four rows.
  HWY_INLINE void Run(const CellBook& shared_book, std::int64_t groups) {
    const CellBook book = shared_book;  // a copy, which may stay in registers
    for (std::int64_t g = 0; g < 2; ++g) {
      for (int r = 0; r < 4; ++r) {
        ButterflyRow<kVectors> row;
        row.template LoadStride1And2<kSigned>(x_ + (4 * g + r) * kDim, f_.signs);
        row.Stride4();
        row.Stride8And16();
        for (int h = 2; h < kVectors; h *= 2) row.Across(h);
        row.Finish(y_[g][r], squares_[g][r]);
      }
      FinishNorms(g);
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t ahead = g + 2 < groups ? g + 2 : g;  // past the end: work that nobody reads
      Row(book, g, ahead, 0);
      if (g > 0) {
        FinishNorms(g + 1);
        FinishScales(g - 1);
      }
      for (int r = 1; r < 4; ++r) Row(book, g, ahead, r);
    }
    FinishScales(groups - 1);
  }

 private:
  static constexpr int kDim = 16 * kVectors;

  HWY_INLINE void Row(const CellBook& book, std::int64_t g, std::int64_t ahead, int r) {
    QuantizerRow<kBits, kVectors> q(book, y_[g & 3][r], inverse_[g & 3][r]);
    ButterflyRow<kVectors> b;
    const float* const later = x_ + (4 * ahead + r + 4) * kDim;  // four rows ahead: past the end a wish for nothing
    q.Part(0);
    Prefetch(later, 0);
    b.template LoadStride1And2<kSigned>(x_ + (4 * ahead + r) * kDim, f_.signs);
    q.Part(1);
    Prefetch(later, 1);
    q.Part(2);
    Prefetch(later, 2);
    b.Stride4();
    q.Part(3);
    Prefetch(later, 3);
    q.Part(4);
    Prefetch(later, 4);
    b.Stride8And16();
    q.Part(5);
    Prefetch(later, 5);
    b.Across(2);
    q.Part(6);
    Prefetch(later, 6);
    if constexpr (kVectors == 8) b.Across(4);
    b.Finish(y_[(g + 2) & 3][r], squares_[g & 1][r]);
    q.Part(7);
    Prefetch(later, 7);
    _mm512_store_ps(yc_[g & 1][r], q.yc);
    _mm512_store_ps(cc_[g & 1][r], q.cc);
    q.packer.Finish(out_.codes + (4 * g + r) * (kDim * kBits / 8));
  }
  /// One cache line of a row, spread over the row's work: eight at once would queue behind each other. The asm keeps its place.
  static HWY_INLINE void Prefetch(const float* row, int line) {
    if (line < kVectors) asm volatile("prefetcht0 %0" : : "m"(row[16 * line]));
  }
  HWY_INLINE void FinishNorms(std::int64_t g) {
    const __m128 sum = SumFour(squares_[g & 1][0]);
    _mm_store_ps(sum_[g & 3], sum);
    _mm_store_ps(inverse_[g & 3], _mm_div_ps(_mm_set1_ps(1.0f), _mm_sqrt_ps(sum)));
  }
  HWY_INLINE void FinishScales(std::int64_t g) {
    const __m128 squares = _mm_load_ps(sum_[g & 3]);
    __m128 scale = _mm_sqrt_ps(squares);
    if (t_.scale_rule == ScaleRule::LeastSquares) scale = _mm_div_ps(SumFour(yc_[g & 1][0]), SumFour(cc_[g & 1][0]));
    if (t_.scale_rule == ScaleRule::Unbiased) scale = _mm_div_ps(squares, SumFour(yc_[g & 1][0]));
    // Rows too short for z to be trusted to lie in [-1, 1], too long for fp32, or without a finite scale: the reference decides.
    const __m128 limit = _mm_set1_ps(65504.0f), zero = _mm_setzero_ps();
    const __mmask8 good = _mm_cmp_ps_mask(squares, _mm_set1_ps(1e-30f), _CMP_GE_OQ) &
                          _mm_cmp_ps_mask(squares, _mm_set1_ps(std::numeric_limits<float>::max()), _CMP_LE_OQ) &
                          _mm_cmp_ps_mask(_mm_sub_ps(scale, scale), zero, _CMP_EQ_OQ);
    if (t_.scale_dtype == ScaleDType::F16) {
      scale = _mm_max_ps(_mm_min_ps(scale, limit), _mm_sub_ps(zero, limit));
      scale = _mm_cvtph_ps(_mm_cvtps_ph(scale, _MM_FROUND_NO_EXC));
    }
    _mm_storeu_ps(out_.scale + 4 * g, scale);
    if (HWY_UNLIKELY((good & 0xf) != 0xf)) {
      for (int r = 0; r < 4; ++r) {
        if ((good >> r & 1) == 0) EncodeOne(4 * g + r);
      }
    }
  }
  HWY_NOINLINE void EncodeOne(std::int64_t row) const {
    float y[kMaxDim];  // Transform does not know that it needs kDim
    Transform(f_, x_ + row * kDim, 1, y);
    scalar_encode(t_, y, 1, planes_at(out_, t_, row));
  }

  const TransformTables& f_;
  const CodeTables& t_;
  const float* const x_;
  const EncodedOut out_;
  // Rings: groups in flight by their low bits.
  alignas(64) float y_[4][4][kDim];
  alignas(64) float squares_[2][4][16], yc_[2][4][16], cc_[2][4][16];
  alignas(64) float sum_[4][4], inverse_[4][4];
};

template <int kBits, int kVectors>
inline void EncodeHadamardRows(const TransformTables& f, const CodeTables& t, const CellBook& book, const float* x, std::int64_t groups,
                               const EncodedOut& out) {
  if (f.signs != nullptr) {
    HadamardEncoder<kBits, kVectors, true>(f, t, x, out).Run(book, groups);
  } else {
    HadamardEncoder<kBits, kVectors, false>(f, t, x, out).Run(book, groups);
  }
}
template <int kVectors>
inline void EncodeHadamardOfDim(const TransformTables& f, const CodeTables& t, const CellBook& book, const float* x, std::int64_t groups,
                                const EncodedOut& out) {
  switch (t.bits) {
    case 1: return EncodeHadamardRows<1, kVectors>(f, t, book, x, groups, out);
    case 2: return EncodeHadamardRows<2, kVectors>(f, t, book, x, groups, out);
    case 3: return EncodeHadamardRows<3, kVectors>(f, t, book, x, groups, out);
    default: return EncodeHadamardRows<4, kVectors>(f, t, book, x, groups, out);
  }
}
#endif

/// How many of the first rows were encoded here, in one pass; 0 where transform, codebook or target want the separate steps.
inline std::int64_t EncodeHadamard(const TransformTables& f, const CodeTables& t, const float* x, std::int64_t n, const EncodedOut& out) {
#if HWY_TARGET <= HWY_AVX3_DL
  if (f.kind != TransformKind::Hadamard || f.block_count != 1 || (t.dim != 64 && t.dim != 128) || n < 8) return 0;
  if (t.kind != CodeKind::Mse || t.pairs != nullptr || t.norm_correction || t.bits > 4) return 0;
  CellBook book;
  if (!MakeCellBook(t, book)) return 0;
  if (t.dim == 64) {
    EncodeHadamardOfDim<4>(f, t, book, x, n / 4, out);
  } else {
    EncodeHadamardOfDim<8>(f, t, book, x, n / 4, out);
  }
  return n / 4 * 4;
#else
  (void)f, (void)t, (void)x, (void)n, (void)out;
  return 0;
#endif
}

/// Rows to codes: transform and quantizer; `scratch` [scratch_rows, D] holds transformed rows meanwhile.
inline void TransformEncode(const TransformTables& f, const CodeTables& t, const float* x, std::int64_t n, float* scratch,
                            const EncodedOut& out) {
  const std::int64_t done = EncodeHadamard(f, t, x, n, out);
  const std::int64_t piece = scratch_rows(f.kind, t.dim, n);
  for (std::int64_t r = done; r < n; r += piece) {
    const std::int64_t rows = std::min(piece, n - r);
    Transform(f, x + r * t.dim, rows, scratch);
    Encode(t, scratch, rows, planes_at(out, t, r));
  }
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
