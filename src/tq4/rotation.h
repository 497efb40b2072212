// Seeded orthogonal matrices. y = R x spreads a vector's energy evenly over coordinates so that one codebook fits all.
#pragma once

#include <cstdint>
#include <vector>

#include "tq4/spec.h"

namespace tq4 {

/// An orthogonal [dim, dim] matrix, row-major, y = R x; x = R^T y.
struct Rotation {
  RotationKind kind{};
  int dim = 0;
  std::uint64_t seed = 0;
  std::vector<float> matrix;  ///< [dim, dim]; always filled, also for Hadamard kinds (identity for None)
  std::vector<float> signs;   ///< HadamardSigned: [dim] of +-1 applied to x before the butterflies; else empty
  std::vector<int> blocks;    ///< Hadamard kinds: sizes of the power-of-two blocks on the diagonal, in order
};

/// Builds the matrix: Haar and HaarTorch by Householder QR in double with column signs from diag(R) (Mezzadri), rounded to float.
/// Same bits on every CPU. dim 8..512. Throws Usage.
Rotation make_rotation(RotationKind kind, int dim, std::uint64_t seed);

/// XXH3-64 of the matrix bytes: stored in files so that nobody decodes with another matrix.
std::uint64_t rotation_fingerprint(const Rotation& rotation);

}  // namespace tq4
