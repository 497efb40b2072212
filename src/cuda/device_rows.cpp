// See tq4/device_rows.h. A call is of one kv head, while tables a head go by the head's place in a call: a calibrated layer has a DeviceCodec a
// head, made when it is first asked for.
#include "tq4/device_rows.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <vector>

#include "cuda/check.h"

namespace tq4::gpu {
namespace {

constexpr const char* kWhere = "--device cuda";

/// Device memory that grows.
class Room {
 public:
  ~Room() { cudaFree(data_); }
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  template <class T>
  T* of(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (bytes > bytes_) {
      cudaFree(data_);
      data_ = nullptr;
      bytes_ = 0;
      check(cudaMalloc(&data_, bytes), kWhere);
      bytes_ = bytes;
    }
    return count == 0 ? nullptr : static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

template <class T>
void upload(T* to, const void* from, std::size_t count) {
  if (count > 0) check(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyHostToDevice), kWhere);
}
template <class T>
void download(T* to, const T* from, std::size_t count) {
  if (count > 0) check(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyDeviceToHost), kWhere);
}

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

Codec copy_of(const Codec& codec) {
  const SideSpec& spec = codec.spec();
  const bool prod = !codec.qjl_matrix().empty();
  return {spec,
          codec.head_dim(),
          codec.codebook(),
          codec.rotation(),
          spec.pair_codebook ? &codec.pair_table() : nullptr,
          spec.kind == CodeKind::Mixed ? &codec.outlier_codebook() : nullptr,
          prod ? &codec.qjl_matrix() : nullptr};
}

}  // namespace

struct DeviceRows::Impl {
  CodecSpec spec;
  int head_dim = 0, device = 0;
  std::optional<LayerCalibration> layer;
  std::mutex mutex;
  std::map<int, DeviceCodec> codecs;   ///< by head; 0 alone without a calibration
  const DeviceCodec* head0 = nullptr;  ///< there from the beginning: host() reads it while other heads' are being added
  Room x, codes, scale, zero, signs, residual, positions;

  const DeviceCodec& codec(int head) {
    const int key = layer ? head : 0;
    auto found = codecs.find(key);
    if (found != codecs.end()) return found->second;
    if (!layer) return codecs.emplace(key, DeviceCodec(spec, head_dim, 1)).first->second;
    require(head >= 0 && head < layer->num_kv_heads, "the calibration does not have that many heads", kWhere);
    const LayerCalibration alone = one_head(*layer, head);
    return codecs.emplace(key, DeviceCodec(spec, head_dim, 1, &alone)).first->second;
  }
  bool feedback(Side side) const { return layer && !(side == Side::K ? layer->k : layer->v).feedback.empty(); }

  /// Planes on the device for n vectors.
  EncodedOut planes(const Codec& tables, std::size_t n) {
    const bool has_signs = tables.has_signs();
    return {codes.of<std::uint8_t>(n * tables.code_bytes()), scale.of<float>(tables.has_scale() ? n : 0),
            zero.of<float>(tables.has_zero() ? n : 0), signs.of<std::uint8_t>(has_signs ? n * static_cast<std::size_t>(head_dim) / 8 : 0),
            residual.of<float>(has_signs ? n : 0)};
  }
  const std::int64_t* positions_from(std::int64_t first, std::size_t n) {
    std::vector<std::int64_t> order(n);
    std::iota(order.begin(), order.end(), first);
    auto* to = positions.of<std::int64_t>(n);
    upload(to, order.data(), n);
    return to;
  }
};

DeviceRows::DeviceRows(const CodecSpec& spec, int head_dim, const LayerCalibration* layer, int device) : impl_(std::make_unique<Impl>()) {
  device_info(device);  // throws NoDevice
  check(cudaSetDevice(device), kWhere);
  impl_->spec = spec;
  impl_->head_dim = head_dim;
  impl_->device = device;
  if (layer != nullptr) {
    require(layer->head_dim == head_dim && layer->num_kv_heads > 0, "the calibration is of another head_dim", kWhere);
    impl_->layer = *layer;
  }
  impl_->head0 = &impl_->codec(0);
}

DeviceRows::DeviceRows(const CodecSpec& spec, const Codec& k, const Codec& v, int device) : impl_(std::make_unique<Impl>()) {
  device_info(device);
  check(cudaSetDevice(device), kWhere);
  impl_->spec = spec;
  impl_->head_dim = k.head_dim();
  impl_->device = device;
  impl_->head0 = &impl_->codecs.emplace(0, DeviceCodec(spec, 1, copy_of(k), copy_of(v))).first->second;
}

DeviceRows::~DeviceRows() = default;

const Codec& DeviceRows::host(Side side) const { return impl_->head0->host(side); }

void DeviceRows::encode(Side side, int head, const void* x, DType dtype, std::int64_t n, std::int64_t position,
                        const EncodedOut& out) const {
  Impl& m = *impl_;
  if (m.feedback(side)) {  // a calibrated pair table is a layer's, so head 0's codec serves
    Exec exec;
    exec.threads = 1;
    host(side).encode(x, dtype, n, out, head_transform(&*m.layer, side, head, position), exec);
    return;
  }
  if (n == 0) return;
  const std::lock_guard lock(m.mutex);
  check(cudaSetDevice(m.device), kWhere);
  const DeviceCodec& codec = m.codec(head);
  const Codec& tables = codec.host(side);
  const auto rows = static_cast<std::size_t>(n), bytes = rows * static_cast<std::size_t>(m.head_dim) * dtype_size(dtype);
  auto* device_x = m.x.of<std::uint8_t>(bytes);
  upload(device_x, x, bytes);
  EncodeParams p;
  p.x = device_x;
  p.x_dtype = dtype;
  p.n = n;
  p.positions = m.positions_from(position, rows);
  p.out = m.planes(tables, rows);
  gpu::encode(codec, side, p, nullptr);
  download(out.codes, p.out.codes, rows * tables.code_bytes());
  if (tables.has_scale()) download(out.scale, p.out.scale, rows);
  if (tables.has_zero()) download(out.zero, p.out.zero, rows);
  if (tables.has_signs()) {
    download(out.signs, p.out.signs, rows * static_cast<std::size_t>(m.head_dim) / 8);
    download(out.residual_norm, p.out.residual_norm, rows);
  }
}

void DeviceRows::decode(Side side, int head, const EncodedIn& in, std::int64_t n, std::int64_t position, float* x) const {
  if (n == 0) return;
  Impl& m = *impl_;
  const std::lock_guard lock(m.mutex);
  check(cudaSetDevice(m.device), kWhere);
  const DeviceCodec& codec = m.codec(head);
  const Codec& tables = codec.host(side);
  const auto rows = static_cast<std::size_t>(n), values = rows * static_cast<std::size_t>(m.head_dim);
  const EncodedOut planes = m.planes(tables, rows);
  upload(planes.codes, in.codes, rows * tables.code_bytes());
  if (tables.has_scale()) upload(planes.scale, in.scale, rows);
  if (tables.has_zero()) upload(planes.zero, in.zero, rows);
  if (tables.has_signs()) {
    upload(planes.signs, in.signs, values / 8);
    upload(planes.residual_norm, in.residual_norm, rows);
  }
  DequantParams p;
  p.in = {planes.codes, planes.scale, planes.zero, planes.signs, planes.residual_norm};
  p.n = n;
  auto* device_x = m.x.of<float>(values);
  p.out = device_x;
  p.out_dtype = DType::F32;
  p.rotated = false;
  p.positions = m.positions_from(position, rows);
  gpu::dequant(codec, side, p, nullptr);
  download(x, device_x, values);
}

}  // namespace tq4::gpu
