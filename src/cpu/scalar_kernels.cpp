// The reference table, and its two functions that only read: conversion to fp32 and the search for NaN and infinity.
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

const Kernels& scalar_kernels() {
  static constexpr Kernels table = {
      "scalar",     scalar_load, scalar_find_nonfinite, scalar_transform, scalar_inverse_transform, scalar_encode, scalar_encode_feedback,
      scalar_decode};
  return table;
}

}  // namespace tq4::cpu
