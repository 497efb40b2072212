// tq4's codecs as the GPU encodes and decodes them: `tq4 eval --device cuda` measures what the kernels write, not what the CPU would. Sizes,
// names and theory are the CPU codec's, which holds the same tables. Codes with feedback are made on the CPU, as everywhere, and decoded on the GPU.
#include <algorithm>
#include <map>
#include <mutex>
#include <vector>

#include "tq4/compressor.h"
#include "tq4/device_rows.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

class DeviceCompressor final : public Compressor {
 public:
  DeviceCompressor(std::string name, const CodecSpec& spec, const Calibration* calibration, int device)
      : host_(codec_compressor(std::move(name), spec, calibration)), spec_(spec), calibration_(calibration), device_(device) {}

  std::string name() const override { return host_->name(); }
  std::string description() const override {
    return host_->description() + "; encoded and decoded on the GPU" + (has_feedback() ? " (codes with feedback made on the CPU)" : "");
  }
  std::string source() const override { return host_->source(); }
  Footprint encoded(const HeadVectors& shape) const override { return host_->encoded(shape); }
  ExactTokens exact(Side side) const override { return host_->exact(side); }
  double theoretical_mse(Side side, int dim) const override { return host_->theoretical_mse(side, dim); }
  const CodecSpec* spec() const override { return &spec_; }
  const Calibration* calibration() const override { return calibration_; }
  void check(int dim) const override { host_->check(dim); }

  void reconstruct(const HeadVectors& head, float* out) const override {
    const gpu::DeviceRows& rows = rows_of(head);
    const Codec& tables = rows.host(head.side);
    const auto n = static_cast<std::size_t>(head.tokens);
    std::vector<std::uint8_t> codes(n * tables.code_bytes()), signs(tables.has_signs() ? n * static_cast<std::size_t>(head.dim) / 8 : 0);
    std::vector<float> scale(n), zero(n), residual(n);
    rows.encode(head.side, head.head, head.x, DType::F32, head.tokens, 0,
                {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()});
    rows.decode(head.side, head.head, {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}, head.tokens, 0, out);
  }

 private:
  bool has_feedback() const {
    return calibration_ != nullptr && std::any_of(calibration_->layers.begin(), calibration_->layers.end(),
                                                  [](const LayerCalibration& l) { return !l.k.feedback.empty() || !l.v.feedback.empty(); });
  }
  /// One for a head_dim, or one for a layer where it is calibrated.
  const gpu::DeviceRows& rows_of(const HeadVectors& head) const {
    const LayerCalibration* layer = calibration_ != nullptr ? calibration_->find(head.layer) : nullptr;
    if (calibration_ != nullptr && (layer == nullptr || layer->head_dim != head.dim || head.head >= layer->num_kv_heads)) {
      throw Error(ErrorCode::BadInput, "the calibration does not fit layer " + std::to_string(head.layer), host_->name());
    }
    const std::lock_guard lock(mutex_);
    std::unique_ptr<gpu::DeviceRows>& slot = rows_[{head.dim, layer != nullptr ? head.layer : -1}];
    if (!slot) slot = std::make_unique<gpu::DeviceRows>(spec_, head.dim, layer, device_);
    return *slot;
  }

  std::unique_ptr<Compressor> host_;
  CodecSpec spec_;
  const Calibration* calibration_;
  int device_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<int, int>, std::unique_ptr<gpu::DeviceRows>> rows_;
};

}  // namespace

std::unique_ptr<Compressor> device_codec_compressor(std::string name, const CodecSpec& spec, const Calibration* calibration, int device) {
  gpu::device_info(device);  // throws NoDevice
  return std::make_unique<DeviceCompressor>(std::move(name), spec, calibration, device);
}

}  // namespace tq4
