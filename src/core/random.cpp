// Seeded random numbers; see random.h. The torch sequence follows PyTorch's documented CPU behaviour: mt19937, 24-bit uniforms, and for
// 16 elements or more Box-Muller on (j, j + 8) of every block of 16, the last block drawn anew where count is no multiple of 16.
#include "core/random.h"

#include <bit>
#include <cmath>
#include <numbers>
#include <random>

#include "tq4/error.h"

namespace tq4::core {

std::uint64_t SplitMix64::next() noexcept {
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

NormalGenerator::NormalGenerator(std::uint64_t seed) : s_{} {
  SplitMix64 mix(seed);
  for (std::uint64_t& s : s_) s = mix.next();
}

std::uint64_t NormalGenerator::word() noexcept {
  const std::uint64_t result = std::rotl(s_[1] * 5u, 7) * 9u;
  const std::uint64_t t = s_[1] << 17;
  s_[2] ^= s_[0];
  s_[3] ^= s_[1];
  s_[1] ^= s_[2];
  s_[0] ^= s_[3];
  s_[2] ^= t;
  s_[3] = std::rotl(s_[3], 45);
  return result;
}

double NormalGenerator::next() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  for (;;) {
    // 53-bit uniforms on a symmetric grid that does not contain 0: (2k + 1) / 2^53 - 1.
    const double u = static_cast<double>((word() >> 12) * 2 + 1) * 0x1p-52 - 1.0;
    const double v = static_cast<double>((word() >> 12) * 2 + 1) * 0x1p-52 - 1.0;
    const double s = u * u + v * v;
    if (s >= 1.0) continue;
    const double factor = std::sqrt(-2.0 * portable_log(s) / s);
    spare_ = v * factor;
    has_spare_ = true;
    return u * factor;
  }
}

double portable_log(double x) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = std::bit_cast<double>((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (mantissa > std::numbers::sqrt2) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh(s), |s| <= 0.172: twelve terms leave 1e-19.
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double z = s * s;
  double series = 0;
  for (int k = 23; k >= 1; k -= 2) series = series * z + 1.0 / k;
  return 2.0 * s * series + exponent * std::numbers::ln2;
}

std::vector<float> torch_randn(std::uint64_t seed, std::size_t count) {
  constexpr std::size_t kBlock = 16;
  if (count < kBlock) throw Error(ErrorCode::Unsupported, "torch_randn serves 16 elements or more");
  std::mt19937 generator(static_cast<std::uint32_t>(seed));
  auto uniform = [&generator] { return static_cast<float>(generator() & 0xffffffu) * 0x1p-24f; };
  auto box_muller = [](float* block) {
    for (std::size_t j = 0; j < kBlock / 2; ++j) {
      const float u1 = 1.0f - block[j];
      const float u2 = block[j + kBlock / 2];
      const float radius = std::sqrt(-2.0f * std::log(u1));
      const float theta = 2.0f * std::numbers::pi_v<float> * u2;
      block[j] = radius * std::cos(theta);
      block[j + kBlock / 2] = radius * std::sin(theta);
    }
  };
  std::vector<float> values(count);
  for (float& value : values) value = uniform();
  for (std::size_t i = 0; i + kBlock <= count; i += kBlock) box_muller(values.data() + i);
  if (count % kBlock != 0) {
    float* last = values.data() + (count - kBlock);
    for (std::size_t j = 0; j < kBlock; ++j) last[j] = uniform();
    box_muller(last);
  }
  return values;
}

}  // namespace tq4::core
