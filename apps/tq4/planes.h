// Buffers for encoded vectors, sized for one codec: what Codec::encode fills and containers and pages take.
#pragma once

#include <cstdint>
#include <vector>

#include "tq4/codec.h"

namespace tq4::cli {

struct PlaneBuffers {
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual_norm;

  /// Room for n vectors of `codec`; planes it does not have become empty.
  void resize(const Codec& codec, std::int64_t n) {
    const auto rows = static_cast<std::size_t>(n);
    codes.resize(rows * codec.code_bytes());
    scale.resize(codec.has_scale() ? rows : 0);
    zero.resize(codec.has_zero() ? rows : 0);
    signs.resize(codec.has_signs() ? rows * static_cast<std::size_t>(codec.head_dim()) / 8 : 0);
    residual_norm.resize(codec.has_signs() ? rows : 0);
  }
  EncodedOut out() { return {data(codes), data(scale), data(zero), data(signs), data(residual_norm)}; }
  EncodedIn in() const { return {data(codes), data(scale), data(zero), data(signs), data(residual_norm)}; }

 private:
  template <class Vector>
  static auto data(Vector& v) -> decltype(v.data()) {
    return v.empty() ? nullptr : v.data();
  }
};

}  // namespace tq4::cli
