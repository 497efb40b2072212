// Lloyd-Max codebooks against theory: fixed-point conditions from formulas of their own, published tables, closed forms, simulation.
#include "tq4/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <random>
#include <string>

#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr CodebookKind kExact[] = {CodebookKind::Sphere, CodebookKind::Gaussian};

// Mean of N(0, 1) over [a, b] in long double; b may be infinite.
long double normal_cell_mean(long double a, long double b) {
  const long double root = std::sqrt(2.0L);
  const long double mass = 0.5L * (std::erfc(a / root) - (std::isinf(b) ? 0.0L : std::erfc(b / root)));
  const long double first =
      (std::exp(-0.5L * a * a) - (std::isinf(b) ? 0.0L : std::exp(-0.5L * b * b))) / std::sqrt(2 * std::numbers::pi_v<long double>);
  return first / mass;
}

// Mean of the sphere's coordinate density over [a, b] within [-1, 1]: first moment in closed form, mass by Simpson's rule over the angle.
long double sphere_cell_mean(long double a, long double b, int dim) {
  const long double first = (std::pow(1 - a * a, (dim - 1) / 2.0L) - std::pow(1 - b * b, (dim - 1) / 2.0L)) / (dim - 1);
  const long double from = std::asin(a), to = std::asin(b);
  constexpr int kSteps = 20000;
  const long double h = (to - from) / kSteps;
  long double mass = 0;
  for (int i = 0; i <= kSteps; ++i) {
    const long double weight = i == 0 || i == kSteps ? 1 : (i % 2 == 1 ? 4 : 2);
    mass += weight * std::pow(std::cos(from + i * h), static_cast<long double>(dim - 2));
  }
  return first / (mass * h / 3);
}

TEST(Codebook, GaussianSatisfiesTheLloydConditions) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int dim : {8, 128, 4096}) {
      const Codebook book = make_codebook(CodebookKind::Gaussian, bits, dim);
      const long double sigma = 1 / std::sqrt(static_cast<long double>(dim));
      const std::size_t n = book.centroids.size();
      ASSERT_EQ(n, std::size_t{1} << bits);
      for (std::size_t i = n / 2; i < n; ++i) {
        const long double a = i == n / 2 ? 0 : book.boundaries[i - 1] / sigma;
        const long double b = i + 1 == n ? INFINITY : book.boundaries[i] / sigma;
        const auto mean = static_cast<double>(normal_cell_mean(a, b) * sigma);
        EXPECT_NEAR(book.centroids[i], mean, 1e-12 * book.centroids[i]) << "bits " << bits << " dim " << dim << " centroid " << i;
      }
    }
  }
}

TEST(Codebook, SphereSatisfiesTheLloydConditions) {
  for (const int bits : {1, 2, 4, 8}) {
    for (const int dim : {3, 8, 32, 64, 128, 256, 512, 1536}) {
      const Codebook book = make_codebook(CodebookKind::Sphere, bits, dim);
      const std::size_t n = book.centroids.size();
      const std::size_t stride = bits == 8 ? 16 : 1;
      for (std::size_t i = n / 2; i < n; i += stride) {
        const long double a = i == n / 2 ? 0 : book.boundaries[i - 1];
        const long double b = i + 1 == n ? 1 : book.boundaries[i];
        // Simpson over the long last cell of large dimensions is the weaker side of the comparison.
        const double tolerance = i + 1 == n ? 1e-10 : 1e-12;
        const auto mean = static_cast<double>(sphere_cell_mean(a, b, dim));
        EXPECT_NEAR(book.centroids[i], mean, tolerance * mean) << "bits " << bits << " dim " << dim << " centroid " << i;
      }
    }
  }
}

TEST(Codebook, OneBitHasClosedForms) {
  for (const int dim : {3, 8, 64, 100, 1536, 4096}) {
    EXPECT_NEAR(make_codebook(CodebookKind::Gaussian, 1, dim).centroids[1], std::sqrt(2 / (std::numbers::pi * dim)), 1e-14);
    const double mean_abs = std::exp(std::lgamma(dim / 2.0) - std::lgamma((dim + 1) / 2.0)) / std::sqrt(std::numbers::pi);
    EXPECT_NEAR(make_codebook(CodebookKind::Sphere, 1, dim).centroids[1] / mean_abs, 1, dim > 200 ? 1e-11 : 1e-12);
  }
}

// Archimedes: a coordinate on the sphere in R^3 is uniform, and the best quantizer of a uniform is even.
TEST(Codebook, SphereInThreeDimensionsIsUniform) {
  for (int bits = 1; bits <= 8; ++bits) {
    const Codebook book = make_codebook(CodebookKind::Sphere, bits, 3);
    for (std::size_t i = 0; i < book.centroids.size(); ++i) {
      EXPECT_NEAR(book.centroids[i], (2.0 * static_cast<double>(i) + 1) / static_cast<double>(book.centroids.size()) - 1, 1e-12);
    }
    EXPECT_NEAR(codebook_stats(book).entropy_bits, bits, 1e-12);
  }
}

// Max (1960), table I: the optimum quantizer of N(0, 1), as printed there.
TEST(Codebook, GaussianEqualsMaxsTable) {
  const double sigma = 1 / std::sqrt(128.0);
  const Codebook two = make_codebook(CodebookKind::Gaussian, 2, 128);
  EXPECT_NEAR(two.centroids[2] / sigma, 0.4528, 5e-5);
  EXPECT_NEAR(two.centroids[3] / sigma, 1.510, 5e-4);
  EXPECT_NEAR(two.boundaries[2] / sigma, 0.9816, 5e-5);
  const Codebook four = make_codebook(CodebookKind::Gaussian, 4, 128);
  const double expected[] = {0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_NEAR(four.centroids[8 + i] / sigma, expected[i], 5e-4);
}

struct Row {
  int bits;
  double gaussian, d64, d128, d256;
};

TEST(Codebook, ErrorsEqualTheReferenceTable) {
  constexpr Row kRows[] = {{1, 0.3634, 0.3584, 0.3609, 0.3621},
                           {2, 0.1175, 0.1145, 0.1160, 0.1167},
                           {3, 0.03455, 0.0334, 0.0340, 0.0343},
                           {4, 0.009497, 0.0091, 0.0093, 0.0094}};
  for (const Row& row : kRows) {
    EXPECT_NEAR(codebook_stats(make_codebook(CodebookKind::Gaussian, row.bits, 128)).mse, row.gaussian, 0.01 * row.gaussian);
    EXPECT_NEAR(codebook_stats(make_codebook(CodebookKind::Sphere, row.bits, 64)).mse, row.d64, 0.01 * row.d64);
    EXPECT_NEAR(codebook_stats(make_codebook(CodebookKind::Sphere, row.bits, 128)).mse, row.d128, 0.01 * row.d128);
    EXPECT_NEAR(codebook_stats(make_codebook(CodebookKind::Sphere, row.bits, 256)).mse, row.d256, 0.01 * row.d256);
  }
}

TEST(Codebook, ErrorLiesBetweenShannonsAndThePapersBound) {
  for (const CodebookKind kind : kExact) {
    for (int bits = 1; bits <= 8; ++bits) {
      const CodebookStats stats = codebook_stats(make_codebook(kind, bits, 1536));
      EXPECT_GT(stats.mse, stats.shannon_bound);
      EXPECT_LT(stats.mse, stats.paper_bound);
      EXPECT_NEAR(stats.paper_bound / stats.shannon_bound, 2.7207, 1e-4);
    }
  }
}

TEST(Codebook, IndexEntropies) {
  const double expected[] = {1.0, 1.911, 2.825, 3.765};
  for (int bits = 1; bits <= 4; ++bits) {
    EXPECT_NEAR(codebook_stats(make_codebook(CodebookKind::Gaussian, bits, 128)).entropy_bits, expected[bits - 1], 1e-3);
  }
}

// The defining property: coding real random unit vectors costs what the table says, at every bit width.
TEST(Codebook, ErrorOnRandomUnitVectors) {
  std::mt19937_64 generator(1);
  std::normal_distribution<double> normal;
  for (const int dim : {64, 128, 256}) {
    std::vector<double> coordinates;
    for (int vector = 0; vector < 4194304 / dim; ++vector) {
      std::vector<double> x(static_cast<std::size_t>(dim));
      double squares = 0;
      for (double& value : x) {
        value = normal(generator);
        squares += value * value;
      }
      for (const double value : x) coordinates.push_back(value / std::sqrt(squares));
    }
    for (int bits = 1; bits <= 8; ++bits) {
      const Codebook book = make_codebook(CodebookKind::Sphere, bits, dim);
      double error = 0;
      for (const double y : coordinates) {
        const auto index = std::upper_bound(book.boundaries.begin(), book.boundaries.end(), y) - book.boundaries.begin();
        const double difference = y - book.centroids[static_cast<std::size_t>(index)];
        error += difference * difference;
      }
      error *= static_cast<double>(dim) / static_cast<double>(coordinates.size());
      const double expected = codebook_stats(book).mse;
      EXPECT_NEAR(error, expected, 0.01 * expected) << "dim " << dim << " bits " << bits;
    }
  }
}

TEST(Codebook, IsSymmetricAndInterleaved) {
  for (const CodebookKind kind : {CodebookKind::Sphere, CodebookKind::Gaussian, CodebookKind::TurboquantVllm, CodebookKind::Vllm}) {
    for (const int bits : {1, 3, 4, 8}) {
      const Codebook book = make_codebook(kind, bits, 96);
      const std::size_t n = book.centroids.size();
      ASSERT_EQ(book.boundaries.size(), n - 1);
      // The plugin's rule for a value equal to a boundary, see make_codebook.
      EXPECT_EQ(book.boundaries[n / 2 - 1],
                kind == CodebookKind::TurboquantVllm ? static_cast<double>(std::numeric_limits<float>::min()) : 0.0);
      for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(book.centroids[i], -book.centroids[n - 1 - i]);
      for (std::size_t i = 0; i + 1 < n; ++i) {
        EXPECT_LT(book.centroids[i], book.boundaries[i]);
        EXPECT_LT(book.boundaries[i], book.centroids[i + 1]);
      }
    }
  }
}

TEST(Codebook, RefusesWhatItCannotServe) {
  EXPECT_THROW(make_codebook(CodebookKind::Sphere, 0, 128), Error);
  EXPECT_THROW(make_codebook(CodebookKind::Sphere, 9, 128), Error);
  EXPECT_THROW(make_codebook(CodebookKind::Gaussian, 4, 2), Error);
  EXPECT_THROW(codebook_stats(Codebook{}), Error);
}

}  // namespace
}  // namespace tq4
