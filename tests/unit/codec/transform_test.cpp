// Head transforms (calibrated matrices, centres, centres before RoPE), rotated space, and the look-ups of a calibration.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tq4/calibration.h"
#include "tq4/error.h"
#include "vectors.h"

namespace tq4 {
namespace {

constexpr int kDim = 64;

SideSpec wide(int bits = 8) {
  SideSpec spec;
  spec.bits = bits;
  spec.scale_dtype = ScaleDType::F32;
  return spec;
}

/// m [kDim, kDim] times v.
std::vector<float> times(const std::vector<float>& m, const float* v) {
  std::vector<float> out(kDim);
  for (int i = 0; i < kDim; ++i) {
    double sum = 0;
    for (int j = 0; j < kDim; ++j) sum += static_cast<double>(m[static_cast<std::size_t>(i * kDim + j)]) * static_cast<double>(v[j]);
    out[static_cast<std::size_t>(i)] = static_cast<float>(sum);
  }
  return out;
}

TEST(Transform, RotatedSpaceIsTheRotationTimesTheVector) {
  for (const RotationKind kind : {RotationKind::None, RotationKind::Haar, RotationKind::Hadamard, RotationKind::HadamardSigned}) {
    SideSpec spec = wide();
    spec.rotation = kind;
    const Codec codec(spec, kDim);
    const std::vector<float> x = test::gaussian_vectors(10, kDim, 5);
    const test::Planes planes = test::encode(codec, x);
    std::vector<float> y(x.size());
    codec.decode_rotated(planes.in(), 10, y.data());
    for (int i = 0; i < 10; ++i) {
      const std::vector<float> exact = times(codec.rotation().matrix, x.data() + i * kDim);
      double error = 0, energy = 0;
      for (std::size_t j = 0; j < kDim; ++j) {
        const double d = static_cast<double>(exact[j]) - static_cast<double>(y[static_cast<std::size_t>(i * kDim) + j]);
        error += d * d;
        energy += static_cast<double>(exact[j]) * static_cast<double>(exact[j]);
      }
      EXPECT_LT(error / energy, 1e-4);
    }
    EXPECT_LT(test::round_trip_error(codec, x), 1e-4);
  }
}

TEST(Transform, CentresAreSubtractedAndAddedBack) {
  const Codec codec(wide(3), kDim);
  const std::vector<float> x = test::gaussian_vectors(40, kDim, 5),
                           centre(kDim, 2.5f);  // 2.5 and x - 2.5 + 2.5 are exact enough to compare bytes
  std::vector<float> halves = x, shifted = x;
  for (std::size_t i = 0; i < x.size(); ++i) {
    halves[i] = std::round(x[i] * 1024.0f) / 1024.0f;
    shifted[i] = halves[i] + 2.5f;
  }
  HeadTransform transform;
  transform.centre = centre.data();
  const test::Planes planes = test::encode(codec, shifted, transform);
  EXPECT_TRUE(planes == test::encode(codec, halves));
  const std::vector<float> back = test::decode(codec, planes, 40, transform), plain = test::decode(codec, planes, 40);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(back[i], plain[i] + 2.5f);
}

TEST(Transform, MatricesOfAHeadReplaceTheRotation) {
  // forward = R A with A = diag(a); inverse = A^-1 R^T. With R the codec's own rotation, encoding x is encoding A x plainly.
  const Codec codec(wide(3), kDim);
  const std::vector<float>& r = codec.rotation().matrix;
  std::vector<float> forward(r.size()), inverse(r.size());
  for (int i = 0; i < kDim; ++i) {
    for (int j = 0; j < kDim; ++j) {
      const float a = 1.0f + 0.25f * static_cast<float>(j % 4);
      forward[static_cast<std::size_t>(i * kDim + j)] = r[static_cast<std::size_t>(i * kDim + j)] * a;
      inverse[static_cast<std::size_t>(j * kDim + i)] = r[static_cast<std::size_t>(i * kDim + j)] / a;
    }
  }
  HeadTransform transform;
  transform.forward = forward.data();
  transform.inverse = inverse.data();
  const std::vector<float> x = test::gaussian_vectors(64, kDim, 5);
  std::vector<float> scaled = x;
  for (std::size_t i = 0; i < x.size(); ++i) scaled[i] *= 1.0f + 0.25f * static_cast<float>(i % kDim % 4);
  std::vector<float> back = test::decode(codec, test::encode(codec, x, transform), 64, transform);
  for (std::size_t i = 0; i < x.size(); ++i) back[i] *= 1.0f + 0.25f * static_cast<float>(i % kDim % 4);
  EXPECT_LT(test::relative_error(scaled, back), 0.04);
  EXPECT_NEAR(test::relative_error(scaled, back) / test::round_trip_error(codec, scaled), 1.0, 1e-3);

  // A forward matrix alone is taken to be orthogonal.
  const Rotation other = make_rotation(RotationKind::Haar, kDim, 99);
  HeadTransform orthogonal;
  orthogonal.forward = other.matrix.data();
  SideSpec spec = wide(3);
  spec.seed = 99;
  const Codec same(spec, kDim);
  const test::Planes planes = test::encode(codec, x, orthogonal);
  EXPECT_TRUE(planes == test::encode(same, x));
  EXPECT_EQ(test::decode(codec, planes, 64, orthogonal), test::decode(same, planes, 64));
}

TEST(Transform, CentreBeforeRopeTurnsWithThePosition) {
  const Codec codec(wide(), kDim);
  const int rope_dim = 48, half = 24;
  const double theta = 10000;
  const std::vector<float> mu = test::gaussian_vectors(1, kDim, 77);
  const std::int64_t n = 300, position0 = 70000;
  // Keys that are nothing but their turned mean: what is left to encode is rounding, and decoding gives the mean back.
  std::vector<float> x(static_cast<std::size_t>(n) * kDim);
  for (std::int64_t i = 0; i < n; ++i) {
    float* row = x.data() + i * kDim;
    for (int j = 0; j < half; ++j) {
      const double angle = static_cast<double>(position0 + i) / std::pow(theta, 2.0 * j / rope_dim);
      const double a = static_cast<double>(mu[static_cast<std::size_t>(j)]),
                   b = static_cast<double>(mu[static_cast<std::size_t>(j + half)]);
      row[j] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      row[j + half] = static_cast<float>(b * std::cos(angle) + a * std::sin(angle));
    }
    for (int j = rope_dim; j < kDim; ++j) row[j] = mu[static_cast<std::size_t>(j)];
  }
  HeadTransform transform;
  transform.rope_mu = mu.data();
  transform.rope_theta = theta;
  transform.rope_dim = rope_dim;
  transform.position0 = position0;
  const test::Planes planes = test::encode(codec, x, transform);
  for (const float scale : planes.scale) EXPECT_LT(scale, 1e-5f);
  const std::vector<float> back = test::decode(codec, planes, n, transform);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 1e-5f);
  // The position counts from the start of the call.
  HeadTransform later = transform;
  later.position0 = position0 + 200;
  const test::Planes tail = test::encode(codec, std::vector<float>(x.begin() + 200 * kDim, x.end()), later);
  EXPECT_TRUE(std::equal(tail.codes.begin(), tail.codes.end(), planes.codes.begin() + 200 * kDim));

  transform.rope_dim = kDim + 2;
  EXPECT_THROW(test::encode(codec, x, transform), Error);
  transform.rope_dim = rope_dim;
  transform.rope_theta = 0;
  EXPECT_THROW(test::encode(codec, x, transform), Error);
}

TEST(Calibration, FindsLayersAndSlicesHeads) {
  Calibration calibration;
  LayerCalibration layer;
  layer.layer = 5;
  layer.num_kv_heads = 2;
  layer.head_dim = 32;
  layer.rope_theta = 1e6;
  layer.rope_dim = 32;
  layer.k.forward.resize(2 * 32 * 32);
  layer.k.inverse.resize(2 * 32 * 32);
  layer.k.rope_mu.resize(2 * 32);
  layer.v.centre.resize(2 * 32);
  calibration.layers.push_back(layer);
  EXPECT_EQ(calibration.find(4), nullptr);
  const LayerCalibration* found = calibration.find(5);
  ASSERT_NE(found, nullptr);
  const HeadTransform k = head_transform(found, Side::K, 1, 40), v = head_transform(found, Side::V, 1, 40);
  EXPECT_EQ(k.forward, found->k.forward.data() + 1024);
  EXPECT_EQ(k.inverse, found->k.inverse.data() + 1024);
  EXPECT_EQ(k.centre, nullptr);
  EXPECT_EQ(k.rope_mu, found->k.rope_mu.data() + 32);
  EXPECT_EQ(k.rope_dim, 32);
  EXPECT_EQ(k.position0, 40);
  EXPECT_EQ(v.forward, nullptr);
  EXPECT_EQ(v.centre, found->v.centre.data() + 32);
  EXPECT_EQ(v.rope_mu, nullptr);
  EXPECT_EQ(head_transform(nullptr, Side::K, 3).forward, nullptr);
  EXPECT_THROW(head_transform(found, Side::K, 2), Error);
  calibration.layers[0].v.centre.pop_back();
  EXPECT_THROW(head_transform(&calibration.layers[0], Side::V, 0), Error);
}

}  // namespace
}  // namespace tq4
