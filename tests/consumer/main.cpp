// The library example of the README: encode vectors, decode them, compare the error with the theory. Built against the installed package.
#include <tq4/codec.h>
#include <tq4/error.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  constexpr int dim = 128;
  constexpr std::int64_t n = 4096;
  const tq4::CodecSpec spec = tq4::spec_from_name("k4v3");
  const tq4::Codec codec(spec.v, dim);  // 3-bit values: codebook and rotation are computed here, once

  std::vector<float> x(n * dim), back(n * dim);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);

  std::vector<std::uint8_t> codes(n * codec.code_bytes());
  std::vector<float> scale(n);
  codec.encode(x.data(), tq4::DType::F32, n, {.codes = codes.data(), .scale = scale.data()});
  codec.decode({.codes = codes.data(), .scale = scale.data()}, n, back.data());

  double error = 0, energy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - back[i]) * (x[i] - back[i]);
    energy += x[i] * x[i];
  }
  std::printf("%zu bytes a vector, relative squared error %.5f, theory %.5f\n", codec.vector_bytes(), error / energy,
              codec.theoretical_mse());

  try {
    (void)tq4::spec_from_name("tq44");
    return 1;
  } catch (const tq4::Error& refused) {
    std::printf("%s\n", refused.what());
  }
  return std::abs(error / energy / codec.theoretical_mse() - 1) < 0.02 ? 0 : 1;
}
