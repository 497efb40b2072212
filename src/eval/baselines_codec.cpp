// tq4's own codecs (and the peers' tables they can take) seen as compressors, plain or calibrated.
#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "eval/baselines.h"
#include "tq4/codec.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr std::int64_t kChunk = 1024;  ///< vectors encoded at a time: bounds the codes held

/// Reference for a spec: whose idea it is.
std::string source_of(const CodecSpec& spec) {
  const SideSpec& k = spec.k;
  if (k.codebook == CodebookKind::Vllm || spec.v.kind == CodeKind::Uniform) return "vLLM 0.33, TurboQuant presets";
  if (k.codebook == CodebookKind::TurboquantVllm) return "turboquant-vllm 1.5";
  if (k.kind == CodeKind::Fp8 && spec.v.kind == CodeKind::Fp8) return "FP8 formats, arXiv 2209.05433; vLLM --kv-cache-dtype fp8 (scale 1)";
  if (k.kind == CodeKind::Fp16 && spec.v.kind == CodeKind::Fp16) return "IEEE 754 binary16";
  if (k.kind == CodeKind::Prod) return "TurboQuant_prod (QJL), arXiv 2504.19874 section 3.2";
  if (k.kind == CodeKind::Mixed) return "TurboQuant, arXiv 2504.19874 section 4.3";
  if (k.scale_rule == ScaleRule::Norm && spec.v.scale_rule == ScaleRule::Norm) return "TurboQuant_mse, arXiv 2504.19874 section 3.1";
  return "tq4: TurboQuant_mse, arXiv 2504.19874, with a least-squares scale";
}

std::string describe(const SideSpec& side) {
  std::string text;
  switch (side.kind) {
    case CodeKind::Mse: text = std::to_string(side.bits) + "-bit Lloyd-Max" + (side.pair_codebook ? " in pairs" : ""); break;
    case CodeKind::Prod: text = std::to_string(side.bits - 1) + "-bit Lloyd-Max and QJL signs"; break;
    case CodeKind::Mixed: text = std::to_string(side.bits) + ".5-bit Lloyd-Max"; break;
    case CodeKind::Fp8: return side.fp8 == Fp8Kind::E4M3 ? "FP8 E4M3, no scale" : "FP8 E4B15, no scale";
    case CodeKind::Uniform: text = std::to_string(side.bits) + "-bit uniform, scale and zero"; break;
    case CodeKind::Fp16: return "fp16";
  }
  if (side.kind != CodeKind::Uniform) {
    text += side.scale_rule == ScaleRule::LeastSquares ? ", least-squares scale"
            : side.scale_rule == ScaleRule::Norm       ? ", norm"
                                                       : ", unbiased scale";
  }
  text += side.scale_dtype == ScaleDType::F16 ? " in fp16" : " in fp32";
  if (side.norm_correction) text += ", norm correction";
  return text;
}

class CodecCompressor final : public Compressor {
 public:
  CodecCompressor(std::string name, const CodecSpec& spec, const Calibration* calibration)
      : name_(std::move(name)), spec_(spec), calibration_(calibration) {}

  std::string name() const override { return name_; }
  std::string description() const override {
    std::string text = spec_.k == spec_.v ? "K and V: " + describe(spec_.k) : "K: " + describe(spec_.k) + "; V: " + describe(spec_.v);
    if (calibration_ != nullptr) text += "; calibrated on " + std::to_string(calibration_->tokens) + " tokens";
    if (spec_.sinks > 0) text += "; first " + std::to_string(spec_.sinks) + " tokens in fp16";
    if (spec_.window > 0) text += "; newest " + std::to_string(spec_.window) + " tokens in fp16";
    return text;
  }
  std::string source() const override { return source_of(spec_) + (calibration_ != nullptr ? ", calibrated" : ""); }
  const CodecSpec* spec() const override { return &spec_; }
  const Calibration* calibration() const override { return calibration_; }
  void check(int dim) const override {
    validate(spec_.k, dim);
    validate(spec_.v, dim);
  }
  ExactTokens exact(Side) const override { return {spec_.sinks, spec_.window, 0}; }

  double theoretical_mse(Side side, int dim) const override {
    return calibration_ != nullptr ? std::numeric_limits<double>::quiet_NaN() : codec(side, dim, nullptr).theoretical_mse();
  }

  void reconstruct(const HeadVectors& head, float* out) const override {
    const LayerCalibration* layer = layer_calibration(head);
    const Codec& c = codec(head.side, head.dim, layer);
    const std::int64_t rows = std::min(kChunk, head.tokens);
    const auto size = static_cast<std::size_t>(rows);
    std::vector<std::uint8_t> codes(size * c.code_bytes()), signs(c.has_signs() ? size * static_cast<std::size_t>(head.dim) / 8 : 0);
    std::vector<float> scale(size), zero(c.has_zero() ? size : 0), residual(c.has_signs() ? size : 0);
    const auto data = [](auto& v) { return v.empty() ? nullptr : v.data(); };
    EncodedOut to;
    to.codes = codes.data();
    to.scale = c.has_scale() ? scale.data() : nullptr;
    to.zero = data(zero);
    to.signs = data(signs);
    to.residual_norm = data(residual);
    EncodedIn from;
    from.codes = to.codes, from.scale = to.scale, from.zero = to.zero, from.signs = to.signs, from.residual_norm = to.residual_norm;
    for (std::int64_t begin = 0; begin < head.tokens; begin += rows) {
      const std::int64_t n = std::min(rows, head.tokens - begin);
      const HeadTransform transform = head_transform(layer, head.side, head.head, begin);
      c.encode(head.x + begin * head.dim, DType::F32, n, to, transform);
      c.decode(from, n, out + begin * head.dim, transform);
    }
  }

  Footprint encoded(const HeadVectors& shape) const override {
    const LayerCalibration* layer = layer_calibration(shape);
    Footprint f;
    f.code_bits = 8.0 * static_cast<double>(codec(shape.side, shape.dim, layer).vector_bytes()) * static_cast<double>(shape.tokens);
    if (layer != nullptr) {
      const SideCalibration& side = shape.side == Side::K ? layer->k : layer->v;
      const double heads = std::max(1, layer->num_kv_heads);
      f.constant_bits = 32.0 * static_cast<double>(side.centre.size() + side.rope_mu.size()) / heads;
      f.matrix_bits = 32.0 * static_cast<double>(side.forward.size() + side.inverse.size()) / heads;
    }
    return f;
  }

 private:
  const LayerCalibration* layer_calibration(const HeadVectors& head) const {
    if (calibration_ == nullptr) return nullptr;
    const LayerCalibration* layer = calibration_->find(head.layer);
    if (layer == nullptr) throw Error(ErrorCode::BadInput, "the calibration has no layer " + std::to_string(head.layer), name_);
    if (layer->head_dim != head.dim || head.head >= layer->num_kv_heads) {
      throw Error(ErrorCode::BadInput, "the calibration is for another shape of layer " + std::to_string(head.layer), name_);
    }
    return layer;
  }

  /// Built once a side and dimension, and once a layer where the calibration has its own pair table.
  const Codec& codec(Side side, int dim, const LayerCalibration* layer) const {
    const SideSpec& spec = side == Side::K ? spec_.k : spec_.v;
    const std::vector<float>* points = nullptr;
    if (layer != nullptr) points = &(side == Side::K ? layer->k : layer->v).pair_points;
    const bool own_pairs = points != nullptr && !points->empty();
    const std::lock_guard lock(mutex_);
    std::unique_ptr<const Codec>& slot = codecs_[{side == Side::V, dim, own_pairs ? layer->layer : -1}];
    if (!slot) {
      auto plain = std::make_unique<Codec>(spec, dim);
      if (own_pairs) {
        const PairTable pairs{spec.bits, dim, *points};
        slot = std::make_unique<const Codec>(spec, dim, plain->codebook(), plain->rotation(), &pairs);
      } else {
        slot = std::move(plain);
      }
    }
    return *slot;
  }

  std::string name_;
  CodecSpec spec_;
  const Calibration* calibration_;
  mutable std::mutex mutex_;
  mutable std::map<std::tuple<bool, int, int>, std::unique_ptr<const Codec>> codecs_;
};

}  // namespace

ExactTokens Compressor::exact(Side) const { return {}; }
double Compressor::theoretical_mse(Side, int) const { return std::numeric_limits<double>::quiet_NaN(); }
void Compressor::check(int) const {}

Footprint Compressor::footprint(const HeadVectors& shape) const {
  const ExactTokens tokens = exact(shape.side);
  const std::int64_t sinks = std::min<std::int64_t>(tokens.sinks, shape.tokens);
  const std::int64_t tail = shape.tokens - std::clamp(tokens.exact_from(shape.tokens - 1), sinks, shape.tokens);
  HeadVectors rest = shape;
  rest.tokens = shape.tokens - sinks - tail;
  Footprint f = encoded(rest);
  f.exact_tokens = sinks + tail;
  f.exact_bits = 16.0 * shape.dim * static_cast<double>(f.exact_tokens);
  return f;
}

std::unique_ptr<Compressor> codec_compressor(std::string name, const CodecSpec& spec, const Calibration* calibration) {
  return std::make_unique<CodecCompressor>(std::move(name), spec, calibration);
}

}  // namespace tq4
