// tq4's codecs as the GPU encodes and decodes them: `tq4 eval --device cuda` measures what the kernels write, not what the CPU would. Sizes,
// names and theory are the CPU codec's, which holds the same tables. Codes with feedback are made on the CPU, as everywhere, and decoded on the GPU.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <tuple>
#include <vector>

#include "tq4/compressor.h"
#include "tq4/error.h"
#include "tq4/gpu.h"

namespace tq4 {
namespace {

void check_cuda(cudaError_t status) {
  if (status != cudaSuccess)
    throw Error(ErrorCode::Runtime, std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status), "--device cuda");
}

/// A device allocation.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) {
    if (count > 0) check_cuda(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)));
  }
  Buffer(const T* host, std::size_t count) : Buffer(count) {
    check_cuda(cudaMemcpy(data_, host, count * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

/// The tables of one kv head alone.
LayerCalibration one_head(const LayerCalibration& layer, int head) {
  LayerCalibration out = layer;
  out.num_kv_heads = 1;
  const auto slice = [&](std::vector<float>& table) {
    const std::size_t size = table.size() / static_cast<std::size_t>(layer.num_kv_heads);
    const auto begin = table.begin() + static_cast<std::ptrdiff_t>(size) * head;
    table = std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(size));
  };
  for (SideCalibration* side : {&out.k, &out.v}) {
    for (std::vector<float>* table :
         {&side->forward, &side->inverse, &side->centre, &side->rope_mu, &side->feedback, &side->feedback_gain}) {
      slice(*table);
    }
  }
  return out;
}

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
    const std::lock_guard lock(mutex_);
    check_cuda(cudaSetDevice(device_));
    const gpu::DeviceCodec& codec = device_codec(head);
    const Codec& tables = codec.host(head.side);
    const auto n = static_cast<std::size_t>(head.tokens), dim = static_cast<std::size_t>(head.dim);
    const LayerCalibration* layer = calibration_ != nullptr ? calibration_->find(head.layer) : nullptr;
    const bool feedback = layer != nullptr && !(head.side == Side::K ? layer->k : layer->v).feedback.empty();
    const Buffer<float> x(head.x, n * dim), y(n * dim);
    const Buffer<std::uint8_t> codes(n * tables.code_bytes()), signs(tables.has_signs() ? n * dim / 8 : 0);
    const Buffer<float> scale(tables.has_scale() ? n : 0), zero(tables.has_zero() ? n : 0), residual(tables.has_signs() ? n : 0);
    std::vector<std::int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    const Buffer<std::int64_t> positions(order.data(), n);

    if (feedback) {  // Mse codecs alone have it: codes and scales are all there is
      std::vector<std::uint8_t> host_codes(n * tables.code_bytes());
      std::vector<float> host_scale(n);
      EncodedOut to;
      to.codes = host_codes.data();
      to.scale = host_scale.data();
      tables.encode(head.x, DType::F32, head.tokens, to, head_transform(layer, head.side, head.head));
      check_cuda(cudaMemcpy(codes.get(), host_codes.data(), host_codes.size(), cudaMemcpyHostToDevice));
      check_cuda(cudaMemcpy(scale.get(), host_scale.data(), n * sizeof(float), cudaMemcpyHostToDevice));
    } else {
      gpu::EncodeParams encode;
      encode.x = x.get();
      encode.x_dtype = DType::F32;
      encode.n = head.tokens;
      encode.positions = positions.get();
      encode.out.codes = codes.get();
      encode.out.scale = scale.get();
      encode.out.zero = zero.get();
      encode.out.signs = signs.get();
      encode.out.residual_norm = residual.get();
      gpu::encode(codec, head.side, encode, nullptr);
    }

    gpu::DequantParams decode;
    decode.in.codes = codes.get();
    decode.in.scale = scale.get();
    decode.in.zero = zero.get();
    decode.in.signs = signs.get();
    decode.in.residual_norm = residual.get();
    decode.n = head.tokens;
    decode.out = y.get();
    decode.out_dtype = DType::F32;
    decode.rotated = false;
    decode.positions = positions.get();
    gpu::dequant(codec, head.side, decode, nullptr);
    check_cuda(cudaMemcpy(out, y.get(), n * dim * sizeof(float), cudaMemcpyDeviceToHost));
  }

 private:
  bool has_feedback() const {
    return calibration_ != nullptr && std::any_of(calibration_->layers.begin(), calibration_->layers.end(),
                                                  [](const LayerCalibration& l) { return !l.k.feedback.empty() || !l.v.feedback.empty(); });
  }
  /// One for a head_dim, or one for a head where it is calibrated: a call here is of one head, and per-head tables go by head.
  const gpu::DeviceCodec& device_codec(const HeadVectors& head) const {
    const LayerCalibration* layer = calibration_ != nullptr ? calibration_->find(head.layer) : nullptr;
    if (calibration_ != nullptr && (layer == nullptr || layer->head_dim != head.dim || head.head >= layer->num_kv_heads)) {
      throw Error(ErrorCode::BadInput, "the calibration does not fit layer " + std::to_string(head.layer), host_->name());
    }
    std::unique_ptr<gpu::DeviceCodec>& slot = codecs_[{head.dim, layer != nullptr ? head.layer : -1, layer != nullptr ? head.head : 0}];
    if (!slot) {
      if (layer != nullptr) {
        const LayerCalibration alone = one_head(*layer, head.head);
        slot = std::make_unique<gpu::DeviceCodec>(spec_, head.dim, 1, &alone);
      } else {
        slot = std::make_unique<gpu::DeviceCodec>(spec_, head.dim, 1);
      }
    }
    return *slot;
  }

  std::unique_ptr<Compressor> host_;
  CodecSpec spec_;
  const Calibration* calibration_;
  int device_;
  mutable std::mutex mutex_;
  mutable std::map<std::tuple<int, int, int>, std::unique_ptr<gpu::DeviceCodec>> codecs_;
};

}  // namespace

std::unique_ptr<Compressor> device_codec_compressor(std::string name, const CodecSpec& spec, const Calibration* calibration, int device) {
  gpu::device_info(device);  // throws NoDevice
  return std::make_unique<DeviceCompressor>(std::move(name), spec, calibration, device);
}

}  // namespace tq4
