// Test data: seeded Gaussian and unit vectors, and buffers for every plane a codec has.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/random.h"
#include "tq4/codec.h"

namespace tq4::test {

/// n vectors [n, dim] of independent N(0, 1).
inline std::vector<float> gaussian_vectors(std::int64_t n, int dim, std::uint64_t seed) {
  core::NormalGenerator normal(seed);
  std::vector<float> x(static_cast<std::size_t>(n) * static_cast<std::size_t>(dim));
  for (float& v : x) v = static_cast<float>(normal.next());
  return x;
}

/// n uniformly random unit vectors [n, dim].
inline std::vector<float> unit_vectors(std::int64_t n, int dim, std::uint64_t seed) {
  std::vector<float> x = gaussian_vectors(n, dim, seed);
  for (float* row = x.data(); row != x.data() + x.size(); row += dim) {
    double sum = 0;
    for (int j = 0; j < dim; ++j) sum += static_cast<double>(row[j]) * static_cast<double>(row[j]);
    for (int j = 0; j < dim; ++j) row[j] = static_cast<float>(static_cast<double>(row[j]) / std::sqrt(sum));
  }
  return x;
}

/// All planes of n vectors of a codec.
struct Planes {
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual_norm;

  Planes(const Codec& codec, std::int64_t n)
      : codes(static_cast<std::size_t>(n) * codec.code_bytes()),
        signs(codec.has_signs() ? static_cast<std::size_t>(n * codec.head_dim() / 8) : 0),
        scale(codec.has_scale() ? static_cast<std::size_t>(n) : 0),
        zero(codec.has_zero() ? static_cast<std::size_t>(n) : 0),
        residual_norm(codec.has_signs() ? static_cast<std::size_t>(n) : 0) {}

  EncodedOut out() { return {codes.data(), or_null(scale), or_null(zero), or_null(signs), or_null(residual_norm)}; }
  EncodedIn in() const { return {codes.data(), or_null(scale), or_null(zero), or_null(signs), or_null(residual_norm)}; }
  bool operator==(const Planes&) const = default;

 private:
  template <class T>
  static T* or_null(std::vector<T>& v) {
    return v.empty() ? nullptr : v.data();
  }
  template <class T>
  static const T* or_null(const std::vector<T>& v) {
    return v.empty() ? nullptr : v.data();
  }
};

inline Planes encode(const Codec& codec, const std::vector<float>& x, const HeadTransform& transform = {}, const Exec& exec = {}) {
  const auto n = static_cast<std::int64_t>(x.size()) / codec.head_dim();
  Planes planes(codec, n);
  codec.encode(x.data(), DType::F32, n, planes.out(), transform, exec);
  return planes;
}

inline std::vector<float> decode(const Codec& codec, const Planes& planes, std::int64_t n, const HeadTransform& transform = {},
                                 const Exec& exec = {}) {
  std::vector<float> x(static_cast<std::size_t>(n) * static_cast<std::size_t>(codec.head_dim()));
  codec.decode(planes.in(), n, x.data(), transform, exec);
  return x;
}

/// sum |a - b|^2 / sum |a|^2.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0, energy = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    error += d * d;
    energy += static_cast<double>(a[i]) * static_cast<double>(a[i]);
  }
  return error / energy;
}

inline double round_trip_error(const Codec& codec, const std::vector<float>& x, const HeadTransform& transform = {}) {
  return relative_error(x, decode(codec, encode(codec, x, transform), static_cast<std::int64_t>(x.size()) / codec.head_dim(), transform));
}

}  // namespace tq4::test
