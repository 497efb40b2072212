// Seeded generators: published first outputs, moments, and PyTorch's well-known first values.
#include "core/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>

#include "tq4/error.h"

namespace tq4::core {
namespace {

TEST(Random, SplitMixGivesItsPublishedSequence) {
  SplitMix64 mix(0);
  EXPECT_EQ(mix.next(), 0xe220a8397b1dcdafu);
  EXPECT_EQ(mix.next(), 0x6e789e6aa1b965f4u);
  EXPECT_EQ(mix.next(), 0x06c45d188009454fu);
}

TEST(Random, PortableLogIsALogarithm) {
  for (double x = 1e-300; x < 1e300; x *= 1.7) EXPECT_NEAR(portable_log(x), std::log(x), 4e-16 * std::abs(std::log(x)) + 1e-16) << x;
  for (double x = 0.5; x < 2; x += 0.001) EXPECT_NEAR(portable_log(x), std::log(x), 3e-16) << x;
  EXPECT_EQ(portable_log(1.0), 0.0);
}

TEST(Random, NormalsHaveNormalMoments) {
  NormalGenerator normal(42);
  constexpr int kCount = 1000000;
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, beyond3 = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = normal.next();
    m1 += x;
    m2 += x * x;
    m3 += x * x * x;
    m4 += x * x * x * x;
    beyond3 += std::abs(x) > 3 ? 1 : 0;
  }
  EXPECT_NEAR(m1 / kCount, 0, 0.004);
  EXPECT_NEAR(m2 / kCount, 1, 0.006);
  EXPECT_NEAR(m3 / kCount, 0, 0.016);
  EXPECT_NEAR(m4 / kCount, 3, 0.04);
  EXPECT_NEAR(beyond3 / kCount, 0.0027, 0.0002);
}

TEST(Random, SeedsGiveDifferentNormals) {
  NormalGenerator a(1), b(2), again(1);
  const double first = a.next();
  EXPECT_NE(first, b.next());
  EXPECT_EQ(first, again.next());
}

TEST(Random, TorchSequence) {
  const float seed42[] = {1.9269f, 1.4873f, 0.9007f, -2.1055f, 0.6784f, -1.2345f, -0.0431f, -1.6047f};
  const float seed0[] = {-1.1258f, -1.1524f, -0.2506f, -0.4339f, 0.8487f, 0.6920f, -0.3160f, -2.1152f};
  const auto a = torch_randn(42, 64), b = torch_randn(0, 64);
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(a[i], seed42[i], 6e-5);
    EXPECT_NEAR(b[i], seed0[i], 6e-5);
  }
}

TEST(Random, TorchRedrawsTheLastBlock) {
  const auto whole = torch_randn(7, 32), odd = torch_randn(7, 20);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(odd[i], whole[i]);
  for (std::size_t i = 4; i < 16; ++i) EXPECT_NE(odd[i], whole[i]);
  EXPECT_THROW(torch_randn(7, 15), Error);
}

}  // namespace
}  // namespace tq4::core
