// Transformed rows to codes and scales. Scalar codebooks of up to 4 bits, which is what caches are made of, go 16 rows at a time: norms,
// then codes, centroids and both scale sums in one pass over registers, then the 16 scales at once. Everything else goes row by row
// through bytes in memory. Rows whose norm is not finite are left to the scalar reference.
#if defined(TQ4_CPU_SIMD_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TQ4_CPU_SIMD_ENCODE_INL_H_
#undef TQ4_CPU_SIMD_ENCODE_INL_H_
#else
#define TQ4_CPU_SIMD_ENCODE_INL_H_
#endif

#include <algorithm>
#include <cmath>

#include "cpu/scalar.h"
#include "cpu/simd_book-inl.h"
#include "cpu/simd_decode-inl.h"
#include "cpu/simd_transform-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {

inline constexpr int kBatch = 16;  ///< rows whose sums are finished together

/// Four partial sums of each row of a batch; the last two steps of the tree are done for all rows at once.
struct BatchSums {
  alignas(64) float q[kBatch][4] = {};
  HWY_INLINE void Put(int row, F32x16 partials) { hn::Store(Fold4(partials), hn::Full128<float>(), q[row]); }
  HWY_INLINE F32x16 Finish() const {
    alignas(64) float sum[kBatch];
    const hn::Full128<float> d;
    for (int r = 0; r < kBatch; r += 4) {
      hn::Vec128<float> p0, p1, p2, p3;
      hn::LoadInterleaved4(d, q[r], p0, p1, p2, p3);
      hn::Store(hn::Add(hn::Add(p0, p2), hn::Add(p1, p3)), d, sum + r);
    }
    return Load16(sum);
  }
};

/// round_scale of 16 finite values.
HWY_INLINE F32x16 RoundScale(F32x16 v, ScaleDType dtype) {
  if (dtype == ScaleDType::F32) return v;
  alignas(32) std::uint16_t half[16];
  StoreHalf16(Max16(Min16(v, Set16(65504.0f)), Set16(-65504.0f)), half);
  return LoadHalf16(half);
}

/// One batch of scalar codes. kChunks = dim / 16, or 0 for any dim.
template <int kBits, int kChunks, class Book>
HWY_INLINE void EncodeBatch(const CodeTables& t, const Book& shared_book, const float* y, int rows, const EncodedOut& out) {
  const int dim = kChunks != 0 ? 16 * kChunks : t.dim;
  const Book book = shared_book;  // a copy, which may stay in registers
  BatchSums yy, yc, cc;
  for (int r = 0; r < rows; ++r) {
    F32x16 p = Zero16();
#pragma GCC unroll 16
    for (int j = 0; j < dim; j += 16) {
      const F32x16 v = kChunks != 0 ? Load16(y + r * dim + j) : LoadRow(y + r * dim, j, dim);
      p = Fma(v, v, p);
    }
    yy.Put(r, p);
  }
  const F32x16 squares = yy.Finish(), norms = Sqrt16(squares);
  const Mask16 positive = GreaterEqual(norms, Set16(std::numeric_limits<float>::denorm_min()));
  alignas(64) float inverse[kBatch];
  Store16(Select(positive, Div(Set16(1.0f), norms), Zero16()), inverse);

  for (int r = 0; r < rows; ++r) {
    const float* row = y + r * dim;
    const F32x16 inv = Set16(inverse[r]);
    F32x16 p = Zero16(), q = Zero16();
    RowPacker<kBits, kChunks> packer;
#pragma GCC unroll 16
    for (int j = 0; j < dim; j += 16) {
      const bool whole = kChunks != 0 || j + 16 <= dim;
      const F32x16 v = whole ? Load16(row + j) : Load8(row + j);
      const I32x16 code = book.Code(Mul(v, inv));
      F32x16 c = book.Centroid(code);
      if (!whole) c = ZeroUpperHalf(c);
      p = Fma(v, c, p);
      q = Fma(c, c, q);
      packer.Put(j / 16, code);
    }
    packer.Finish(dim, out.codes + r * static_cast<std::ptrdiff_t>(t.code_bytes));
    yc.Put(r, p);
    cc.Put(r, q);
  }

  F32x16 scale = norms;
  if (t.scale_rule == ScaleRule::LeastSquares) scale = Div(yc.Finish(), cc.Finish());
  if (t.scale_rule == ScaleRule::Unbiased) scale = Div(squares, yc.Finish());
  const Mask16 finite = GreaterEqual(Sub(scale, scale), Zero16());  // inf - inf and NaN - NaN are NaN
  const Mask16 finite_norm = Less(norms, Set16(std::numeric_limits<float>::infinity()));
  const unsigned fallback = (~MaskBits(finite) & MaskBits(positive)) | ~MaskBits(finite_norm);
  scale = Select(positive, RoundScale(scale, t.scale_dtype), Zero16());
  if (rows == kBatch) {
    Store16(scale, out.scale);
  } else {
    alignas(64) float last[kBatch];
    Store16(scale, last);
    std::copy(last, last + rows, out.scale);
  }
  if ((fallback & ((1u << rows) - 1)) == 0) return;
  for (int r = 0; r < rows; ++r) {
    if ((fallback >> r & 1) != 0) scalar_encode(t, y + r * dim, 1, planes_at(out, t, r));
  }
}

template <int kBits, int kChunks, class Book>
inline void EncodeBatches(const CodeTables& t, const Book& book, const float* y, std::int64_t n, const EncodedOut& out) {
  for (std::int64_t r = 0; r < n; r += kBatch) {
    EncodeBatch<kBits, kChunks>(t, book, y + r * t.dim, static_cast<int>(std::min<std::int64_t>(kBatch, n - r)), planes_at(out, t, r));
  }
}

template <int kBits, class Book>
inline void EncodeWithBook(const CodeTables& t, const Book& book, const float* y, std::int64_t n, const EncodedOut& out) {
  switch (t.dim) {
    case 64: return EncodeBatches<kBits, 4>(t, book, y, n, out);
    case 128: return EncodeBatches<kBits, 8>(t, book, y, n, out);
    default: return EncodeBatches<kBits, 0>(t, book, y, n, out);
  }
}

template <int kBits>
inline void EncodeScalarCodes(const CodeTables& t, const float* y, std::int64_t n, const EncodedOut& out) {
#if HWY_TARGET <= HWY_AVX3
  GridBook grid;
  if (MakeGridBook(t.boundaries, t.centroids, kBits, grid)) return EncodeWithBook<kBits>(t, grid, y, n, out);
#endif
  const SearchBook search = MakeSearchBook(t.boundaries, t.centroids, kBits);
#if HWY_TARGET <= HWY_AVX3
  EncodeBatches<kBits, 0>(t, search, y, n, out);  // rare here: not worth code for single dims
#else
  EncodeWithBook<kBits>(t, search, y, n, out);
#endif
}

/// z [dim] to codes, one byte a coordinate, from coordinate `from` (a multiple of 8) up to `to`.
inline void CodesOf(const float* boundaries, int bits, const float* z, int from, int to, std::uint8_t* codes) {
  const MemoryBook book{boundaries, nullptr, bits};
  for (int j = from; j < to; j += 16) {
    const I32x16 code = book.Code(LoadRow(z, j, to));
    j + 16 <= to ? StoreBytes16(code, codes + j) : StoreBytes8(code, codes + j);
  }
}

/// The nearest of 4^bits points for 16 pairs at a time: all points in ascending order, strictly nearer wins, as the reference does.
inline void PairCodesOf(const CodeTables& t, const float* z, std::uint8_t* codes) {
  const int count = 1 << (2 * t.bits), mask = (1 << t.bits) - 1;
  alignas(64) float first[kMaxDim / 2 + 16] = {}, second[kMaxDim / 2 + 16] = {};
  for (int j = 0; j < t.dim; j += 2) {
    first[j / 2] = z[j];
    second[j / 2] = z[j + 1];
  }
  for (int i = 0; i < t.dim / 2; i += 16) {
    const F32x16 z0 = Load16(first + i), z1 = Load16(second + i);
    F32x16 best = Set16(std::numeric_limits<float>::infinity());
    I32x16 best_code = SetI16(0);
    for (int code = 0; code < count; ++code) {
      const F32x16 dx = Sub(z0, Set16(t.pairs[2 * code])), dy = Sub(z1, Set16(t.pairs[2 * code + 1]));
      const F32x16 distance = Fma(dx, dx, Mul(dy, dy));
      const Mask16 nearer = Less(distance, best);
      best = Select(nearer, distance, best);
      best_code = SelectI(nearer, SetI16(code), best_code);
    }
    alignas(64) std::uint8_t pair[16];
    StoreBytes16(best_code, pair);
    for (int k = 0; k < 16 && i + k < t.dim / 2; ++k) {
      codes[2 * (i + k)] = static_cast<std::uint8_t>(pair[k] & mask);
      codes[2 * (i + k) + 1] = static_cast<std::uint8_t>(pair[k] >> t.bits);
    }
  }
}

/// Any codebook codec, a row at a time. Prod's residuals of a batch go through the sketch together.
inline void EncodeAnyBook(const CodeTables& t, const float* y, int rows, const EncodedOut& out) {
  alignas(64) float z[kMaxDim], c[kMaxDim];
  alignas(64) std::uint8_t codes[kMaxDim + 16];
  alignas(64) static thread_local float residual[kBatch * kMaxDim], sketch[kBatch * kMaxDim];
  const int dim = t.dim;
  for (int r = 0; r < rows; ++r) {
    const float* row = y + r * dim;
    const EncodedOut to = planes_at(out, t, r);
    const float squares = Dot(row, row, dim), norm = std::sqrt(squares);
    float* rest = residual + r * dim;
    if (!std::isfinite(norm)) {
      scalar_encode(t, row, 1, to);
      std::fill(rest, rest + dim, 0.0f);
      continue;
    }
    const F32x16 inv = Set16(norm == 0.0f ? 0.0f : 1.0f / norm);
    for (int j = 0; j < dim; j += 16) StoreRow(Mul(LoadRow(row, j, dim), inv), z, j, dim);
    if (t.pairs != nullptr) {
      PairCodesOf(t, z, codes);
    } else {
      CodesOf(t.outlier_boundaries, t.bits + 1, z, 0, t.outliers, codes);
      CodesOf(t.boundaries, t.bits, z, t.outliers, dim, codes);
    }
    CentroidsOf(t, codes, c);
    float scale = norm;
    if (norm != 0.0f && t.scale_rule == ScaleRule::LeastSquares) scale = Dot(row, c, dim) / Dot(c, c, dim);
    if (norm != 0.0f && t.scale_rule == ScaleRule::Unbiased) scale = squares / Dot(row, c, dim);
    *to.scale = norm == 0.0f ? norm : round_scale(scale, t.scale_dtype);
    PackRow(t, codes, to.codes);
    if (t.kind == CodeKind::Prod) {
      const F32x16 minus = Set16(-*to.scale);
      for (int j = 0; j < dim; j += 16) StoreRow(Fma(minus, LoadRow(c, j, dim), LoadRow(row, j, dim)), rest, j, dim);
    }
  }
  if (t.kind != CodeKind::Prod) return;
  Product(t.qjl_t, dim, residual, rows, sketch);
  for (int r = 0; r < rows; ++r) {
    if (!std::isfinite(out.scale[r])) {
      scalar_encode(t, y + r * dim, 1, planes_at(out, t, r));
      continue;
    }
    for (int j = 0; j < dim; j += 16) {
      const unsigned bits = MaskBits(GreaterEqual(LoadRow(sketch + r * dim, j, dim), Zero16()));
      out.signs[r * (dim / 8) + j / 8] = static_cast<std::uint8_t>(bits & 0xff);
      if (j + 16 <= dim) out.signs[r * (dim / 8) + j / 8 + 1] = static_cast<std::uint8_t>(bits >> 8);
    }
    out.residual_norm[r] = round_scale(std::sqrt(Dot(residual + r * dim, residual + r * dim, dim)), t.scale_dtype);
  }
}

inline void EncodeUniform(const CodeTables& t, const float* row, const EncodedOut& to) {
  alignas(64) std::uint8_t codes[kMaxDim + 16];
  const int dim = t.dim;
  F32x16 low = Load16(row), high = low;
  F32x16 nonfinite = Mul(low, Zero16());
  for (int j = 16; j < dim; j += 16) {
    const F32x16 v = j + 16 <= dim ? Load16(row + j) : Load16(row + dim - 16);
    low = Min16(low, v);
    high = Max16(high, v);
    nonfinite = Fma(v, Zero16(), nonfinite);
  }
  alignas(64) float lows[16], highs[16];
  Store16(low, lows);
  Store16(high, highs);
  const float lo = *std::min_element(lows, lows + 16), hi = *std::max_element(highs, highs + 16);
  const float top = static_cast<float>((1 << t.bits) - 1), step = (hi - lo) / top;
  // The sign of a zero minimum depends on the order of the search; NaN and overflow have an order of their own too.
  const bool clean = MaskBits(GreaterEqual(nonfinite, Zero16())) == 0xffffu;
  if (!clean || lo == 0.0f || !std::isfinite(step) || step == 0.0f) return scalar_encode(t, row, 1, to);
  for (int j = 0; j < dim; j += 16) {
    const F32x16 index = Floor16(Add(Div(Sub(LoadRow(row, j, dim), Set16(lo)), Set16(step)), Set16(0.5f)));
    const I32x16 code = ToInt(Min16(Max16(index, Zero16()), Set16(top)));
    j + 16 <= dim ? StoreBytes16(code, codes + j) : StoreBytes8(code, codes + j);
  }
  *to.scale = round_scale(step, t.scale_dtype);
  *to.zero = round_scale(lo, t.scale_dtype);
  PackRow(t, codes, to.codes);
}

inline void Encode(const CodeTables& t, const float* y, std::int64_t n, const EncodedOut& out) {
  const bool codebook = t.kind == CodeKind::Mse || t.kind == CodeKind::Prod || t.kind == CodeKind::Mixed;
  if (t.kind == CodeKind::Mse && t.pairs == nullptr && !t.norm_correction && t.bits <= 4) {
    switch (t.bits) {
      case 1: return EncodeScalarCodes<1>(t, y, n, out);
      case 2: return EncodeScalarCodes<2>(t, y, n, out);
      case 3: return EncodeScalarCodes<3>(t, y, n, out);
      default: return EncodeScalarCodes<4>(t, y, n, out);
    }
  }
  if (codebook) {
    for (std::int64_t r = 0; r < n; r += kBatch) {
      EncodeAnyBook(t, y + r * t.dim, static_cast<int>(std::min<std::int64_t>(kBatch, n - r)), planes_at(out, t, r));
    }
  } else if (t.kind == CodeKind::Uniform) {
    for (std::int64_t r = 0; r < n; ++r) EncodeUniform(t, y + r * t.dim, planes_at(out, t, r));
  } else if (t.kind == CodeKind::Fp8) {
    EncodeFp8(t.fp8, y, n * t.dim, out.codes);
  } else {
    EncodeHalf(y, n * t.dim, out.codes);
  }
}

}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
