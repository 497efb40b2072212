// A dump held in memory: what the report's tests measure, without files.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tq4/dump.h"
#include "tq4/error.h"

namespace tq4::test {

class MemoryDump final : public Dump {
 public:
  struct Layer {
    std::vector<float> k, v, q;
  };
  /// Gaussian K, V and Q; keys of head 0 get a large channel, as real ones have.
  MemoryDump(int layers, int kv_heads, int q_heads, std::int64_t tokens, std::int64_t q_tokens, int dim, unsigned seed = 1) {
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    info_.path = "memory.h5";
    info_.model = "random <&\"model\">";
    for (int l = 0; l < layers; ++l) {
      LayerInfo layer;
      layer.layer = 3 * l + 1;
      layer.num_kv_heads = kv_heads, layer.num_q_heads = q_tokens > 0 ? q_heads : 0, layer.head_dim = dim;
      layer.tokens = tokens, layer.q_tokens = q_tokens, layer.q_start = tokens - q_tokens;
      layer.k_dtype = layer.v_dtype = layer.q_dtype = DType::F32;
      info_.layers.push_back(layer);
      Layer data;
      const auto fill = [&](std::vector<float>& x, std::int64_t n) {
        x.resize(static_cast<std::size_t>(n));
        for (float& value : x) value = normal(gen);
      };
      fill(data.k, kv_heads * tokens * dim);
      fill(data.v, kv_heads * tokens * dim);
      fill(data.q, q_heads * q_tokens * dim);
      for (std::int64_t t = 0; t < tokens; ++t) data.k[static_cast<std::size_t>(t * dim + 3)] += 8;
      layers_.push_back(std::move(data));
    }
  }
  const DumpInfo& info() const override { return info_; }
  void read(std::size_t layer_index, Tensor tensor, int head, std::int64_t begin, std::int64_t count, void* out) override {
    const Layer& layer = layers_.at(layer_index);
    const LayerInfo& shape = info_.layers[layer_index];
    const std::vector<float>& x = tensor == Tensor::K ? layer.k : tensor == Tensor::V ? layer.v : layer.q;
    const std::int64_t rows = tensor == Tensor::Q ? shape.q_tokens : shape.tokens;
    const auto at = static_cast<std::size_t>((head * rows + begin) * shape.head_dim), n = static_cast<std::size_t>(count * shape.head_dim);
    if (at + n > x.size()) throw Error(ErrorCode::BadInput, "read past the end");
    std::memcpy(out, x.data() + at, n * sizeof(float));
  }
  std::vector<float> read_o_gram(std::size_t) override { throw Error(ErrorCode::BadInput, "none"); }

  Layer& layer(std::size_t i) { return layers_[i]; }
  DumpInfo& mutable_info() { return info_; }

 private:
  DumpInfo info_;
  std::vector<Layer> layers_;
};

}  // namespace tq4::test
