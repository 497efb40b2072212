// See tensor_source.h.
#include "tensor_source.h"

#include "paths.h"
#include "tq4/error.h"

namespace tq4::cli {

TensorSource::TensorSource(const std::string& path, const DumpOptions& options) : path_(path) {
  check_seekable_input(path);
  try {
    container_ = open_container(path);
  } catch (const Error& not_a_container) {
    try {
      dump_ = open_dump(path, options);
    } catch (const Error& error) {
      // A damaged container is no dump either; its own error says more.
      const bool named = path.size() > 4 && path.compare(path.size() - 4, 4, ".tq4") == 0;
      if (named) throw not_a_container;
      throw error;
    }
  }
  if (container_ != nullptr) {
    for (const StoredLayer& layer : container_->info().layers) layers_.push_back(layer.shape);
  } else {
    layers_ = dump_->info().layers;
  }
}

int TensorSource::find(int layer) const {
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].layer == layer) return static_cast<int>(i);
  }
  return -1;
}

void TensorSource::read(std::size_t layer_index, Side side, int head, std::int64_t begin, std::int64_t count, std::vector<float>& x) {
  const LayerInfo& layer = layers_[layer_index];
  x.resize(static_cast<std::size_t>(count * layer.head_dim));
  if (container_ != nullptr) {
    container_->decode(layer_index, side, head, begin, count, x.data());
    return;
  }
  const DType dtype = side == Side::K ? layer.k_dtype : layer.v_dtype;
  raw_.resize(x.size() * dtype_size(dtype));
  dump_->read(layer_index, side == Side::K ? Tensor::K : Tensor::V, head, begin, count, raw_.data());
  to_float(raw_.data(), dtype, x.size(), x.data());
}

}  // namespace tq4::cli
