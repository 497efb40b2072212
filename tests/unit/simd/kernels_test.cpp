// Every SIMD table this processor can run against the scalar reference, kernel by kernel: the same bytes and the same floats, for every
// codec, head dim and bit width, for rows that are ordinary, tiny, huge, zero, or not finite after a transform.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/scalar.h"
#include "cpu/simd_kernels.h"
#include "tq4/codec.h"
#include "tq4/rotation.h"

namespace tq4::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const int kDims[] = {32, 40, 64, 72, 80, 96, 128, 136, 192, 200, 256, 512};
const std::int64_t kRows[] = {1, 3, 4, 15, 16, 17, 41};

std::vector<float> gaussian(std::size_t count, std::uint32_t seed, float sigma = 1.0f) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> v(count);
  for (float& x : v) x = normal(gen);
  return v;
}

/// Rows of very different lengths, some zero, some with values of one sign or one value, some on boundaries of fp16.
std::vector<float> mixed_rows(std::int64_t n, int dim, std::uint32_t seed) {
  std::vector<float> v = gaussian(static_cast<std::size_t>(n * dim), seed);
  const float lengths[] = {1.0f, 0.0f, 1e-3f, 300.0f, 1e-20f, 1e-30f, 70000.0f, 1e12f, 1.0f, 1e-41f};
  for (std::int64_t r = 0; r < n; ++r) {
    float* row = v.data() + r * dim;
    for (int j = 0; j < dim; ++j) row[j] *= lengths[(r + seed) % 10];
    if (r % 7 == 5) std::fill(row, row + dim, row[0]);
    if (r % 7 == 6) std::fill(row + 1, row + dim, -0.0f);
    if (r % 11 == 8) {
      for (int j = 0; j < dim; ++j) row[j] = std::fabs(row[j]);
    }
  }
  return v;
}

struct Planes {
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual;
  Planes(const CodeTables& t, std::int64_t n)
      : codes(static_cast<std::size_t>(n) * t.code_bytes + 8, 0xa5),
        signs(static_cast<std::size_t>(n * t.dim / 8) + 8, 0xa5),
        scale(static_cast<std::size_t>(n) + 1, -7.0f),
        zero(static_cast<std::size_t>(n) + 1, -7.0f),
        residual(static_cast<std::size_t>(n) + 1, -7.0f) {}
  EncodedOut out(const CodeTables& t) {
    return {codes.data(), scale.data(), t.kind == CodeKind::Uniform ? zero.data() : nullptr,
            t.kind == CodeKind::Prod ? signs.data() : nullptr, t.kind == CodeKind::Prod ? residual.data() : nullptr};
  }
  EncodedIn in(const CodeTables& t) const {
    return {codes.data(), scale.data(), t.kind == CodeKind::Uniform ? zero.data() : nullptr,
            t.kind == CodeKind::Prod ? signs.data() : nullptr, t.kind == CodeKind::Prod ? residual.data() : nullptr};
  }
};

/// Equal bits, any NaN equal to any NaN.
::testing::AssertionResult same(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) {
      return ::testing::AssertionFailure() << what << "[" << i << "]: scalar " << a[i] << ", SIMD " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}
::testing::AssertionResult same(const std::vector<std::uint8_t>& a, const std::vector<std::uint8_t>& b, const char* what) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return ::testing::AssertionFailure() << what << "[" << i << "]: scalar " << int{a[i]} << ", SIMD " << int{b[i]};
  }
  return ::testing::AssertionSuccess();
}

/// The tables of a codec with made-up but ascending codebooks: any ascending boundaries have to work.
struct Tables {
  CodeTables t;
  std::vector<float> centroids, boundaries, outlier_centroids, outlier_boundaries, pairs, qjl, qjl_t;
  Tables() = default;
  Tables(const Tables&) = delete;
};

void fill_book(int bits, int dim, std::mt19937& gen, bool odd, std::vector<float>& centroids, std::vector<float>& boundaries) {
  const int count = 1 << bits;
  std::uniform_real_distribution<float> jitter(0.1f, 1.9f);
  centroids.clear();
  float at = 0;
  for (int i = 0; i < count; ++i)
    centroids.push_back(at += odd ? jitter(gen) * jitter(gen) * jitter(gen) : 1.0f + 0.02f * static_cast<float>(std::abs(2 * i - count)));
  const float middle = 0.5f * (centroids.front() + centroids.back()), reach = centroids.back() - middle;
  for (float& c : centroids) c = (c - middle) / reach * 2.7f / std::sqrt(static_cast<float>(dim));
  boundaries.clear();
  for (int i = 0; i + 1 < count; ++i)
    boundaries.push_back(0.5f * (centroids[static_cast<std::size_t>(i)] + centroids[static_cast<std::size_t>(i) + 1]));
}

std::unique_ptr<Tables> make_tables(CodeKind kind, int bits, int dim, bool pairs, bool odd_book, std::uint32_t seed) {
  auto out = std::make_unique<Tables>();
  std::mt19937 gen(seed);
  CodeTables& t = out->t;
  t.kind = kind;
  t.dim = dim;
  t.bits = kind == CodeKind::Fp8 ? 8 : kind == CodeKind::Fp16 ? 16 : bits;
  t.outliers = kind == CodeKind::Mixed ? mixed_outlier_channels(dim) : 0;
  t.code_bytes = static_cast<std::size_t>((dim * t.bits + t.outliers) / 8);
  fill_book(std::min(bits, 8), dim, gen, odd_book, out->centroids, out->boundaries);
  t.centroids = out->centroids.data();
  t.boundaries = out->boundaries.data();
  if (kind == CodeKind::Mixed) {
    fill_book(bits + 1, dim, gen, odd_book, out->outlier_centroids, out->outlier_boundaries);
    t.outlier_centroids = out->outlier_centroids.data();
    t.outlier_boundaries = out->outlier_boundaries.data();
  }
  if (pairs) {
    out->pairs = gaussian(std::size_t{2} << (2 * bits), seed + 1, 1.0f / std::sqrt(static_cast<float>(dim)));
    t.pairs = out->pairs.data();
  }
  if (kind == CodeKind::Prod) {
    const auto d = static_cast<std::size_t>(dim);
    out->qjl = gaussian(d * d, seed + 2);
    out->qjl_t.resize(d * d);
    for (std::size_t i = 0; i < d; ++i) {
      for (std::size_t j = 0; j < d; ++j) out->qjl_t[j * d + i] = out->qjl[i * d + j];
    }
    t.qjl = out->qjl.data();
    t.qjl_t = out->qjl_t.data();
  }
  return out;
}

class Simd : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& simd() const { return *GetParam(); }
  const Kernels& scalar() const { return scalar_kernels(); }

  void expect_same(const CodeTables& t, const std::vector<float>& y, std::int64_t n) {
    SCOPED_TRACE("kind " + std::to_string(static_cast<int>(t.kind)) + " bits " + std::to_string(t.bits) + " dim " + std::to_string(t.dim) +
                 " rows " + std::to_string(n) + " rule " + std::to_string(static_cast<int>(t.scale_rule)) + (t.pairs ? " pairs" : "") +
                 (t.norm_correction ? " corrected" : ""));
    Planes want(t, n), got(t, n);
    scalar().encode(t, y.data(), n, want.out(t));
    simd().encode(t, y.data(), n, got.out(t));
    ASSERT_TRUE(same(want.codes, got.codes, "codes"));
    ASSERT_TRUE(same(want.scale, got.scale, "scale"));
    ASSERT_TRUE(same(want.zero, got.zero, "zero"));
    ASSERT_TRUE(same(want.signs, got.signs, "signs"));
    ASSERT_TRUE(same(want.residual, got.residual, "residual norm"));
    std::vector<float> a(static_cast<std::size_t>(n * t.dim) + 1, -7.0f), b = a;
    scalar().decode(t, want.in(t), n, a.data());
    simd().decode(t, want.in(t), n, b.data());
    ASSERT_TRUE(same(a, b, "decoded"));
  }
};

TEST_P(Simd, MseEveryWidthAndDim) {
  std::uint32_t seed = 0;
  for (const int dim : kDims) {
    for (int bits = 1; bits <= 8; ++bits) {
      for (const bool odd : {false, true}) {
        const auto tables = make_tables(CodeKind::Mse, bits, dim, false, odd, ++seed);
        CodeTables& t = tables->t;
        const std::int64_t n = kRows[seed % 7];
        for (const ScaleRule rule : {ScaleRule::LeastSquares, ScaleRule::Norm, ScaleRule::Unbiased}) {
          t.scale_rule = rule;
          t.scale_dtype = seed % 3 == 0 ? ScaleDType::F32 : ScaleDType::F16;
          t.norm_correction = (seed + static_cast<std::uint32_t>(rule)) % 4 == 0;
          expect_same(t, mixed_rows(n, dim, seed), n);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(Simd, ValuesOnAndBesideBoundaries) {
  // Rows of norm exactly 1, so that z = y, with one coordinate on a boundary or one step of fp32 beside it.
  for (int bits = 1; bits <= 8; ++bits) {
    for (const bool odd : {false, true}) {
      const int dim = 128;
      const auto tables = make_tables(CodeKind::Mse, bits, dim, false, odd, static_cast<std::uint32_t>(bits));
      std::vector<float> y;
      std::size_t on_boundary = 0;
      for (const float boundary : tables->boundaries) {
        for (const float value : {boundary, std::nextafter(boundary, kInf), std::nextafter(boundary, -kInf)}) {
          std::vector<float> row(static_cast<std::size_t>(dim));
          row[77] = value;
          row[5] = std::sqrt(1.0f - value * value);
          for (int step = 0; step < 8 && std::sqrt(dot16(row.data(), row.data(), dim)) != 1.0f; ++step)
            row[5] = std::nextafter(row[5], step < 4 ? 2.0f : 0.0f);
          if (std::sqrt(dot16(row.data(), row.data(), dim)) == 1.0f) ++on_boundary;
          y.insert(y.end(), row.begin(), row.end());
        }
      }
      EXPECT_GT(on_boundary, tables->boundaries.size());  // most rows are what the test wants
      expect_same(tables->t, y, static_cast<std::int64_t>(y.size()) / dim);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Simd, PairCodebooks) {
  for (const int dim : {32, 72, 128}) {
    for (int bits = 2; bits <= 4; ++bits) {
      const auto tables = make_tables(CodeKind::Mse, bits, dim, true, false, static_cast<std::uint32_t>(dim + bits));
      // Two equal points: the lower code must win.
      tables->pairs[6] = tables->pairs[2];
      tables->pairs[7] = tables->pairs[3];
      expect_same(tables->t, mixed_rows(9, dim, static_cast<std::uint32_t>(bits)), 9);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Simd, ProdMixedUniformAndBytes) {
  std::uint32_t seed = 100;
  for (const int dim : kDims) {
    for (const CodeKind kind : {CodeKind::Prod, CodeKind::Mixed, CodeKind::Uniform, CodeKind::Fp8, CodeKind::Fp16}) {
      const bool sized = kind != CodeKind::Fp8 && kind != CodeKind::Fp16;
      const int top = kind == CodeKind::Prod ? 4 : kind == CodeKind::Mixed ? 7 : 8;
      for (int bits = sized ? 1 : 8; bits <= (sized ? top : 8); ++bits) {
        const auto tables = make_tables(kind, bits, dim, false, bits % 2 == 0, ++seed);
        CodeTables& t = tables->t;
        t.fp8 = seed % 2 == 0 ? Fp8Kind::E4M3 : Fp8Kind::E4B15;
        t.scale_dtype = seed % 3 == 0 ? ScaleDType::F32 : ScaleDType::F16;
        const std::int64_t n = kRows[seed % 7];
        expect_same(t, mixed_rows(n, dim, seed), n);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Simd, EveryFp8ValueAndItsNeighbours) {
  for (const Fp8Kind kind : {Fp8Kind::E4M3, Fp8Kind::E4B15}) {
    const auto tables = make_tables(CodeKind::Fp8, 8, 512, false, false, 1);
    tables->t.fp8 = kind;
    std::vector<float> y;
    for (std::uint32_t bits = 0; bits < (1u << 16); ++bits) {  // every value of 7 mantissa bits, and the neighbours that break ties
      for (const std::uint32_t low : {0u, 1u, 0x8000u, 0xffffu}) {
        const float v = std::bit_cast<float>(bits << 16 | low);
        y.push_back(std::isnan(v) ? 1.0f : v);
      }
    }
    expect_same(tables->t, y, static_cast<std::int64_t>(y.size()) / 512);
  }
}

TEST_P(Simd, RowsThatOverflowInTheTransform) {
  for (const CodeKind kind : {CodeKind::Mse, CodeKind::Prod, CodeKind::Mixed}) {
    for (const int dim : {40, 128}) {
      const auto tables = make_tables(kind, 4, dim, false, false, 3);
      std::vector<float> y = mixed_rows(20, dim, 8);
      y[static_cast<std::size_t>(dim) * 2 + 1] = kInf;
      y[static_cast<std::size_t>(dim) * 17 + 5] = std::numeric_limits<float>::quiet_NaN();
      y[static_cast<std::size_t>(dim) * 19 - 1] = 3e38f;
      // What a refused row holds besides its scale is of no interest: compare scales, and everything of the other rows.
      Planes want(tables->t, 20), got(tables->t, 20);
      scalar().encode(tables->t, y.data(), 20, want.out(tables->t));
      simd().encode(tables->t, y.data(), 20, got.out(tables->t));
      EXPECT_TRUE(same(want.scale, got.scale, "scale"));
      EXPECT_TRUE(same(want.codes, got.codes, "codes"));
      EXPECT_FALSE(std::isfinite(got.scale[2]));
      EXPECT_FALSE(std::isfinite(got.scale[17]));
      EXPECT_FALSE(std::isfinite(got.scale[18]));
    }
  }
}

TEST_P(Simd, TransformsBothWays) {
  for (const int dim : kDims) {
    for (const RotationKind kind : {RotationKind::None, RotationKind::Haar, RotationKind::Hadamard, RotationKind::HadamardSigned}) {
      const Rotation rotation = make_rotation(kind, dim, 7);
      std::vector<float> transposed(rotation.matrix.size());
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j)
          transposed[static_cast<std::size_t>(j * dim + i)] = rotation.matrix[static_cast<std::size_t>(i * dim + j)];
      }
      TransformTables t;
      t.kind = kind == RotationKind::None   ? TransformKind::None
               : kind == RotationKind::Haar ? TransformKind::Dense
                                            : TransformKind::Hadamard;
      t.dim = dim;
      t.forward = t.inverse_t = rotation.matrix.data();
      t.forward_t = t.inverse = transposed.data();
      t.signs = kind == RotationKind::HadamardSigned ? rotation.signs.data() : nullptr;
      t.blocks = rotation.blocks.data();
      t.block_count = static_cast<int>(rotation.blocks.size());
      for (const std::int64_t n : kRows) {
        const std::vector<float> x = mixed_rows(n, dim, static_cast<std::uint32_t>(n));
        std::vector<float> a(x.size() + 1, -7.0f), b = a;
        scalar().transform(t, x.data(), n, a.data());
        simd().transform(t, x.data(), n, b.data());
        ASSERT_TRUE(same(a, b, "transform")) << "dim " << dim << " kind " << static_cast<int>(kind) << " rows " << n;
        scalar().inverse_transform(t, x.data(), n, a.data());
        simd().inverse_transform(t, x.data(), n, b.data());
        ASSERT_TRUE(same(a, b, "inverse")) << "dim " << dim << " kind " << static_cast<int>(kind) << " rows " << n;
      }
    }
  }
}

/// The butterflies of a kind and dim; `rotation` owns what they point to.
TransformTables hadamard_tables(const Rotation& rotation) {
  TransformTables f;
  f.kind = TransformKind::Hadamard;
  f.dim = rotation.dim;
  f.signs = rotation.kind == RotationKind::HadamardSigned ? rotation.signs.data() : nullptr;
  f.blocks = rotation.blocks.data();
  f.block_count = static_cast<int>(rotation.blocks.size());
  return f;
}

TEST_P(Simd, TransformAndEncodeInOneCall) {
  std::uint32_t seed = 0;
  for (const int dim : {32, 64, 96, 128, 256}) {
    for (const RotationKind kind : {RotationKind::Hadamard, RotationKind::HadamardSigned}) {
      const Rotation rotation = make_rotation(kind, dim, 7);
      const TransformTables f = hadamard_tables(rotation);
      for (int bits = 1; bits <= 5; ++bits) {
        for (const ScaleRule rule : {ScaleRule::LeastSquares, ScaleRule::Norm, ScaleRule::Unbiased}) {
          for (const std::int64_t n : {1, 7, 8, 9, 12, 19, 41, 86}) {
            ++seed;
            const auto tables = make_tables(CodeKind::Mse, bits, dim, false, seed % 5 == 0, seed);
            CodeTables& t = tables->t;
            t.scale_rule = rule;
            t.scale_dtype = seed % 3 == 0 ? ScaleDType::F32 : ScaleDType::F16;
            std::vector<float> x = seed % 2 == 0 ? mixed_rows(n, dim, seed) : gaussian(static_cast<std::size_t>(n * dim), seed);
            if (seed % 7 == 0) x[x.size() / 2] = 1e5f;  // a row whose coordinates all have nearly the same magnitude
            Planes want(t, n), got(t, n);
            std::vector<float> scratch(x.size());
            scalar().transform_encode(f, t, x.data(), n, scratch.data(), want.out(t));
            simd().transform_encode(f, t, x.data(), n, scratch.data(), got.out(t));
            ASSERT_TRUE(same(want.codes, got.codes, "codes")) << "dim " << dim << " bits " << bits << " rows " << n << " seed " << seed;
            ASSERT_TRUE(same(want.scale, got.scale, "scale")) << "dim " << dim << " bits " << bits << " rows " << n << " seed " << seed;
          }
        }
      }
    }
  }
}

TEST_P(Simd, TransformAndEncodeWithValuesOnBoundaries) {
  // Boundaries taken from the transformed rows themselves, or one step of fp32 beside them, and from a row with a single large value.
  for (const int dim : {64, 128}) {
    const Rotation rotation = make_rotation(RotationKind::Hadamard, dim, 7);
    const TransformTables f = hadamard_tables(rotation);
    const std::int64_t n = 12;
    std::vector<float> x = gaussian(static_cast<std::size_t>(n * dim), static_cast<std::uint32_t>(dim)), y(x.size());
    for (int j = 0; j < dim; ++j) x[static_cast<std::size_t>(3 * dim + j)] = rotation.matrix[static_cast<std::size_t>(17 * dim + j)];
    scalar().transform(f, x.data(), n, y.data());
    int on_boundary = 0;
    for (std::int64_t r = 0; r < n; ++r) {
      const float* row = y.data() + r * dim;
      const float inverse = 1.0f / std::sqrt(dot16(row, row, dim));
      std::vector<float> z(row, row + dim);
      for (float& v : z) v *= inverse;
      std::sort(z.begin(), z.end());
      for (int step = -1; step <= 1; ++step) {
        const auto tables = make_tables(CodeKind::Mse, 4, dim, false, false, 5);
        for (std::size_t i = 0; i < 15; ++i) {
          const float v = z[(2 * i + 1) * z.size() / 30];
          tables->boundaries[i] = step == 0 ? v : std::nextafter(v, step > 0 ? kInf : -kInf);
          on_boundary += step == 0 && std::fabs(v) < 1.0f ? 1 : 0;
        }
        CodeTables& t = tables->t;
        Planes want(t, n), got(t, n);
        std::vector<float> scratch(x.size());
        scalar().transform_encode(f, t, x.data(), n, scratch.data(), want.out(t));
        simd().transform_encode(f, t, x.data(), n, scratch.data(), got.out(t));
        ASSERT_TRUE(same(want.codes, got.codes, "codes")) << "dim " << dim << " row " << r << " step " << step;
        ASSERT_TRUE(same(want.scale, got.scale, "scale")) << "dim " << dim << " row " << r << " step " << step;
      }
    }
    EXPECT_GT(on_boundary, 150);
  }
}

TEST_P(Simd, HadamardBlocksOfAnySize) {
  const int blocks[] = {1, 2, 4, 8, 1, 16, 32, 64};
  const std::vector<float> x = mixed_rows(5, 128, 2);
  TransformTables t;
  t.kind = TransformKind::Hadamard;
  t.dim = 128;
  t.blocks = blocks;
  t.block_count = 8;
  std::vector<float> a(x.size()), b(x.size());
  scalar().transform(t, x.data(), 5, a.data());
  simd().transform(t, x.data(), 5, b.data());
  EXPECT_TRUE(same(a, b, "transform"));
}

TEST_P(Simd, LoadEveryHalfAndBrainFloat) {
  std::vector<std::uint16_t> bits;
  for (std::uint32_t b = 0; b < 65536; ++b) bits.push_back(static_cast<std::uint16_t>(b));
  for (const DType dtype : {DType::F16, DType::BF16}) {
    for (const std::size_t count : {std::size_t{65536}, std::size_t{24}, std::size_t{7}, std::size_t{0}}) {
      std::vector<float> a(count + 1, -7.0f), b = a;
      scalar().load(bits.data(), dtype, count, a.data());
      simd().load(bits.data(), dtype, count, b.data());
      EXPECT_TRUE(same(a, b, "load"));
    }
  }
}

TEST_P(Simd, FindsTheFirstNonfinite) {
  for (const std::size_t count : {std::size_t{1}, std::size_t{63}, std::size_t{1000}, std::size_t{1024}, std::size_t{5000}}) {
    std::vector<float> x = gaussian(count, 5, 1e37f);
    EXPECT_EQ(simd().find_nonfinite(x.data(), count), -1);
    std::mt19937 gen(1);
    for (int trial = 0; trial < 50; ++trial) {
      const std::size_t first = gen() % count, second = first + gen() % (count - first);
      const float keep1 = x[first], keep2 = x[second];
      x[second] = -kInf;
      x[first] = trial % 2 == 0 ? kInf : std::numeric_limits<float>::quiet_NaN();
      EXPECT_EQ(simd().find_nonfinite(x.data(), count), static_cast<std::int64_t>(first));
      x[second] = keep2;
      x[first] = keep1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Simd, ::testing::ValuesIn(supported_simd_kernels()),
                         [](const ::testing::TestParamInfo<const Kernels*>& table) { return std::string(table.param->name); });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Simd);  // no target on this processor: the scalar reference serves it

TEST(SimdChoice, BestTableFirst) {
  const auto& tables = supported_simd_kernels();
  EXPECT_EQ(&simd_kernels(), tables.empty() ? &scalar_kernels() : tables.front());
}

}  // namespace
}  // namespace tq4::cpu
