// The scalar reference's pieces, shared by its files and by tests and SIMD code that want the defining form of a step.
// Every function here fixes the order of its floating-point operations; nothing is left to the compiler (-ffp-contract=off).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "tq4/types.h"

namespace tq4::cpu {

/// The largest head_dim a codec takes: rows of codes and of centroids live on the stack.
inline constexpr int kMaxDim = 512;
/// How often coding with feedback is repeated with the scale that the last codes fit best.
inline constexpr int kFeedbackRounds = 3;

/// sum a[j] b[j]: 16 partial sums, element j in partial j mod 16 in ascending j, then a tree.
inline float dot16(const float* a, const float* b, int dim) {
  float p[16] = {};
  for (int j = 0; j < dim; ++j) p[j & 15] = std::fma(a[j], b[j], p[j & 15]);
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) p[l] += p[l + half];
  }
  return p[0];
}

/// A scale as it is stored. Finite values clamp at 65504 in F16; infinities and NaN stay, so that the caller can refuse them.
inline float round_scale(float value, ScaleDType dtype) {
  if (dtype == ScaleDType::F32 || !std::isfinite(value)) return value;
  const float clamped = value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
  return half_to_float(float_to_half(clamped));
}

/// Number of boundaries <= z.
inline std::uint8_t code_of(float z, const float* boundaries, int count) {
  int code = 0;
  for (int i = 0; i < count; ++i) code += boundaries[i] <= z ? 1 : 0;
  return static_cast<std::uint8_t>(code);
}

/// Codes of 4^bits points for the pair (z[0], z[1]): the nearest, ties to the lowest.
int nearest_pair(const CodeTables& tables, float z0, float z1);
/// The codes of one row, one byte a coordinate, to and from the packed row (two widths for Mixed).
void pack_row(const CodeTables& tables, const std::uint8_t* codes, std::uint8_t* row);
void unpack_row(const CodeTables& tables, const std::uint8_t* row, std::uint8_t* codes);
/// The centroids of one row of codes, norm-corrected where the codec says so: what a scale multiplies.
void centroids_of(const CodeTables& tables, const std::uint8_t* codes, float* c);
/// Prod: y[j] += sqrt(pi/2)/D * residual_norm * (S^T sign)[j].
void add_residual(const CodeTables& tables, const std::uint8_t* signs, float residual_norm, float* y);

void scalar_load(const void* src, DType dtype, std::size_t count, float* dst);
std::int64_t scalar_find_nonfinite(const float* x, std::size_t count);
void scalar_transform(const TransformTables& tables, const float* x, std::int64_t n, float* y);
void scalar_inverse_transform(const TransformTables& tables, const float* y, std::int64_t n, float* x);
void scalar_encode(const CodeTables& tables, const float* y, std::int64_t n, const EncodedOut& out);
void scalar_transform_encode(const TransformTables& transform, const CodeTables& tables, const float* x, std::int64_t n, float* scratch,
                             const EncodedOut& out);
void scalar_encode_feedback(const CodeTables& tables, const FeedbackTables& feedback, const float* y, std::int64_t n,
                            const EncodedOut& out);
void scalar_decode(const CodeTables& tables, const EncodedIn& in, std::int64_t n, float* y);

}  // namespace tq4::cpu
