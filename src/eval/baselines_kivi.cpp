// KIVI (arXiv 2402.02750): keys quantized a channel over groups of tokens, values a token over groups of channels, the newest tokens in
// fp16. Keys leave the residual a whole `residual` at a time, values one by one.
#include <algorithm>

#include "eval/baselines.h"

namespace tq4::eval {
namespace {

class Kivi final : public Compressor {
 public:
  Kivi(int bits, int group, int residual) : bits_(bits), group_(group), residual_(residual) {}

  std::string name() const override {
    return "kivi" + std::to_string(bits_) + (group_ != 32 ? "-g" + std::to_string(group_) : "") +
           (residual_ > 0 ? "-r" + std::to_string(residual_) : "");
  }
  std::string description() const override {
    return "int" + std::to_string(bits_) + ", keys a channel over " + std::to_string(group_) + " tokens, values a token over " +
           std::to_string(group_) + " channels, fp16 scale and zero" +
           (residual_ > 0 ? ", newest " + std::to_string(residual_) + " tokens in fp16" : ", no residual window");
  }
  std::string source() const override { return "KIVI, arXiv 2402.02750 (Algorithm 1)"; }

  void reconstruct(const HeadVectors& head, float* out) const override {
    if (head.side == Side::K) {
      for (std::int64_t begin = 0; begin < head.tokens; begin += group_) {
        const std::int64_t count = std::min<std::int64_t>(group_, head.tokens - begin);
        for (int c = 0; c < head.dim; ++c) {
          const std::int64_t at = begin * head.dim + c;
          round_uniform(head.x + at, count, head.dim, bits_, out + at);
        }
      }
      return;
    }
    for (std::int64_t t = 0; t < head.tokens; ++t) {
      for (int begin = 0; begin < head.dim; begin += group_) {
        const std::int64_t at = t * head.dim + begin;
        round_uniform(head.x + at, std::min(group_, head.dim - begin), 1, bits_, out + at);
      }
    }
  }

  Footprint encoded(const HeadVectors& shape) const override {
    const double groups = shape.side == Side::K ? static_cast<double>((shape.tokens + group_ - 1) / group_) * shape.dim
                                                : static_cast<double>(shape.tokens) * ((shape.dim + group_ - 1) / group_);
    Footprint f;
    f.code_bits = static_cast<double>(shape.tokens) * shape.dim * bits_ + 32.0 * groups;
    return f;
  }

  ExactTokens exact(Side side) const override {
    ExactTokens tokens;
    (side == Side::K ? tokens.block : tokens.window) = residual_;
    return tokens;
  }

 private:
  int bits_, group_, residual_;
};

}  // namespace

std::unique_ptr<Compressor> make_kivi(int bits, int group, int residual) { return std::make_unique<Kivi>(bits, group, residual); }

}  // namespace tq4::eval
