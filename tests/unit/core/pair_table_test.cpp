// Pair tables: the product table repeats the scalar codebook, the Gaussian one reaches the reference distortions of a 2-D quantizer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "tq4/codebook.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

TEST(PairTable, ProductHoldsLowAndHighCoordinate) {
  const Codebook book = make_codebook(CodebookKind::Sphere, 3, 64);
  const PairTable table = product_pair_table(book);
  ASSERT_EQ(table.points.size(), 128u);
  for (std::size_t code = 0; code < 64; ++code) {
    EXPECT_EQ(table.points[2 * code], static_cast<float>(book.centroids[code & 7]));
    EXPECT_EQ(table.points[2 * code + 1], static_cast<float>(book.centroids[code >> 3]));
  }
}

// Error of a unit vector: E |(x, y) - Q(x, y)|^2 of standard normals, halved (per coordinate).
double simulated_error(const PairTable& table, int samples) {
  std::mt19937_64 generator(3);
  std::normal_distribution<double> normal;
  const double root = std::sqrt(static_cast<double>(table.dim));
  double error = 0;
  for (int s = 0; s < samples; ++s) {
    const double x = normal(generator), y = normal(generator);
    double best = std::numeric_limits<double>::max();
    for (std::size_t code = 0; code < table.points.size() / 2; ++code) {
      const double dx = x - table.points[2 * code] * root, dy = y - table.points[2 * code + 1] * root;
      best = std::min(best, dx * dx + dy * dy);
    }
    error += best;
  }
  return error / (2.0 * samples);
}

TEST(PairTable, GaussianReachesTheReferenceDistortions) {
  const double expected[] = {0.108, 0.0298, 0.0078};
  for (int bits = 2; bits <= 4; ++bits) {
    const double error = simulated_error(gaussian_pair_table(bits, 128), 400000);
    EXPECT_NEAR(error, expected[bits - 2], 0.01 * expected[bits - 2]) << "bits " << bits;
    const double product = codebook_stats(make_codebook(CodebookKind::Gaussian, bits, 128)).mse;
    EXPECT_LT(error, 0.94 * product) << "a 2-D codebook must beat the product of scalar ones";
  }
}

TEST(PairTable, GaussianScalesWithTheDimensionAndRepeats) {
  const PairTable small = gaussian_pair_table(3, 64);
  const PairTable large = gaussian_pair_table(3, 256);
  ASSERT_EQ(small.points.size(), 128u);
  for (std::size_t i = 0; i < small.points.size(); ++i) EXPECT_FLOAT_EQ(small.points[i], 2 * large.points[i]);
  EXPECT_EQ(gaussian_pair_table(3, 64).points, small.points);
  std::set<std::pair<float, float>> distinct;
  for (std::size_t code = 0; code < 64; ++code) distinct.emplace(small.points[2 * code], small.points[2 * code + 1]);
  EXPECT_EQ(distinct.size(), 64u);
}

TEST(PairTable, GaussianPointsAreTheMeansOfTheirCells) {
  const PairTable table = gaussian_pair_table(2, 3);
  const double root = std::sqrt(3.0);
  std::vector<double> count(16), sum_x(16), sum_y(16);
  std::mt19937_64 generator(5);
  std::normal_distribution<double> normal;
  for (int s = 0; s < 1000000; ++s) {
    const double x = normal(generator), y = normal(generator);
    std::size_t nearest = 0;
    double best = std::numeric_limits<double>::max();
    for (std::size_t code = 0; code < 16; ++code) {
      const double dx = x - table.points[2 * code] * root, dy = y - table.points[2 * code + 1] * root;
      if (dx * dx + dy * dy < best) {
        best = dx * dx + dy * dy;
        nearest = code;
      }
    }
    count[nearest] += 1;
    sum_x[nearest] += x;
    sum_y[nearest] += y;
  }
  for (std::size_t code = 0; code < 16; ++code) {
    ASSERT_GT(count[code], 1000);
    const double tolerance = 4 / std::sqrt(count[code]);  // four standard errors of a cell at most one wide
    EXPECT_NEAR(sum_x[code] / count[code], table.points[2 * code] * root, tolerance);
    EXPECT_NEAR(sum_y[code] / count[code], table.points[2 * code + 1] * root, tolerance);
  }
}

TEST(PairTable, RefusesOtherBits) {
  EXPECT_THROW(gaussian_pair_table(1, 128), Error);
  EXPECT_THROW(gaussian_pair_table(5, 128), Error);
  EXPECT_THROW(gaussian_pair_table(4, 2), Error);
}

}  // namespace
}  // namespace tq4
