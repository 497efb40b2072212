// Transformed rows to codes and scales: the scalar reference of every codec. TurboQuant_mse and TurboQuant_prod are sections 3.1 and 3.2
// of arXiv 2504.19874; Mixed is its section 4.3; Uniform and Fp8 are what vLLM stores.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/pack.h"
#include "cpu/scalar.h"

namespace tq4::cpu {
namespace {

/// The codes of y / |y|; returns |y|.
float quantize(const CodeTables& t, const float* y, std::uint8_t* codes) {
  const float norm = std::sqrt(dot16(y, y, t.dim));
  const float inv = norm == 0.0f ? 0.0f : 1.0f / norm;
  if (t.pairs != nullptr) {
    const int mask = (1 << t.bits) - 1;
    for (int j = 0; j < t.dim; j += 2) {
      const int pair = nearest_pair(t, y[j] * inv, y[j + 1] * inv);
      codes[j] = static_cast<std::uint8_t>(pair & mask);
      codes[j + 1] = static_cast<std::uint8_t>(pair >> t.bits);
    }
    return norm;
  }
  const int last = (1 << t.bits) - 1, outlier_last = (2 << t.bits) - 1;
  for (int j = 0; j < t.outliers; ++j) codes[j] = code_of(y[j] * inv, t.outlier_boundaries, outlier_last);
  for (int j = t.outliers; j < t.dim; ++j) codes[j] = code_of(y[j] * inv, t.boundaries, last);
  return norm;
}

/// The scale to store for row y of norm `norm` with centroids c.
float scale_of(const CodeTables& t, const float* y, const float* c, float norm) {
  if (norm == 0.0f || !std::isfinite(norm)) return norm;
  float scale = norm;
  if (t.scale_rule == ScaleRule::LeastSquares) {
    scale = dot16(y, c, t.dim) / dot16(c, c, t.dim);
  } else if (t.scale_rule == ScaleRule::Unbiased) {
    scale = dot16(y, y, t.dim) / dot16(y, c, t.dim);
  }
  return round_scale(scale, t.scale_dtype);
}

/// Prod: signs of S r and |r| of the residual r = y - scale c.
float sketch_residual(const CodeTables& t, const float* y, const float* c, float scale, std::uint8_t* signs) {
  float r[kMaxDim];
  for (int j = 0; j < t.dim; ++j) r[j] = std::fma(-scale, c[j], y[j]);
  for (int i = 0; i < t.dim; ++i) {
    float acc = 0.0f;
    const float* row = t.qjl + static_cast<std::ptrdiff_t>(i) * t.dim;
    for (int j = 0; j < t.dim; ++j) acc = std::fma(row[j], r[j], acc);
    if (i % 8 == 0) signs[i / 8] = 0;
    if (acc >= 0.0f) signs[i / 8] = static_cast<std::uint8_t>(signs[i / 8] | 1 << (i % 8));
  }
  return round_scale(std::sqrt(dot16(r, r, t.dim)), t.scale_dtype);
}

void encode_uniform(const CodeTables& t, const float* y, std::uint8_t* codes, float* scale, float* zero) {
  float lo = y[0], hi = y[0];
  for (int j = 1; j < t.dim; ++j) {
    lo = std::min(lo, y[j]);
    hi = std::max(hi, y[j]);
  }
  const float top = static_cast<float>((1 << t.bits) - 1);
  const float step = (hi - lo) / top;  // the codes use it unrounded, as vLLM's store kernel does
  for (int j = 0; j < t.dim; ++j) {
    const float index = step == 0.0f ? 0.0f : std::floor((y[j] - lo) / step + 0.5f);
    codes[j] = static_cast<std::uint8_t>(std::clamp(index, 0.0f, top));
  }
  *scale = round_scale(step, t.scale_dtype);
  *zero = round_scale(lo, t.scale_dtype);
}

void encode_bytes(const CodeTables& t, const float* y, std::uint8_t* row) {
  for (int j = 0; j < t.dim; ++j) {
    if (t.kind == CodeKind::Fp8) {
      row[j] = t.fp8 == Fp8Kind::E4M3 ? float_to_e4m3(y[j]) : float_to_e4b15(y[j]);
    } else {
      const std::uint16_t half = float_to_half(std::clamp(y[j], -65504.0f, 65504.0f));
      row[2 * j] = static_cast<std::uint8_t>(half & 0xff);
      row[2 * j + 1] = static_cast<std::uint8_t>(half >> 8);
    }
  }
}

}  // namespace

int nearest_pair(const CodeTables& t, float z0, float z1) {
  const int count = 1 << (2 * t.bits);
  int best = 0;
  float best_distance = std::numeric_limits<float>::infinity();
  for (int code = 0; code < count; ++code) {
    const float dx = z0 - t.pairs[2 * code], dy = z1 - t.pairs[2 * code + 1];
    const float distance = std::fma(dx, dx, dy * dy);
    if (distance < best_distance) {
      best_distance = distance;
      best = code;
    }
  }
  return best;
}

void pack_row(const CodeTables& t, const std::uint8_t* codes, std::uint8_t* row) {
  core::pack_codes(codes, static_cast<std::size_t>(t.outliers), t.bits + 1, row);  // whole bytes: outliers is a multiple of 8
  core::pack_codes(codes + t.outliers, static_cast<std::size_t>(t.dim - t.outliers), t.bits, row + t.outliers * (t.bits + 1) / 8);
}

void scalar_encode(const CodeTables& t, const float* y, std::int64_t n, const EncodedOut& out) {
  std::uint8_t codes[kMaxDim];
  float c[kMaxDim];
  for (std::int64_t r = 0; r < n; ++r, y += t.dim) {
    const EncodedOut row = planes_at(out, t, r);
    switch (t.kind) {
      case CodeKind::Mse:
      case CodeKind::Prod:
      case CodeKind::Mixed: {
        const float norm = quantize(t, y, codes);
        centroids_of(t, codes, c);
        *row.scale = scale_of(t, y, c, norm);
        if (t.kind == CodeKind::Prod) *row.residual_norm = sketch_residual(t, y, c, *row.scale, row.signs);
        pack_row(t, codes, row.codes);
        break;
      }
      case CodeKind::Uniform:
        encode_uniform(t, y, codes, row.scale, row.zero);
        pack_row(t, codes, row.codes);
        break;
      case CodeKind::Fp8:
      case CodeKind::Fp16: encode_bytes(t, y, row.codes); break;
    }
  }
}

}  // namespace tq4::cpu
