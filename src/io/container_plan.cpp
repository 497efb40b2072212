// See container_plan.h.
#include "io/container_plan.h"

#include <cstdio>
#include <filesystem>
#include <set>

#include "core/side.h"
#include "io/json_fields.h"

namespace tq4::io {

std::int64_t exact_tokens(const StoredLayer& layer) {
  return layer.passthrough ? layer.shape.tokens : layer.exact_first + layer.exact_last;
}
std::int64_t encoded_tokens(const StoredLayer& layer) { return layer.shape.tokens - exact_tokens(layer); }

const SideSpec& side_of(const CodecSpec& spec, Side side) { return side == Side::K ? spec.k : spec.v; }

std::string layer_prefix(int layer, Side side) {
  char text[32];
  std::snprintf(text, sizeof text, "layer_%03d.%c.", layer, side == Side::K ? 'k' : 'v');
  return text;
}

SideTensors plan_side(const CodecSpec& spec, const StoredLayer& layer, Side side, std::vector<PlannedTensor>& tensors) {
  const SideSpec& codec = side_of(spec, side);
  const auto heads = static_cast<std::uint64_t>(layer.shape.num_kv_heads), dim = static_cast<std::uint64_t>(layer.shape.head_dim);
  const auto encoded = static_cast<std::uint64_t>(encoded_tokens(layer)), exact = static_cast<std::uint64_t>(exact_tokens(layer));
  const std::string prefix = layer_prefix(layer.shape.layer, side);
  const auto add = [&](const char* name, DType dtype, std::vector<std::uint64_t> shape) {
    tensors.push_back({prefix + name, dtype, std::move(shape)});
    return static_cast<int>(tensors.size()) - 1;
  };
  SideTensors planned;
  if (encoded > 0) {
    const DType scale = codec.scale_dtype == ScaleDType::F16 ? DType::F16 : DType::F32;
    planned.codes = add("codes", DType::U8, {heads, encoded, core::code_bytes(codec, layer.shape.head_dim)});
    if (core::has_scale(codec)) planned.scale = add("scale", scale, {heads, encoded});
    if (core::has_zero(codec)) planned.zero = add("zero", scale, {heads, encoded});
    if (core::has_signs(codec)) {
      planned.signs = add("signs", DType::U8, {heads, encoded, dim / 8});
      planned.residual_norm = add("residual_norm", scale, {heads, encoded});
    }
  }
  if (exact > 0) planned.exact = add("exact", DType::F16, {heads, exact, dim});
  return planned;
}

void check_layers(const CodecSpec& spec, const std::vector<StoredLayer>& layers) {
  std::set<int> seen;
  for (const StoredLayer& layer : layers) {
    const LayerInfo& shape = layer.shape;
    const std::string where = "layer " + std::to_string(shape.layer);
    if (shape.layer < 0 || shape.layer > 999999 || !seen.insert(shape.layer).second)
      throw Error(ErrorCode::Usage, "its number is out of range or taken twice", where);
    if (shape.num_kv_heads < 1 || shape.num_kv_heads > 65536 || shape.head_dim < 1 || shape.head_dim > 65536 || shape.tokens < 0 ||
        shape.tokens > (std::int64_t{1} << 40) ||
        static_cast<__uint128_t>(shape.num_kv_heads) * static_cast<__uint128_t>(shape.tokens) * static_cast<__uint128_t>(shape.head_dim) >
            (__uint128_t{1} << 50)) {
      throw Error(ErrorCode::Usage, "an impossible shape", where);
    }
    if (layer.exact_first < 0 || layer.exact_last < 0 || layer.exact_first > shape.tokens ||
        layer.exact_last > shape.tokens - layer.exact_first) {
      throw Error(ErrorCode::Usage, "more exact tokens than tokens", where);
    }
    if (layer.passthrough && (layer.exact_first != 0 || layer.exact_last != 0))
      throw Error(ErrorCode::Usage, "passthrough and exact tokens exclude each other", where);
    if (layer.passthrough) continue;
    validate(spec.k, shape.head_dim);
    validate(spec.v, shape.head_dim);
  }
}

std::string layers_to_json(const std::vector<StoredLayer>& layers, const std::vector<LayerTables>& tables) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const StoredLayer& layer = layers[i];
    list.push_back({{"layer", layer.shape.layer},
                    {"num_kv_heads", layer.shape.num_kv_heads},
                    {"num_q_heads", layer.shape.num_q_heads},
                    {"head_dim", layer.shape.head_dim},
                    {"tokens", layer.shape.tokens},
                    {"k_dtype", dtype_name(layer.shape.k_dtype)},
                    {"v_dtype", dtype_name(layer.shape.v_dtype)},
                    {"sliding_window", layer.shape.sliding_window},
                    {"passthrough", layer.passthrough},
                    {"reason", layer.reason},
                    {"exact_first", layer.exact_first},
                    {"exact_last", layer.exact_last},
                    {"k_table", tables[i].of_side[0]},
                    {"v_table", tables[i].of_side[1]}});
  }
  return dump_json(list);
}

namespace {
DType float_dtype(const std::string& name, const std::string& where) {
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  bad_input(where, "the element type \"" + name.substr(0, 40) + "\" is not known");
}
}  // namespace

void layers_from_json(const std::string& text, const std::string& where, std::vector<StoredLayer>& layers,
                      std::vector<LayerTables>& tables) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  const nlohmann::json list = parse_metadata(text, where);
  if (!list.is_array()) bad_input(where, "is no JSON array");
  for (const nlohmann::json& entry : list) {
    Fields fields(entry, where);
    StoredLayer& layer = layers.emplace_back();
    layer.shape.layer = fields.small("layer", 0, 999999);
    layer.shape.num_kv_heads = fields.small("num_kv_heads", 1, 65536);
    layer.shape.num_q_heads = fields.small("num_q_heads", 0, 1 << 24);
    layer.shape.head_dim = fields.small("head_dim", 1, 65536);
    layer.shape.tokens = fields.integer("tokens", 0, kMost);
    layer.shape.k_dtype = float_dtype(fields.text("k_dtype"), where);
    layer.shape.v_dtype = float_dtype(fields.text("v_dtype"), where);
    layer.shape.sliding_window = fields.small("sliding_window", 0, 2000000000);
    layer.passthrough = fields.flag("passthrough");
    layer.reason = fields.text("reason");
    layer.exact_first = fields.integer("exact_first", 0, kMost);
    layer.exact_last = fields.integer("exact_last", 0, kMost);
    LayerTables& numbers = tables.emplace_back();
    numbers.of_side = {fields.small("k_table", -1, 1 << 20), fields.small("v_table", -1, 1 << 20)};
    fields.finish();
  }
}

std::string dump_to_json(const DumpInfo& dump) {
  nlohmann::ordered_json attributes = nlohmann::ordered_json::object();
  for (const auto& [name, value] : dump.attributes) attributes[name] = value;
  return dump_json({{"file", std::filesystem::path(dump.path).filename().string()},
                    {"format", dump.format},
                    {"model", dump.model},
                    {"source", dump.source},
                    {"sm_scale", dump.sm_scale},
                    {"rope_theta", dump.rope_theta},
                    {"rope_applied", dump.rope_applied},
                    {"causal", dump.causal},
                    {"attributes", attributes}});
}

DumpInfo dump_from_json(const std::string& text, const std::string& where) {
  const nlohmann::json json = parse_metadata(text, where);
  Fields fields(json, where);
  DumpInfo dump;
  dump.path = fields.text("file");
  dump.format = fields.text("format");
  dump.model = fields.text("model");
  dump.source = fields.text("source");
  dump.sm_scale = fields.number("sm_scale");
  dump.rope_theta = fields.number("rope_theta");
  dump.rope_applied = fields.flag("rope_applied");
  dump.causal = fields.flag("causal");
  const nlohmann::json& attributes = fields.at("attributes");
  if (!attributes.is_object()) bad_input(where, "attributes are no JSON object");
  for (const auto& [name, value] : attributes.items()) {
    if (!value.is_string()) bad_input(where, "the attribute " + name.substr(0, 100) + " is no string");
    dump.attributes[name] = value.get<std::string>();
  }
  fields.finish();
  return dump;
}

}  // namespace tq4::io
