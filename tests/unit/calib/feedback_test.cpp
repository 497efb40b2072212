// Coding with feedback: SIMD gives the scalar reference's bytes, and the error in the metric it minimises is the smaller for it.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/linalg.h"
#include "tq4/codec.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

std::vector<float> gaussian(std::size_t n, unsigned seed) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(n);
  for (float& x : v) x = normal(gen);
  return v;
}

/// Equal-pivot tables for independent coordinates of variances v[k] = e^(-slope k): forward = factor^-1 basis^T, inverse = basis factor.
struct Tables {
  std::vector<float> forward, inverse, feedback;
  std::vector<double> variances;
  HeadTransform transform() const {
    HeadTransform t;
    t.forward = forward.data();
    t.inverse = inverse.data();
    t.feedback = feedback.data();
    return t;
  }
};
Tables make(int dim, double slope) {
  Tables t;
  for (int k = 0; k < dim; ++k) t.variances.push_back(std::exp(-slope * k));
  const core::EqualPivots p = core::equal_pivots(t.variances);
  const core::Matrix forward = core::multiply(core::inverse(p.factor, dim), core::transpose(p.basis, dim), dim),
                     inverse = core::multiply(p.basis, p.factor, dim);
  t.forward.assign(forward.begin(), forward.end());
  t.inverse.assign(inverse.begin(), inverse.end());
  t.feedback.assign(p.factor.begin(), p.factor.end());
  for (int i = 0; i < dim; ++i) t.feedback[static_cast<std::size_t>(i * dim + i)] = 0;
  return t;
}

struct Coded {
  std::vector<std::uint8_t> codes;
  std::vector<float> scale, decoded;
};
Coded roundtrip(const Codec& codec, const std::vector<float>& x, const HeadTransform& transform, bool scalar) {
  const auto dim = static_cast<std::size_t>(codec.head_dim());
  const auto n = static_cast<std::int64_t>(x.size() / dim);
  Coded c{std::vector<std::uint8_t>(static_cast<std::size_t>(n) * codec.code_bytes()), std::vector<float>(static_cast<std::size_t>(n)),
          std::vector<float>(x.size())};
  Exec exec;
  exec.scalar = scalar;
  EncodedOut out;
  out.codes = c.codes.data();
  out.scale = c.scale.data();
  codec.encode(x.data(), DType::F32, n, out, transform, exec);
  EncodedIn in;
  in.codes = c.codes.data();
  in.scale = c.scale.data();
  codec.decode(in, n, c.decoded.data(), transform, exec);
  return c;
}

TEST(Feedback, SimdGivesTheScalarBytes) {
  for (const int dim : {32, 40, 64, 128, 256}) {
    const Tables tables = make(dim, 4.0 / dim);
    std::vector<float> x = gaussian(static_cast<std::size_t>(37 * dim), static_cast<unsigned>(dim));
    for (int j = 0; j < dim; ++j) x[static_cast<std::size_t>(5 * dim + j)] = 0;        // a zero vector
    for (int j = 0; j < dim; ++j) x[static_cast<std::size_t>(6 * dim + j)] *= 1e-18f;  // and one whose scale underflows fp16
    for (const int bits : {1, 2, 3, 4, 6}) {
      for (const bool pairs : {false, true}) {
        if (pairs && (bits < 2 || bits > 4)) continue;
        for (const ScaleRule rule : {ScaleRule::LeastSquares, ScaleRule::Norm, ScaleRule::Unbiased}) {
          SideSpec spec;
          spec.bits = bits;
          spec.pair_codebook = pairs;
          spec.scale_rule = rule;
          const Codec codec(spec, dim);
          const Coded a = roundtrip(codec, x, tables.transform(), true), b = roundtrip(codec, x, tables.transform(), false);
          EXPECT_EQ(a.codes, b.codes) << dim << ' ' << bits << ' ' << pairs;
          EXPECT_EQ(a.scale, b.scale) << dim << ' ' << bits << ' ' << pairs;
          EXPECT_EQ(a.decoded, b.decoded) << dim << ' ' << bits << ' ' << pairs;
        }
      }
    }
  }
}

TEST(Feedback, ReachesTheGeometricMean) {
  constexpr int kDim = 128;
  const Tables tables = make(kDim, 0.03);  // variances over a range of 45, mean 1.7 times their geometric mean
  std::vector<float> x = gaussian(2000 * kDim, 1);
  double mean = 0, geometric = 0;
  for (int k = 0; k < kDim; ++k) {
    mean += tables.variances[static_cast<std::size_t>(k)] / kDim;
    geometric += std::log(tables.variances[static_cast<std::size_t>(k)]) / kDim;
  }
  geometric = std::exp(geometric);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(std::sqrt(tables.variances[i % kDim]));
  const Codec codec(SideSpec{}, kDim);
  const auto error = [&](const HeadTransform& transform) {
    const Coded c = roundtrip(codec, x, transform, false);
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += (x[i] - c.decoded[i]) * (x[i] - c.decoded[i]);
    return sum / static_cast<double>(x.size());
  };
  HeadTransform open = tables.transform();
  open.feedback = nullptr;
  const double with = error(tables.transform()), plain = error({}), without = error(open);
  EXPECT_LT(with, plain * 1.25 * geometric / mean);  // the theory's gain but for the noise that prediction works on
  EXPECT_GT(with, plain * 0.9 * geometric / mean);
  EXPECT_GT(without, 0.9 * with * mean / geometric);  // errors that are not fed back are amplified by the inverse: back to the mean
}

TEST(Feedback, RefusesWhatItCannotServe) {
  const Tables tables = make(64, 0.02);
  const std::vector<float> x = gaussian(64, 3);
  SideSpec mixed;
  mixed.kind = CodeKind::Mixed;
  mixed.bits = 2;
  EXPECT_THROW(roundtrip(Codec(mixed, 64), x, tables.transform(), false), Error);
  HeadTransform bare = tables.transform();
  bare.forward = nullptr;
  EXPECT_THROW(roundtrip(Codec(SideSpec{}, 64), x, bare, false), Error);
}

}  // namespace
}  // namespace tq4
