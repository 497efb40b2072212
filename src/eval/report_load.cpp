// Reading heads out of a dump, with a check of every value.
#include "eval/report_load.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "tq4/error.h"

namespace tq4::eval {
namespace {

std::vector<float> read_rows(Dump& dump, std::size_t layer_index, Tensor tensor, DType dtype, int head, std::int64_t tokens, int dim) {
  const char* name = tensor == Tensor::K ? "k" : tensor == Tensor::V ? "v" : "q";
  const LayerInfo& layer = dump.info().layers[layer_index];
  const auto count = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(dim);
  std::vector<float> rows(count);
  std::vector<unsigned char> raw(count * dtype_size(dtype));
  dump.read(layer_index, tensor, head, 0, tokens, raw.data());
  to_float(raw.data(), dtype, count, rows.data());
  const auto bad = std::find_if(rows.begin(), rows.end(), [](float x) { return !std::isfinite(x); });
  if (bad != rows.end()) {
    const std::int64_t at = bad - rows.begin();
    throw Error(ErrorCode::BadInput,
                std::string(std::isnan(*bad) ? "NaN" : "infinity") + " at head " + std::to_string(head) + ", token " +
                    std::to_string(at / dim) + ", coordinate " + std::to_string(at % dim) + "; leave the layer out with --layers",
                dump.info().path + ": layer " + std::to_string(layer.layer) + " " + name);
  }
  return rows;
}

}  // namespace

bool has_queries(const LayerInfo& layer) { return layer.q_tokens > 0 && layer.num_q_heads >= layer.num_kv_heads && layer.num_kv_heads > 0; }

HeadData load_head(Dump& dump, std::size_t layer_index, int head, std::int64_t max_queries) {
  const LayerInfo& layer = dump.info().layers[layer_index];
  HeadData data;
  data.k = read_rows(dump, layer_index, Tensor::K, layer.k_dtype, head, layer.tokens, layer.head_dim);
  data.v = read_rows(dump, layer_index, Tensor::V, layer.v_dtype, head, layer.tokens, layer.head_dim);
  if (!has_queries(layer)) return data;
  data.q_heads = layer.num_q_heads / layer.num_kv_heads;
  const std::int64_t all = layer.q_tokens;
  const std::int64_t count = max_queries > 0 ? std::min(max_queries, all) : all;
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < count; ++i) rows.push_back((i + 1) * all / count - 1);
  for (const std::int64_t row : rows) data.q_positions.push_back(layer.q_start + row);
  const auto dim = static_cast<std::size_t>(layer.head_dim);
  for (int g = 0; g < data.q_heads; ++g) {
    const std::vector<float> q = read_rows(dump, layer_index, Tensor::Q, layer.q_dtype, head * data.q_heads + g, all, layer.head_dim);
    for (const std::int64_t row : rows)
      data.q.insert(data.q.end(), q.begin() + row * layer.head_dim, q.begin() + row * layer.head_dim + static_cast<std::ptrdiff_t>(dim));
  }
  return data;
}

AttentionProblem attention_problem(const DumpInfo& info, const LayerInfo& layer, const HeadData& data) {
  AttentionProblem p;
  p.q = data.q.data();
  p.k = data.k.data();
  p.v = data.v.data();
  p.q_positions = data.q_positions.data();
  p.q_tokens = static_cast<std::int64_t>(data.q_positions.size());
  p.tokens = layer.tokens;
  p.q_heads = data.q_heads;
  p.dim = layer.head_dim;
  p.sm_scale = info.sm_scale;
  p.causal = info.causal;
  p.sliding_window = layer.sliding_window;
  return p;
}

std::vector<std::size_t> selected_layers(const DumpInfo& info, const std::optional<std::vector<int>>& layers) {
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    const bool wanted = !layers || std::find(layers->begin(), layers->end(), info.layers[i].layer) != layers->end();
    if (wanted && info.layers[i].tokens > 0) chosen.push_back(i);
  }
  return chosen;
}

}  // namespace tq4::eval
