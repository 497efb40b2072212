// Four-bit floating point: E2M1 values (0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives) in blocks along the head dimension. NVFP4: blocks of 16, E4M3
// scale, one fp32 scale a head. MXFP4: blocks of 32, power-of-two scale (OCP Microscaling 1.0, section 6.3).
#include <algorithm>
#include <array>
#include <cmath>

#include "eval/baselines.h"

namespace tq4::eval {
namespace {

/// Nearest E2M1 value, ties to even mantissa, saturating.
float round_e2m1(float x) {
  constexpr std::array<float, 8> kValues{0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float a = std::fabs(x);
  std::size_t at = 0;
  while (at + 1 < kValues.size()) {
    const float middle = (kValues[at] + kValues[at + 1]) / 2;
    if (a < middle || (a == middle && at % 2 == 0)) break;
    ++at;
  }
  return std::copysign(kValues[at], x);
}

float largest(const float* x, std::int64_t count) {
  float amax = 0;
  for (std::int64_t i = 0; i < count; ++i) amax = std::max(amax, std::fabs(x[i]));
  return amax;
}

class Fp4 final : public Compressor {
 public:
  explicit Fp4(bool nvidia) : nvidia_(nvidia), block_(nvidia ? 16 : 32) {}
  std::string name() const override { return nvidia_ ? "nvfp4" : "mxfp4"; }
  std::string description() const override {
    return nvidia_ ? "E2M1 in blocks of 16 with an E4M3 scale, one fp32 scale a head" : "E2M1 in blocks of 32 with an E8M0 scale";
  }
  std::string source() const override {
    return nvidia_ ? "NVIDIA NVFP4 (arXiv 2509.25149, section 2)" : "OCP Microscaling Formats (MX) 1.0";
  }
  void reconstruct(const HeadVectors& head, float* out) const override {
    const float amax = largest(head.x, head.tokens * head.dim);
    const float tensor_scale = nvidia_ && amax > 0 ? amax / (448.0f * 6.0f) : 1.0f;
    for (std::int64_t t = 0; t < head.tokens; ++t) {
      for (int begin = 0; begin < head.dim; begin += block_) {
        const std::int64_t at = t * head.dim + begin;
        const int count = std::min(block_, head.dim - begin);
        const float scale = block_scale(largest(head.x + at, count), tensor_scale);
        for (int i = 0; i < count; ++i) out[at + i] = scale > 0 ? scale * round_e2m1(head.x[at + i] / scale) : 0.0f;
      }
    }
  }
  Footprint encoded(const HeadVectors& shape) const override {
    Footprint f;
    f.code_bits = static_cast<double>(shape.tokens) * (4.0 * shape.dim + 8.0 * ((shape.dim + block_ - 1) / block_));
    f.constant_bits = nvidia_ ? 32 : 0;
    return f;
  }

 private:
  float block_scale(float amax, float tensor_scale) const {
    if (amax == 0) return 0;
    if (nvidia_) return e4m3_to_float(float_to_e4m3(amax / 6.0f / tensor_scale)) * tensor_scale;
    int exponent = 0;
    std::frexp(amax, &exponent);  // amax = m 2^exponent, m in [0.5, 1)
    return std::ldexp(1.0f, std::clamp(exponent - 1 - 2, -127, 127));
  }
  bool nvidia_;
  int block_;
};

}  // namespace

std::unique_ptr<Compressor> make_fp4(bool nvidia) { return std::make_unique<Fp4>(nvidia); }

}  // namespace tq4::eval
