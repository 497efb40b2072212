// Codes and scales back to transformed rows: the scalar reference of every codec.
#include <cmath>
#include <numbers>

#include "core/pack.h"
#include "cpu/scalar.h"

namespace tq4::cpu {

void unpack_row(const CodeTables& t, const std::uint8_t* row, std::uint8_t* codes) {
  core::unpack_codes(row, static_cast<std::size_t>(t.outliers), t.bits + 1, codes);
  core::unpack_codes(row + t.outliers * (t.bits + 1) / 8, static_cast<std::size_t>(t.dim - t.outliers), t.bits, codes + t.outliers);
}

void centroids_of(const CodeTables& t, const std::uint8_t* codes, float* c) {
  if (t.pairs != nullptr) {
    for (int j = 0; j < t.dim; j += 2) {
      const int code = codes[j] | codes[j + 1] << t.bits;
      c[j] = t.pairs[2 * code];
      c[j + 1] = t.pairs[2 * code + 1];
    }
  } else {
    for (int j = 0; j < t.outliers; ++j) c[j] = t.outlier_centroids[codes[j]];
    for (int j = t.outliers; j < t.dim; ++j) c[j] = t.centroids[codes[j]];
  }
  if (t.norm_correction) {
    const float inv = 1.0f / std::sqrt(dot16(c, c, t.dim) + 1e-16f);
    for (int j = 0; j < t.dim; ++j) c[j] *= inv;
  }
}

void add_residual(const CodeTables& t, const std::uint8_t* signs, float residual_norm, float* y) {
  float sum[kMaxDim] = {};  // S^T sign, rows of S in ascending order
  for (int i = 0; i < t.dim; ++i) {
    const bool plus = (signs[i / 8] >> (i % 8) & 1) != 0;
    const float* row = t.qjl + static_cast<std::ptrdiff_t>(i) * t.dim;
    for (int j = 0; j < t.dim; ++j) sum[j] = plus ? sum[j] + row[j] : sum[j] - row[j];
  }
  const float gain = static_cast<float>(std::sqrt(std::numbers::pi / 2.0) / t.dim) * residual_norm;
  for (int j = 0; j < t.dim; ++j) y[j] = std::fma(gain, sum[j], y[j]);
}

void scalar_decode(const CodeTables& t, const EncodedIn& in, std::int64_t n, float* y) {
  std::uint8_t codes[kMaxDim];
  for (std::int64_t r = 0; r < n; ++r, y += t.dim) {
    const EncodedIn row = planes_at(in, t, r);
    switch (t.kind) {
      case CodeKind::Mse:
      case CodeKind::Prod:
      case CodeKind::Mixed:
        unpack_row(t, row.codes, codes);
        centroids_of(t, codes, y);
        for (int j = 0; j < t.dim; ++j) y[j] *= *row.scale;
        if (t.kind == CodeKind::Prod) add_residual(t, row.signs, *row.residual_norm, y);
        break;
      case CodeKind::Uniform:
        unpack_row(t, row.codes, codes);
        for (int j = 0; j < t.dim; ++j) y[j] = std::fma(*row.scale, static_cast<float>(codes[j]), *row.zero);
        break;
      case CodeKind::Fp8:
        for (int j = 0; j < t.dim; ++j) y[j] = t.fp8 == Fp8Kind::E4M3 ? e4m3_to_float(row.codes[j]) : e4b15_to_float(row.codes[j]);
        break;
      case CodeKind::Fp16:
        for (int j = 0; j < t.dim; ++j) y[j] = half_to_float(static_cast<std::uint16_t>(row.codes[2 * j] | row.codes[2 * j + 1] << 8));
        break;
    }
  }
}

}  // namespace tq4::cpu
