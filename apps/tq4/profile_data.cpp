// See profile_data.h.
#include "profile_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tq4/container.h"
#include "tq4/error.h"
#include "tq4/types.h"

namespace tq4::cli {
namespace {

/// One tensor, [heads, tokens, D] in the dump, as [tokens, heads, D] in fp16.
std::vector<std::uint16_t> tokens_first(Dump& dump, std::size_t index, Tensor tensor, int heads, std::int64_t tokens, DType dtype) {
  const int dim = dump.info().layers[index].head_dim;
  const std::size_t count = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(dim);
  std::vector<std::uint8_t> raw(count * dtype_size(dtype));
  std::vector<float> x(count);
  std::vector<std::uint16_t> out(count * static_cast<std::size_t>(heads));
  for (int head = 0; head < heads; ++head) {
    dump.read(index, tensor, head, 0, tokens, raw.data());
    to_float(raw.data(), dtype, count, x.data());
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint16_t half = float_to_half(x[i]);
      if ((half & 0x7C00u) == 0x7C00u)
        throw Error(ErrorCode::BadInput,
                    fmt::format("layer {} head {} token {} holds {}, which fp16 (what is profiled) cannot", dump.info().layers[index].layer,
                                head, i / static_cast<std::size_t>(dim), x[i]),
                    dump.info().path);
      const std::size_t token = i / static_cast<std::size_t>(dim), j = i % static_cast<std::size_t>(dim);
      out[(token * static_cast<std::size_t>(heads) + static_cast<std::size_t>(head)) * static_cast<std::size_t>(dim) + j] = half;
    }
  }
  return out;
}

}  // namespace

void load_layer_data(const std::string& path, int layer, const std::string& calibration, LayerData& out) {
  const std::unique_ptr<Dump> dump = open_dump(path);
  const std::vector<LayerInfo>& layers = dump->info().layers;
  const auto found = layer < 0 ? layers.begin() + static_cast<std::ptrdiff_t>(layers.size() / 2)
                               : std::find_if(layers.begin(), layers.end(), [&](const LayerInfo& l) { return l.layer == layer; });
  if (found == layers.end()) throw Error(ErrorCode::Usage, fmt::format("layer {} is not in {}", layer, path), "--layer");
  out.layer = *found;
  if (out.layer.tokens < 1) throw Error(ErrorCode::BadInput, fmt::format("layer {} has no tokens to profile with", out.layer.layer), path);
  const auto index = static_cast<std::size_t>(found - layers.begin());
  out.data.tokens = out.layer.tokens;
  out.data.k = tokens_first(*dump, index, Tensor::K, out.layer.num_kv_heads, out.layer.tokens, out.layer.k_dtype);
  out.data.v = tokens_first(*dump, index, Tensor::V, out.layer.num_kv_heads, out.layer.tokens, out.layer.v_dtype);
  if (out.layer.q_tokens > 0) {
    out.data.q_tokens = out.layer.q_tokens;
    out.data.q = tokens_first(*dump, index, Tensor::Q, out.layer.num_q_heads, out.layer.q_tokens, out.layer.q_dtype);
  }
  if (!calibration.empty()) {
    out.calibration = read_calibration(calibration);
    check_calibration(out.calibration, dump->info());
    out.data.calibration = out.calibration.find(out.layer.layer);
  }
}

}  // namespace tq4::cli
