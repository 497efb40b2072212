// The reference table, its two functions that only read (conversion to fp32, the search for NaN and infinity), and transform and encode in a row.
#include <cmath>

#include "cpu/scalar.h"

namespace tq4::cpu {

void scalar_load(const void* src, DType dtype, std::size_t count, float* dst) { to_float(src, dtype, count, dst); }

std::int64_t scalar_find_nonfinite(const float* x, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return static_cast<std::int64_t>(i);
  }
  return -1;
}

void scalar_transform_encode(const TransformTables& transform, const CodeTables& tables, const float* x, std::int64_t n, float* scratch,
                             const EncodedOut& out) {
  for (std::int64_t r = 0; r < n; ++r) {
    scalar_transform(transform, x + r * tables.dim, 1, scratch);
    scalar_encode(tables, scratch, 1, planes_at(out, tables, r));
  }
}

const Kernels& scalar_kernels() {
  static constexpr Kernels table = {"scalar",
                                    scalar_load,
                                    scalar_find_nonfinite,
                                    scalar_transform,
                                    scalar_inverse_transform,
                                    scalar_encode,
                                    scalar_transform_encode,
                                    scalar_encode_feedback,
                                    scalar_decode};
  return table;
}

}  // namespace tq4::cpu
