// The vector subtracted before the transform: a constant one a head, or a mean of keys before RoPE that turns with the position.
#pragma once

#include <cstdint>
#include <vector>

#include "tq4/codec.h"

namespace tq4::cpu {

/// The centre of every vector of a call. Immutable after construction; at() may be called by several threads.
class Centre {
 public:
  /// Throws Usage when rope_dim is odd, negative or larger than dim, or rope_theta is not positive.
  Centre(const HeadTransform& transform, int dim);
  bool none() const { return !rotary_ && constant_ == nullptr; }
  /// The centre [D] of vector i of the call: a constant pointer, or `scratch` [D] filled with R_p rope_mu, p = position0 + i.
  const float* at(std::int64_t i, float* scratch) const;

 private:
  int dim_;
  int half_ = 0;  ///< rope_dim / 2: coordinates i and i + half_ turn together
  bool rotary_ = false;
  const float* constant_ = nullptr;
  const float* mu_ = nullptr;
  std::int64_t position0_ = 0;
  std::vector<double> frequency_;  ///< [half_] radians a position
};

}  // namespace tq4::cpu
