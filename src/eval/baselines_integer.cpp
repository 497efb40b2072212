// Integer baselines: levels between a group's minimum and maximum (a token, or groups along the head dimension, plain or rotated) and
// llama.cpp's q4_0 and q8_0 blocks.
#include <algorithm>
#include <cmath>
#include <vector>

#include "eval/baselines.h"
#include "tq4/error.h"

namespace tq4::eval {

float to_half(float value) { return half_to_float(float_to_half(std::clamp(value, -65504.0f, 65504.0f))); }

void round_uniform(const float* x, std::int64_t count, std::int64_t stride, int bits, float* out) {
  float lo = x[0], hi = x[0];
  for (std::int64_t i = 1; i < count; ++i) {
    lo = std::min(lo, x[i * stride]);
    hi = std::max(hi, x[i * stride]);
  }
  const float top = static_cast<float>((1 << bits) - 1);
  const float zero = to_half(lo);
  const float scale = to_half((hi - lo) / top);
  for (std::int64_t i = 0; i < count; ++i) {
    const float index = scale > 0 ? std::clamp(std::nearbyint((x[i * stride] - zero) / scale), 0.0f, top) : 0.0f;
    out[i * stride] = zero + scale * index;
  }
}

void hadamard_blocks(float* row, int dim, int block) {
  const float norm = 1.0f / std::sqrt(static_cast<float>(block));
  for (int begin = 0; begin < dim; begin += block) {
    float* x = row + begin;
    for (int h = 1; h < block; h *= 2) {
      for (int i = 0; i < block; i += 2 * h) {
        for (int j = i; j < i + h; ++j) {
          const float a = x[j], b = x[j + h];
          x[j] = a + b;
          x[j + h] = a - b;
        }
      }
    }
    for (int i = 0; i < block; ++i) x[i] *= norm;
  }
}

int power_of_two_divisor(int dim) { return dim & -dim; }

namespace {

/// Works on one token at a time, optionally between a Hadamard rotation and its inverse (itself).
class PerToken : public Compressor {
 public:
  void reconstruct(const HeadVectors& head, float* out) const override {
    const int block = rotation_block(head.side, head.dim);
    std::vector<float> row(static_cast<std::size_t>(head.dim));
    for (std::int64_t t = 0; t < head.tokens; ++t) {
      std::copy_n(head.x + t * head.dim, head.dim, row.data());
      if (block > 1) hadamard_blocks(row.data(), head.dim, block);
      float* to = out + t * head.dim;
      round_row(row.data(), head.dim, to);
      if (block > 1) hadamard_blocks(to, head.dim, block);
    }
  }
  Footprint encoded(const HeadVectors& shape) const override {
    Footprint f;
    f.code_bits = static_cast<double>(shape.tokens) * row_bits(shape.dim);
    return f;
  }

 protected:
  virtual void round_row(const float* row, int dim, float* out) const = 0;
  virtual double row_bits(int dim) const = 0;
  virtual int rotation_block(Side, int) const { return 1; }
};

class Int8PerToken final : public PerToken {
  std::string name() const override { return "int8"; }
  std::string description() const override { return "int8, symmetric, one fp16 scale a token and head"; }
  std::string source() const override { return "absmax rounding, as vLLM int8_per_token_head (which stores the scale in fp32)"; }
  void round_row(const float* row, int dim, float* out) const override {
    float amax = 0;
    for (int i = 0; i < dim; ++i) amax = std::max(amax, std::fabs(row[i]));
    const float scale = to_half(amax / 127.0f);
    for (int i = 0; i < dim; ++i) out[i] = scale > 0 ? scale * std::clamp(std::nearbyint(row[i] / scale), -127.0f, 127.0f) : 0.0f;
  }
  double row_bits(int dim) const override { return 8.0 * dim + 16; }
};

class IntGroups final : public PerToken {
 public:
  IntGroups(int bits, int group, bool rotated) : bits_(bits), group_(group), rotated_(rotated) {}
  std::string name() const override {
    if (group_ == 0) return "int" + std::to_string(bits_);
    return "int" + std::to_string(bits_) + "-g" + std::to_string(group_) + (rotated_ ? "-rot" : "");
  }
  std::string description() const override {
    const std::string group = group_ == 0 ? "a token and head" : "a group of " + std::to_string(group_) + " channels";
    return "int" + std::to_string(bits_) + ", fp16 scale and zero " + group + (rotated_ ? ", after a Hadamard rotation" : "");
  }
  std::string source() const override {
    return rotated_ ? "QuaRot, arXiv 2404.00456 (KV cache: asymmetric, groups of 128)"
                    : "round to nearest between minimum and maximum; FlexGen, arXiv 2303.06865";
  }

 private:
  int size(int dim) const { return group_ == 0 ? dim : std::min(group_, dim); }
  void round_row(const float* row, int dim, float* out) const override {
    for (int begin = 0; begin < dim; begin += size(dim))
      round_uniform(row + begin, std::min(size(dim), dim - begin), 1, bits_, out + begin);
  }
  double row_bits(int dim) const override { return static_cast<double>(bits_) * dim + 32.0 * ((dim + size(dim) - 1) / size(dim)); }
  int rotation_block(Side, int dim) const override { return rotated_ ? power_of_two_divisor(dim) : 1; }
  int bits_, group_;
  bool rotated_;
};

/// Blocks of 32 with one fp16 scale. q4_0: d = (value of largest magnitude) / -8, q = trunc(x / d + 8.5) capped at 15. q8_0: d = amax / 127.
class LlamaBlock final : public PerToken {
 public:
  LlamaBlock(int bits, bool rotated) : bits_(bits), rotated_(rotated) {}
  std::string name() const override { return (bits_ == 4 ? std::string("q4_0") : std::string("q8_0")) + (rotated_ ? "-rot" : ""); }
  std::string description() const override {
    return "blocks of 32 with one fp16 scale, " + std::to_string(bits_) + ".5 bits" +
           (rotated_ ? ", after llama.cpp's Hadamard rotation" : "");
  }
  std::string source() const override {
    return rotated_ ? "llama.cpp pull request 21038 (keys: largest power of two of the head, values: 64)" : "llama.cpp, ggml-quants.c";
  }
  void check(int dim) const override {
    if (dim % 32 != 0) throw Error(ErrorCode::Unsupported, "blocks of 32 do not divide head_dim " + std::to_string(dim), name());
  }

 private:
  void round_row(const float* row, int dim, float* out) const override {
    for (int begin = 0; begin < dim; begin += 32) bits_ == 4 ? round4(row + begin, out + begin) : round8(row + begin, out + begin);
  }
  static float largest(const float* x) {
    float value = 0;
    for (int i = 0; i < 32; ++i) {
      if (std::fabs(x[i]) > std::fabs(value)) value = x[i];
    }
    return value;
  }
  static void round4(const float* x, float* out) {
    const float d = largest(x) / -8.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f, stored = to_half(d);
    for (int i = 0; i < 32; ++i) out[i] = stored * static_cast<float>(std::min(15, static_cast<int>(x[i] * inverse + 8.5f)) - 8);
  }
  static void round8(const float* x, float* out) {
    const float d = std::fabs(largest(x)) / 127.0f;
    const float inverse = d != 0 ? 1.0f / d : 0.0f, stored = to_half(d);
    for (int i = 0; i < 32; ++i) out[i] = stored * std::round(x[i] * inverse);
  }
  double row_bits(int dim) const override { return (bits_ + 0.5) * dim; }
  int rotation_block(Side side, int dim) const override {
    if (!rotated_) return 1;
    const int block = power_of_two_divisor(dim);
    return side == Side::V ? std::min(64, block) : block;
  }
  int bits_;
  bool rotated_;
};

}  // namespace

std::unique_ptr<Compressor> make_int_per_token(int bits) {
  if (bits == 8) return std::make_unique<Int8PerToken>();
  return std::make_unique<IntGroups>(bits, 0, false);
}
std::unique_ptr<Compressor> make_int_groups(int bits, int group, bool rotated) { return std::make_unique<IntGroups>(bits, group, rotated); }
std::unique_ptr<Compressor> make_llama_block(int bits, bool rotated) { return std::make_unique<LlamaBlock>(bits, rotated); }

}  // namespace tq4::eval
