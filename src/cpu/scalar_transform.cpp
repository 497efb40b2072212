// The way of a row into the space of the codebook and back: a dense matrix, or Hadamard butterflies. The order of the additions is
// part of the format, because a code next to a boundary depends on the last bit.
#include <algorithm>
#include <cmath>

#include "cpu/scalar.h"

namespace tq4::cpu {
namespace {

void multiply(const float* matrix, int dim, const float* v, float* out) {
  for (int i = 0; i < dim; ++i) {
    float acc = 0.0f;
    const float* row = matrix + static_cast<std::ptrdiff_t>(i) * dim;
    for (int j = 0; j < dim; ++j) acc = std::fma(row[j], v[j], acc);
    out[i] = acc;
  }
}

/// Orthonormal Sylvester Hadamard on every diagonal block, in place.
void butterflies(const TransformTables& tables, float* v) {
  for (int b = 0; b < tables.block_count; ++b) {
    const int size = tables.blocks[b];
    for (int h = 1; h < size; h *= 2) {
      for (int i = 0; i < size; i += 2 * h) {
        for (int j = i; j < i + h; ++j) {
          const float lo = v[j], hi = v[j + h];
          v[j] = lo + hi;
          v[j + h] = lo - hi;
        }
      }
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));
    for (int j = 0; j < size; ++j) v[j] *= scale;
    v += size;
  }
}

}  // namespace

void scalar_transform(const TransformTables& tables, const float* x, std::int64_t n, float* y) {
  const int dim = tables.dim;
  for (std::int64_t r = 0; r < n; ++r, x += dim, y += dim) {
    if (tables.kind == TransformKind::Dense) {
      multiply(tables.forward, dim, x, y);
      continue;
    }
    std::copy(x, x + dim, y);
    if (tables.kind == TransformKind::Hadamard) {
      if (tables.signs != nullptr) {
        for (int j = 0; j < dim; ++j) y[j] *= tables.signs[j];
      }
      butterflies(tables, y);
    }
  }
}

void scalar_inverse_transform(const TransformTables& tables, const float* y, std::int64_t n, float* x) {
  const int dim = tables.dim;
  for (std::int64_t r = 0; r < n; ++r, x += dim, y += dim) {
    if (tables.kind == TransformKind::Dense) {
      multiply(tables.inverse, dim, y, x);
      continue;
    }
    std::copy(y, y + dim, x);
    if (tables.kind == TransformKind::Hadamard) {
      butterflies(tables, x);
      if (tables.signs != nullptr) {
        for (int j = 0; j < dim; ++j) x[j] *= tables.signs[j];
      }
    }
  }
}

}  // namespace tq4::cpu
