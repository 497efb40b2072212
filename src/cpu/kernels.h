// The row kernels of the CPU backend: what the scalar reference and the SIMD code both implement, as one small function table.
// codec.cpp converts and checks the input, subtracts centres, cuts the rows into blocks for threads and calls these; a table never sees a
// public object, only flat pointers that outlive the call. The scalar table defines every bit: a SIMD table must return the same bytes
// (codes, signs, scales) and the same floats, or call the scalar function where it has nothing faster.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tq4/codec.h"
#include "tq4/spec.h"
#include "tq4/types.h"

namespace tq4::cpu {

/// How a row gets to the space of the codebook and back.
enum class TransformKind : std::uint8_t {
  None,     ///< y = x
  Dense,    ///< y[i] = sum_j forward[i*D+j] x[j]; x[i] = sum_j inverse[i*D+j] y[j]
  Hadamard  ///< block-diagonal butterflies, see `blocks`; its own inverse (signs come last on the way back)
};

/// Every sum of a dense product is sequential: acc = 0; for j = 0..D-1: acc = fma(matrix[i*D+j], v[j], acc).
/// The transposed matrices hold the same numbers for code that runs over i in lanes.
struct TransformTables {
  TransformKind kind = TransformKind::None;
  int dim = 0;
  const float* forward = nullptr;    ///< Dense: [D, D] row-major
  const float* forward_t = nullptr;  ///< Dense: its transpose; never null with forward
  const float* inverse = nullptr;    ///< Dense: [D, D] row-major
  const float* inverse_t = nullptr;  ///< Dense: its transpose
  const float* signs = nullptr;      ///< Hadamard: [D] of +-1 or null
  const int* blocks = nullptr;       ///< Hadamard: sizes (powers of two) of the diagonal blocks
  int block_count = 0;
};

/// How a transformed row becomes codes and back.
struct CodeTables {
  CodeKind kind = CodeKind::Mse;
  int dim = 0;
  int bits = 0;                ///< stored bits of a code: the spec's, one less for Prod; 8 for Fp8, 16 for Fp16
  int outliers = 0;            ///< Mixed: coordinates 0 .. outliers-1 take bits + 1 (a multiple of 8); else 0
  std::size_t code_bytes = 0;  ///< bytes of a row of codes
  ScaleRule scale_rule = ScaleRule::LeastSquares;
  ScaleDType scale_dtype = ScaleDType::F16;
  Fp8Kind fp8 = Fp8Kind::E4M3;
  bool norm_correction = false;
  const float* centroids = nullptr;           ///< [2^bits], Mse, Prod, Mixed
  const float* boundaries = nullptr;          ///< [2^bits - 1]; code = number of boundaries <= z
  const float* outlier_centroids = nullptr;   ///< [2^(bits+1)], Mixed
  const float* outlier_boundaries = nullptr;  ///< [2^(bits+1) - 1], Mixed
  const float* pairs = nullptr;               ///< [4^bits, 2]: a true pair codebook (Mse only); null = scalar codes
  const float* qjl = nullptr;                 ///< Prod: S [D, D] row-major
  const float* qjl_t = nullptr;               ///< Prod: its transpose
};

/// Coding with feedback (Mse only), see HeadTransform::feedback and scalar_feedback.cpp.
struct FeedbackTables {
  const float* matrix = nullptr;    ///< [D, D] row-major, strictly lower triangular, zero within pairs
  const float* matrix_t = nullptr;  ///< its transpose; never null with matrix
  float gain = 1;
};

/// Rows are dense, [n, D] fp32; source and destination do not overlap; no alignment is promised.
struct Kernels {
  const char* name;  ///< "scalar", or the SIMD target

  /// dst[i] = fp32 of element i of src (F16, BF16, F32), bit for bit tq4::to_float.
  void (*load)(const void* src, DType dtype, std::size_t count, float* dst);
  /// Index of the first NaN or infinity of x, or -1.
  std::int64_t (*find_nonfinite)(const float* x, std::size_t count);

  void (*transform)(const TransformTables& tables, const float* x, std::int64_t n, float* y);
  void (*inverse_transform)(const TransformTables& tables, const float* y, std::int64_t n, float* x);

  /// Transformed rows to packed codes, scales and (Uniform, Prod) zeros, signs, residual norms. The planes begin at row 0 of y.
  /// A sum that overflows fp32 leaves an infinite or NaN scale, which the caller refuses.
  void (*encode)(const CodeTables& tables, const float* y, std::int64_t n, const EncodedOut& out);
  /// Rows to codes: transform and encode in one call, which may keep rows in registers between the two.
  /// `scratch` [scratch_rows, D] is for transformed rows.
  void (*transform_encode)(const TransformTables& transform, const CodeTables& tables, const float* x, std::int64_t n, float* scratch,
                           const EncodedOut& out);
  /// encode with feedback.
  void (*encode_feedback)(const CodeTables& tables, const FeedbackTables& feedback, const float* y, std::int64_t n, const EncodedOut& out);
  /// And back to transformed rows.
  void (*decode)(const CodeTables& tables, const EncodedIn& in, std::int64_t n, float* y);
};

/// Rows of scratch that transform_encode of n rows may use. A dense product wants all rows at once; butterflies read and write memory once
/// a row, and go in pieces that stay in the first-level cache.
inline std::int64_t scratch_rows(TransformKind kind, int dim, std::int64_t n) {
  return kind == TransformKind::Dense ? n : 16 * (4096 / dim < 16 ? 1 : 4096 / dim / 16);
}

/// The reference (scalar_kernels.cpp): plain loops, std::fma, the order of every sum fixed.
const Kernels& scalar_kernels();
/// The best table for this CPU, chosen at run time (simd_kernels.cpp).
const Kernels& simd_kernels();

/// The planes from row `first` on.
inline EncodedOut planes_at(const EncodedOut& p, const CodeTables& t, std::int64_t first) {
  return {p.codes ? p.codes + first * static_cast<std::int64_t>(t.code_bytes) : nullptr, p.scale ? p.scale + first : nullptr,
          p.zero ? p.zero + first : nullptr, p.signs ? p.signs + first * (t.dim / 8) : nullptr,
          p.residual_norm ? p.residual_norm + first : nullptr};
}
inline EncodedIn planes_at(const EncodedIn& p, const CodeTables& t, std::int64_t first) {
  return {p.codes ? p.codes + first * static_cast<std::int64_t>(t.code_bytes) : nullptr, p.scale ? p.scale + first : nullptr,
          p.zero ? p.zero + first : nullptr, p.signs ? p.signs + first * (t.dim / 8) : nullptr,
          p.residual_norm ? p.residual_norm + first : nullptr};
}

}  // namespace tq4::cpu
