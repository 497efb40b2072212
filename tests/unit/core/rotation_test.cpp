// Rotations: orthogonality, Haar statistics, pinned fingerprints (one seed, one matrix, everywhere), Hadamard against its butterflies.
#include "tq4/rotation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tq4/error.h"

namespace tq4 {
namespace {

double orthogonality_error(const Rotation& r) {
  const auto n = static_cast<std::size_t>(r.dim);
  double worst = 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < n; ++k) sum += static_cast<double>(r.matrix[i * n + k]) * r.matrix[j * n + k];
      worst = std::max(worst, std::abs(sum - (i == j ? 1 : 0)));
    }
  }
  return worst;
}

TEST(Rotation, EveryKindIsOrthogonal) {
  for (const RotationKind kind :
       {RotationKind::None, RotationKind::Haar, RotationKind::HaarTorch, RotationKind::Hadamard, RotationKind::HadamardSigned}) {
    for (const int dim : {8, 32, 80, 96, 128, 192, 200, 512}) {
      const Rotation r = make_rotation(kind, dim, 42);
      ASSERT_EQ(r.matrix.size(), static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim));
      EXPECT_LT(orthogonality_error(r), 2e-7) << "kind " << static_cast<int>(kind) << " dim " << dim;
    }
  }
}

// Computed once; equal on every CPU, compiler and optimisation level or files of one machine could not be read on another.
TEST(Rotation, FingerprintsArePinned) {
  EXPECT_EQ(rotation_fingerprint(make_rotation(RotationKind::Haar, 64, 42)), 0xf5d9e79dd77de3f4u);
  EXPECT_EQ(rotation_fingerprint(make_rotation(RotationKind::Haar, 128, 42)), 0x3eea30bde9bfbc48u);
  EXPECT_EQ(rotation_fingerprint(make_rotation(RotationKind::Haar, 512, 42)), 0xee3cb7e93c872dd0u);
  EXPECT_EQ(rotation_fingerprint(make_rotation(RotationKind::Hadamard, 128, 0)), 0xbc11b828bc6f9d46u);
}

TEST(Rotation, SeedNamesTheMatrix) {
  const Rotation a = make_rotation(RotationKind::Haar, 64, 1), b = make_rotation(RotationKind::Haar, 64, 2);
  EXPECT_NE(rotation_fingerprint(a), rotation_fingerprint(b));
  EXPECT_EQ(a.matrix, make_rotation(RotationKind::Haar, 64, 1).matrix);
  EXPECT_NE(make_rotation(RotationKind::HadamardSigned, 64, 1).signs, make_rotation(RotationKind::HadamardSigned, 64, 2).signs);
}

// Haar: E q^2 = 1/n, E q^4 = 3 / (n (n + 2)) for every entry; without the sign correction the first column's mean would not be 0.
TEST(Rotation, HaarEntriesHaveHaarMoments) {
  constexpr int kDim = 32, kSeeds = 400;
  double corner = 0, square = 0, fourth = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const Rotation r = make_rotation(RotationKind::Haar, kDim, static_cast<std::uint64_t>(seed));
    corner += r.matrix[0];
    square += static_cast<double>(r.matrix[0]) * r.matrix[0];
    for (const float q : r.matrix) fourth += static_cast<double>(q) * q * q * q;
  }
  EXPECT_NEAR(corner / kSeeds, 0, 4 * std::sqrt(1.0 / kDim / kSeeds));
  EXPECT_NEAR(square / kSeeds, 1.0 / kDim, 4 * std::sqrt(2.0 / kSeeds) / kDim);
  const double expected = 3.0 / (kDim * (kDim + 2.0));
  EXPECT_NEAR(fourth / (static_cast<double>(kSeeds) * kDim * kDim), expected, 0.01 * expected);
}

std::vector<float> butterflies(std::vector<float> x, const Rotation& r) {
  for (std::size_t j = 0; j < r.signs.size(); ++j) x[j] *= r.signs[j];
  std::size_t start = 0;
  for (const int block : r.blocks) {
    const auto size = static_cast<std::size_t>(block);
    for (std::size_t h = 1; h < size; h *= 2) {
      for (std::size_t i = 0; i < size; i += 2 * h) {
        for (std::size_t j = start + i; j < start + i + h; ++j) {
          const float a = x[j], b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
      }
    }
    for (std::size_t j = start; j < start + size; ++j) x[j] *= static_cast<float>(1 / std::sqrt(static_cast<double>(block)));
    start += size;
  }
  return x;
}

TEST(Rotation, HadamardMatrixIsWhatTheButterfliesCompute) {
  for (const RotationKind kind : {RotationKind::Hadamard, RotationKind::HadamardSigned}) {
    for (const int dim : {32, 80, 96, 128, 192}) {
      const Rotation r = make_rotation(kind, dim, 9);
      const auto n = static_cast<std::size_t>(dim);
      ASSERT_EQ(r.signs.size(), kind == RotationKind::HadamardSigned ? n : 0u);
      for (std::size_t j = 0; j < n; ++j) {
        std::vector<float> unit(n, 0.0f);
        unit[j] = 1;
        const std::vector<float> column = butterflies(unit, r);
        for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(column[i], r.matrix[i * n + j]);
      }
    }
  }
}

TEST(Rotation, HadamardBlocksDescend) {
  EXPECT_EQ(make_rotation(RotationKind::Hadamard, 80, 0).blocks, (std::vector<int>{64, 16}));
  EXPECT_EQ(make_rotation(RotationKind::Hadamard, 96, 0).blocks, (std::vector<int>{64, 32}));
  EXPECT_EQ(make_rotation(RotationKind::Hadamard, 192, 0).blocks, (std::vector<int>{128, 64}));
  EXPECT_EQ(make_rotation(RotationKind::Hadamard, 256, 0).blocks, (std::vector<int>{256}));
}

TEST(Rotation, RefusesOtherDimensions) {
  EXPECT_THROW(make_rotation(RotationKind::Haar, 7, 0), Error);
  EXPECT_THROW(make_rotation(RotationKind::Haar, 513, 0), Error);
}

}  // namespace
}  // namespace tq4
