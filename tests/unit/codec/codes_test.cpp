// What the codes and scales mean: stored rows against the definitions of codec.h, the three scale rules, Prod's estimator, Mixed,
// Fp8, Uniform, pair codebooks and norm correction.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <numeric>

#include "core/pack.h"
#include "vectors.h"

namespace tq4 {
namespace {

using test::Planes;

double dot(const float* a, const float* b, int dim) {
  double sum = 0;
  for (int j = 0; j < dim; ++j) sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return sum;
}

SideSpec mse(int bits, ScaleRule rule = ScaleRule::LeastSquares) {
  SideSpec spec;
  spec.bits = bits;
  spec.scale_rule = rule;
  spec.scale_dtype = ScaleDType::F32;
  return spec;
}

TEST(Codes, AreTheCellsOfTheCodebookAtTheirBitOffset) {
  const int dim = 72;
  for (int bits = 1; bits <= 8; ++bits) {
    SideSpec spec = mse(bits, ScaleRule::Norm);
    spec.rotation = RotationKind::None;
    const Codec codec(spec, dim);
    const std::vector<float> x = test::gaussian_vectors(1, dim, 5);
    const Planes planes = test::encode(codec, x);
    const double norm = std::sqrt(dot(x.data(), x.data(), dim));
    EXPECT_NEAR(planes.scale[0], norm, 1e-6 * norm);
    for (int j = 0; j < dim; ++j) {
      int code = 0;  // bit by bit: independent of the packing code
      for (int b = 0; b < bits; ++b) {
        const int bit = j * bits + b;
        code |= (planes.codes[static_cast<std::size_t>(bit / 8)] >> (bit % 8) & 1) << b;
      }
      const auto& bounds = codec.codebook().boundaries;
      const auto expected =
          std::upper_bound(bounds.begin(), bounds.end(), static_cast<double>(x[static_cast<std::size_t>(j)]) / norm) - bounds.begin();
      EXPECT_EQ(code, expected) << "bits " << bits << " coordinate " << j;
    }
  }
}

TEST(Codes, PackingRoundTripsAtEveryWidthAndLength) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (std::size_t count = 0; count < 40; ++count) {
      std::vector<std::uint8_t> codes(count);
      for (std::size_t j = 0; j < count; ++j) codes[j] = static_cast<std::uint8_t>((j * 37 + 11) & ((1u << bits) - 1));
      std::vector<std::uint8_t> packed(core::packed_bytes(count, bits) + 1, 0xcd), back(count, 0xff);
      core::pack_codes(codes.data(), count, bits, packed.data());
      EXPECT_EQ(packed.back(), 0xcd);  // nothing past the end
      core::unpack_codes(packed.data(), count, bits, back.data());
      EXPECT_EQ(codes, back) << bits << " " << count;
    }
  }
  const std::uint8_t codes[] = {1, 2, 3, 4};
  std::uint8_t nibbles[2], low_first[2];
  core::pack_nibbles_high_first(codes, 4, nibbles);
  core::pack_codes(codes, 4, 4, low_first);
  EXPECT_EQ(nibbles[0], 0x12);
  EXPECT_EQ(nibbles[1], 0x34);
  EXPECT_EQ(low_first[0], 0x21);
}

TEST(Scales, LeastSquaresIsTheBestAndUnbiasedGivesTrueInnerProducts) {
  const int dim = 64;
  const std::vector<float> x = test::gaussian_vectors(50, dim, 6);
  for (const int bits : {1, 2, 4}) {
    const Codec best(mse(bits), dim), norm(mse(bits, ScaleRule::Norm), dim), unbiased(mse(bits, ScaleRule::Unbiased), dim);
    const Planes p_best = test::encode(best, x), p_norm = test::encode(norm, x), p_unbiased = test::encode(unbiased, x);
    EXPECT_EQ(p_best.codes, p_norm.codes);
    EXPECT_EQ(p_best.codes, p_unbiased.codes);
    const std::vector<float> b = test::decode(best, p_best, 50), u = test::decode(unbiased, p_unbiased, 50),
                             c = test::decode(norm, p_norm, 50);
    for (int i = 0; i < 50; ++i) {
      const float *xi = x.data() + i * dim, *bi = b.data() + i * dim, *ui = u.data() + i * dim;
      const double energy = dot(xi, xi, dim);
      EXPECT_NEAR(dot(xi, bi, dim), dot(bi, bi, dim), 2e-5 * energy);  // the residual is orthogonal to what is stored
      EXPECT_NEAR(dot(xi, ui, dim), energy, 2e-5 * energy);
      EXPECT_NEAR(p_norm.scale[static_cast<std::size_t>(i)], std::sqrt(energy), 1e-5 * std::sqrt(energy));
    }
    EXPECT_LT(test::relative_error(x, b), test::relative_error(x, c));
    EXPECT_LT(test::relative_error(x, b), test::relative_error(x, u));
  }
}

TEST(Scales, HalfPrecisionRoundsAndClamps) {
  SideSpec spec = mse(4);
  const Codec wide(spec, 64);
  spec.scale_dtype = ScaleDType::F16;
  const Codec narrow(spec, 64);
  std::vector<float> x = test::gaussian_vectors(20, 64, 6);
  for (std::size_t j = 0; j < 64; ++j) x[j] *= 1e6f;
  const Planes a = test::encode(wide, x), b = test::encode(narrow, x);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(b.scale[0], 65504.0f);
  for (std::size_t i = 1; i < 20; ++i) EXPECT_EQ(b.scale[i], half_to_float(float_to_half(a.scale[i])));
}

TEST(Prod, IsUnbiasedAndHasThePapersDistortion) {
  // Inner-product distortion times d (numerics: 0.57, 0.185, 0.0543 at 2, 3, 4 bits), and E <x, x^> = |x|^2, which Mse misses by its distortion.
  const int dim = 128;
  const std::int64_t n = 6000;
  const std::vector<float> x = test::unit_vectors(n, dim, 31), q = test::unit_vectors(n, dim, 32);
  const double expected[] = {0.57, 0.185, 0.0543};
  for (int bits = 2; bits <= 4; ++bits) {
    SideSpec spec = mse(bits, ScaleRule::Norm);
    const Codec plain(spec, dim);
    spec.kind = CodeKind::Prod;
    const Codec prod(spec, dim);
    const std::vector<float> y = test::decode(prod, test::encode(prod, x), n), z = test::decode(plain, test::encode(plain, x), n);
    double squared = 0, self = 0, plain_self = 0, mean = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const float *xi = x.data() + i * dim, *qi = q.data() + i * dim;
      const double error = dot(qi, y.data() + i * dim, dim) - dot(qi, xi, dim);
      squared += error * error;
      mean += error;
      self += dot(xi, y.data() + i * dim, dim);
      plain_self += dot(xi, z.data() + i * dim, dim);
    }
    const double count = static_cast<double>(n);
    std::printf("prod %d bits: distortion x d %.4f (%.4f), <x, x^> %.4f (mse alone %.4f)\n", bits, squared / count * dim,
                expected[bits - 2], self / count, plain_self / count);
    EXPECT_NEAR(squared / count * dim / expected[bits - 2], 1.0, 0.05) << bits;
    EXPECT_LT(std::abs(mean / count), 4 * std::sqrt(squared) / count) << bits;
    EXPECT_NEAR(self / count, 1.0, 0.003) << bits;
    EXPECT_NEAR(plain_self / count, 1.0 - codebook_stats(plain.codebook()).mse, 0.003) << bits;
    EXPECT_NEAR(test::relative_error(x, y) / prod.theoretical_mse(), 1.0, 0.03) << bits;
  }
}

TEST(Mixed, HasTheErrorOfItsTwoCodebooks) {
  SideSpec spec = mse(2, ScaleRule::Norm);
  spec.kind = CodeKind::Mixed;
  spec.rotation = RotationKind::HadamardSigned;
  for (const auto& [bits, expected] : {std::pair{2, 0.0955}, std::pair{3, 0.25 * 0.0093 + 0.75 * 0.0340}}) {
    spec.bits = bits;
    const Codec codec(spec, 128);
    const double error = test::round_trip_error(codec, test::unit_vectors(20000, 128, 3));
    std::printf("mixed %d.5: %.5f (%.5f)\n", bits, error, expected);
    EXPECT_NEAR(error / expected, 1.0, 0.01);
    EXPECT_NEAR(codec.theoretical_mse() / expected, 1.0, 0.01);
  }
}

TEST(Pairs, TheGaussianQuantizerBeatsTheProductByWhatTheoryPromises) {
  const double expected[] = {0.108, 0.0298, 0.0078};
  for (int bits = 2; bits <= 4; ++bits) {
    SideSpec spec = mse(bits, ScaleRule::Norm);
    spec.rotation = RotationKind::HadamardSigned;
    const Codec scalar(spec, 128);
    spec.pair_codebook = true;
    const Codec pairs(spec, 128);
    const std::vector<float> x = test::unit_vectors(4000, 128, 3);
    const double with = test::round_trip_error(pairs, x), without = test::round_trip_error(scalar, x);
    std::printf("pairs %d bits: %.5f, scalar %.5f (%.3f)\n", bits, with, without, with / without);
    EXPECT_NEAR(with / expected[bits - 2], 1.0, 0.03);
    EXPECT_NEAR(pairs.theoretical_mse() / expected[bits - 2], 1.0, 0.02);
    EXPECT_LT(with, 0.95 * without);
  }
}

TEST(Pairs, EveryPairTakesItsNearestPoint) {
  SideSpec spec = mse(3, ScaleRule::Norm);
  spec.rotation = RotationKind::None;
  spec.pair_codebook = true;
  const int dim = 32;
  const Codec codec(spec, dim);
  const std::vector<float> x = test::gaussian_vectors(20, dim, 5), back = test::decode(codec, test::encode(codec, x), 20);
  const auto& points = codec.pair_table().points;
  for (int i = 0; i < 20; ++i) {
    const double norm = std::sqrt(dot(x.data() + i * dim, x.data() + i * dim, dim));
    for (int j = 0; j < dim; j += 2) {
      const auto at = static_cast<std::size_t>(i * dim + j);
      double nearest = 1e9;
      for (std::size_t p = 0; p < points.size(); p += 2) {
        nearest = std::min(
            nearest, std::hypot(x[at] / norm - static_cast<double>(points[p]), x[at + 1] / norm - static_cast<double>(points[p + 1])));
      }
      EXPECT_NEAR(std::hypot(static_cast<double>(x[at] - back[at]), static_cast<double>(x[at + 1] - back[at + 1])) / norm, nearest, 1e-5);
    }
  }
}

TEST(NormCorrection, DecodesToTheStoredNorm) {
  SideSpec spec = mse(3, ScaleRule::Norm);
  spec.norm_correction = true;
  const Codec codec(spec, 64);
  const std::vector<float> x = test::gaussian_vectors(30, 64, 5);
  const Planes planes = test::encode(codec, x);
  const std::vector<float> back = test::decode(codec, planes, 30);
  for (int i = 0; i < 30; ++i)
    EXPECT_NEAR(
        std::sqrt(dot(back.data() + i * 64, back.data() + i * 64, 64)) / static_cast<double>(planes.scale[static_cast<std::size_t>(i)]),
        1.0, 1e-5);
}

TEST(Fp8, BytesAreTheConversionsOfTypes) {
  SideSpec spec = spec_from_name("fp8").k;
  const std::vector<float> x = test::gaussian_vectors(4, 32, 5);
  for (const Fp8Kind kind : {Fp8Kind::E4M3, Fp8Kind::E4B15}) {
    spec.fp8 = kind;
    const Codec codec(spec, 32);
    const Planes planes = test::encode(codec, x);
    const std::vector<float> back = test::decode(codec, planes, 4);
    for (std::size_t i = 0; i < x.size(); ++i) {
      EXPECT_EQ(planes.codes[i], kind == Fp8Kind::E4M3 ? float_to_e4m3(x[i]) : float_to_e4b15(x[i]));
      EXPECT_EQ(back[i], kind == Fp8Kind::E4M3 ? e4m3_to_float(planes.codes[i]) : e4b15_to_float(planes.codes[i]));
    }
  }
}

TEST(Fp16, PassesHalvesThroughAndSaturates) {
  const Codec codec(spec_from_name("fp16").k, 32);
  std::vector<float> x = test::gaussian_vectors(1, 32, 5);
  for (float& v : x) v = half_to_float(float_to_half(v));
  EXPECT_EQ(test::decode(codec, test::encode(codec, x), 1), x);
  x[3] = -1e6f;
  EXPECT_EQ(test::decode(codec, test::encode(codec, x), 1)[3], -65504.0f);
}

TEST(Uniform, ErrorsStayWithinHalfAStep) {
  for (int bits = 2; bits <= 8; ++bits) {
    SideSpec spec;
    spec.kind = CodeKind::Uniform;
    spec.bits = bits;
    spec.rotation = RotationKind::None;
    spec.scale_dtype = ScaleDType::F32;
    const Codec codec(spec, 64);
    const std::vector<float> x = test::gaussian_vectors(10, 64, 5);
    const Planes planes = test::encode(codec, x);
    const std::vector<float> back = test::decode(codec, planes, 10);
    for (std::size_t i = 0; i < 10; ++i) {
      const auto [lo, hi] = std::minmax_element(x.begin() + static_cast<long>(i) * 64, x.begin() + static_cast<long>(i + 1) * 64);
      EXPECT_EQ(planes.zero[i], *lo);
      EXPECT_FLOAT_EQ(planes.scale[i], (*hi - *lo) / static_cast<float>((1 << bits) - 1));
      for (std::size_t j = 0; j < 64; ++j) EXPECT_LE(std::abs(x[i * 64 + j] - back[i * 64 + j]), planes.scale[i] * 0.5001f);
    }
  }
}

}  // namespace
}  // namespace tq4
