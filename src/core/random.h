// Seeded random numbers whose bits do not depend on the CPU, the compiler or the C library: only integer operations and IEEE double
// additions, multiplications, divisions and square roots are used (no libm, no contraction). Internal to core and cpu.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tq4::core {

/// SplitMix64 (Steele, Lea, Flood 2014): turns a seed into a sequence of well-mixed words.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() noexcept;

 private:
  std::uint64_t state_;
};

/// Standard normals: xoshiro256** (Blackman and Vigna 2018, state from SplitMix64) through Marsaglia's polar method with a series
/// logarithm of our own. Values are good to 1e-15 and identical everywhere.
class NormalGenerator {
 public:
  explicit NormalGenerator(std::uint64_t seed);
  double next();

 private:
  std::uint64_t word() noexcept;
  std::uint64_t s_[4];
  double spare_ = 0;
  bool has_spare_ = false;
};

/// Natural logarithm of a positive normal double from additions, multiplications and one division.
double portable_log(double x) noexcept;

/// torch.randn(count) of PyTorch's CPU generator after manual_seed(seed), float32, count >= 16 (its vectorised fill: uniforms first,
/// then Box-Muller on blocks of 16). Equal to PyTorch's values to float rounding.
std::vector<float> torch_randn(std::uint64_t seed, std::size_t count);

}  // namespace tq4::core
