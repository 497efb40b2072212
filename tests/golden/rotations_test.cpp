// turboquant-vllm's rotation: seed 42 gives its matrix, and with y = R x our indices are the ones it wrote.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "golden_file.h"
#include "tq4/codebook.h"
#include "tq4/rotation.h"

namespace tq4 {
namespace {

class GoldenRotations : public testing::TestWithParam<int> {};

TEST_P(GoldenRotations, MatrixOfSeed42) {
  const golden::File file;
  const int dim = GetParam();
  const auto theirs = file.read<float>("tqv/d" + std::to_string(dim) + "/rotation_seed42");
  const Rotation ours = make_rotation(RotationKind::HaarTorch, dim, 42);
  ASSERT_EQ(ours.matrix.size(), theirs.size());
  float worst = 0;
  for (std::size_t i = 0; i < theirs.size(); ++i) worst = std::max(worst, std::abs(ours.matrix[i] - theirs[i]));
  EXPECT_LE(worst, 1e-5f);  // theirs is a float QR, ours a double one of the same Gaussian matrix
  RecordProperty("largest_difference", std::to_string(worst));
}

TEST_P(GoldenRotations, IndicesOfTheirKeys) {
  const golden::File file;
  const int dim = GetParam();
  const auto d = static_cast<std::size_t>(dim);
  const std::string group = "tqv/d" + std::to_string(dim) + "/b4/";
  const auto keys = file.read<float>(group + "k");
  const auto packed = file.read<std::uint8_t>(group + "k_packed");
  const auto norms = file.read<float>(group + "k_norms");
  const Rotation rotation = make_rotation(RotationKind::HaarTorch, dim, 42);
  const Codebook book = make_codebook(CodebookKind::TurboquantVllm, 4, dim);
  std::size_t different = 0, near_boundary = 0;
  for (std::size_t row = 0; row < keys.size() / d; ++row) {
    const float* x = keys.data.data() + row * d;
    double squares = 0;
    for (std::size_t j = 0; j < d; ++j) squares += static_cast<double>(x[j]) * x[j];
    const double norm = std::sqrt(squares);
    EXPECT_NEAR(norms[row], norm, 1e-5 * norm);
    if (norm == 0) continue;
    for (std::size_t i = 0; i < d; ++i) {
      double y = 0;
      for (std::size_t j = 0; j < d; ++j) y += static_cast<double>(rotation.matrix[i * d + j]) * x[j];
      y /= norm;
      const std::uint8_t byte = packed[row * (d / 2) + i / 2];
      const int theirs = i % 2 == 0 ? byte >> 4 : byte & 15;
      const auto ours = std::upper_bound(book.boundaries.begin(), book.boundaries.end(), y) - book.boundaries.begin();
      if (ours == theirs) continue;
      ++different;
      for (const double boundary : book.boundaries) near_boundary += std::abs(y - boundary) < 1e-5 ? 1u : 0u;
    }
  }
  EXPECT_EQ(different, near_boundary) << "indices may differ only within 1e-5 of a boundary";
  EXPECT_LE(different, 5u);
}

INSTANTIATE_TEST_SUITE_P(Dims, GoldenRotations, testing::Values(64, 96, 128, 256));

}  // namespace
}  // namespace tq4
