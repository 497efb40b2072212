// See device_decode.h.
#include "device_decode.h"

#include <fmt/format.h>

#include <algorithm>

#include "planes.h"
#include "tq4/error.h"

namespace tq4::cli {

const gpu::DeviceRows& DeviceDecoder::rows_of(std::size_t layer) {
  const ContainerInfo& info = container_.info();
  const LayerInfo& shape = info.layers[layer].shape;
  const LayerCalibration* calibration = container_.calibration() != nullptr ? container_.calibration()->find(shape.layer) : nullptr;
  const Codec &k = container_.codec(layer, Side::K), &v = container_.codec(layer, Side::V);
  const std::lock_guard lock(mutex_);
  std::unique_ptr<gpu::DeviceRows>& rows = rows_[{shape.head_dim, calibration != nullptr ? layer + 1 : 0}];
  if (rows != nullptr) return *rows;
  if (calibration == nullptr) {
    rows = std::make_unique<gpu::DeviceRows>(info.spec, k, v, device_);
    return *rows;
  }
  rows = std::make_unique<gpu::DeviceRows>(info.spec, shape.head_dim, calibration, device_);
  for (const auto& [side, codec] : {std::pair(Side::K, &k), std::pair(Side::V, &v)}) {  // these came from the spec, not from the file
    const Codec& made = rows->host(side);
    if (made.rotation().matrix != codec->rotation().matrix || made.codebook().centroids != codec->codebook().centroids)
      throw Error(ErrorCode::Unsupported, "holds tables that differ from those of its codec; use --device cpu", "--device cuda");
  }
  return *rows;
}

void DeviceDecoder::decode(std::size_t layer, Side side, int head, std::int64_t begin, std::int64_t count, float* x) {
  const StoredLayer& stored = container_.info().layers[layer];
  const std::int64_t tokens = stored.shape.tokens, end = begin + count;
  const std::int64_t first = stored.passthrough ? tokens : stored.exact_first,
                     last = stored.passthrough ? tokens : tokens - stored.exact_last;
  const std::int64_t from = std::clamp(first, begin, end), to = std::clamp(last, from, end);  // the encoded ones of them
  const auto at = [&](std::int64_t token) { return x + (token - begin) * stored.shape.head_dim; };
  if (from > begin) container_.decode(layer, side, head, begin, from - begin, x);
  if (end > to) container_.decode(layer, side, head, to, end - to, at(to));
  if (to == from) return;
  const gpu::DeviceRows& rows = rows_of(layer);
  PlaneBuffers planes;
  planes.resize(rows.host(side), to - from);
  container_.read(layer, side, head, from - first, to - from, planes.out());
  rows.decode(side, head, planes.in(), to - from, from, at(from));
}

}  // namespace tq4::cli
