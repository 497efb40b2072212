// The error of every codec on random unit vectors against theory: the exact Lloyd-Max distortion, not a bound.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <numbers>
#include <string>

#include "vectors.h"

namespace tq4 {
namespace {

using test::round_trip_error;
using test::unit_vectors;

struct Case {
  int dim, bits;
};

class Distortion : public testing::TestWithParam<Case> {};

// 2.4 million coordinates (8 million from 6 bits on, where few coordinates in the tails carry much of the error): the statistical error is
// 0.1% to 0.2%.
TEST_P(Distortion, MseIsTheLloydMaxErrorAtBothScaleRules) {
  const auto [dim, bits] = GetParam();
  for (const ScaleRule rule : {ScaleRule::Norm, ScaleRule::LeastSquares}) {
    SideSpec spec;
    spec.bits = bits;
    spec.scale_rule = rule;
    spec.scale_dtype = ScaleDType::F32;
    spec.rotation = RotationKind::HadamardSigned;  // random vectors need no rotation; the butterflies keep this quick
    const Codec codec(spec, dim);
    const double theory = codec.theoretical_mse();
    const double error = round_trip_error(codec, unit_vectors((rule != ScaleRule::Norm ? 400000
                                                               : bits < 6              ? 2400000
                                                                                       : 8000000) /
                                                                  dim,
                                                              dim, 7u));
    if (rule == ScaleRule::Norm) {
      EXPECT_NEAR(error / theory, 1.0, 0.01) << "dim " << dim << " bits " << bits << ": " << error << " against " << theory;
    } else {
      // Least squares can only be better, by about the relative variance of |c|^2, which falls with bits and dim.
      EXPECT_LT(error / theory, 1.01) << "dim " << dim << " bits " << bits;
      EXPECT_GT(error / theory, 1.0 - 3.0 / dim - 0.01) << "dim " << dim << " bits " << bits;
    }
    std::printf("dim %3d bits %d %-13s %.6f / %.6f = %.4f\n", dim, bits, rule == ScaleRule::Norm ? "norm" : "least squares", error, theory,
                error / theory);
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int dim : {32, 64, 80, 96, 128, 192, 256}) {
    for (int bits = 1; bits <= 8; ++bits) all.push_back({dim, bits});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(EveryBitWidth, Distortion, testing::ValuesIn(cases()),
                         [](const auto& p) { return "d" + std::to_string(p.param.dim) + "b" + std::to_string(p.param.bits); });

}  // namespace
}  // namespace tq4
