// tq4 inspect: what is in a file. Of a container: codec, sizes, effective bits a value, layer by layer, and --verify checks every checksum.
// Of a dump: its layers, shapes and types.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "args.h"
#include "common_args.h"
#include "encode_dump.h"
#include "paths.h"
#include "report.h"
#include "tq4/container.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string input;
  bool verify = false;
  DumpOptions dump;
  OutputOptions output;
};

/// HDF5, npy and zip say so in their first bytes; anything else is safetensors or nothing.
bool has_dump_magic(const std::string& path) {
  char magic[8] = {};
  std::ifstream(path, std::ios::binary).read(magic, sizeof(magic));
  const std::string_view text(magic, sizeof(magic));
  return text.substr(1, 3) == "HDF" || text.substr(1, 5) == "NUMPY" || text.substr(0, 4) == std::string_view("PK\3\4", 4);
}

std::string shape_text(const LayerInfo& shape) { return fmt::format("{} x {} x {}", shape.num_kv_heads, shape.tokens, shape.head_dim); }

std::string side_text(const SideSpec& side) {
  switch (side.kind) {
    case CodeKind::Mse: return fmt::format("{} bits, Lloyd-Max{}", side.bits, side.pair_codebook ? " for pairs of coordinates" : "");
    case CodeKind::Prod: return fmt::format("{} bits and a sign of the residual (QJL)", side.bits - 1);
    case CodeKind::Mixed: return fmt::format("{}.5 bits (some channels {}, the others {})", side.bits, side.bits + 1, side.bits);
    case CodeKind::Fp8: return side.fp8 == Fp8Kind::E4M3 ? "FP8 E4M3" : "FP8 E4B15";
    case CodeKind::Uniform: return fmt::format("{} bits, uniform levels with scale and zero", side.bits);
    case CodeKind::Fp16: return "fp16";
  }
  return "unknown";
}

void describe_attributes(const DumpInfo& dump, std::string& text) {
  if (!dump.model.empty()) text += fmt::format("model       {}\n", dump.model);
  if (!dump.source.empty()) text += fmt::format("source      {}\n", dump.source);
}

void inspect_container(const Options& options, Container& container, nlohmann::json& result, Table& table, std::string& text) {
  const ContainerInfo& info = container.info();
  if (options.verify) container.verify();
  text += fmt::format("{}: tq4 container, format {}, written by {}\n", options.input, info.format_version, info.producer);
  text += fmt::format("codec       {}{}\n", spec_name(info.spec), info.calibrated ? ", calibrated" : "");
  text += fmt::format("  keys      {}\n  values    {}\n", side_text(info.spec.k), side_text(info.spec.v));
  if (info.spec.sinks > 0 || info.spec.window > 0)
    text += fmt::format("exact       first {} and last {} tokens in fp16\n", info.spec.sinks, info.spec.window);
  describe_attributes(info.dump, text);
  std::uint64_t k_bytes = 0, v_bytes = 0;
  std::int64_t values = 0;
  nlohmann::json layers = nlohmann::json::array();
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    const StoredLayer& layer = info.layers[i];
    const std::int64_t side_values = std::int64_t{layer.shape.num_kv_heads} * layer.shape.tokens * layer.shape.head_dim;
    const std::string kept = layer.passthrough ? "fp16: " + layer.reason
                             : layer.exact_first + layer.exact_last > 0
                                 ? fmt::format("{} + {} tokens in fp16", layer.exact_first, layer.exact_last)
                                 : "";
    table.add({layer.shape.layer, shape_text(layer.shape), Cell::bytes(layer.k_bytes),
               Cell::fixed(bits_per_value(layer.k_bytes, side_values), 3), Cell::bytes(layer.v_bytes),
               Cell::fixed(bits_per_value(layer.v_bytes, side_values), 3), kept});
    layers.push_back({{"layer", layer.shape.layer},
                      {"num_kv_heads", layer.shape.num_kv_heads},
                      {"tokens", layer.shape.tokens},
                      {"head_dim", layer.shape.head_dim},
                      {"dtype", dtype_name(layer.shape.k_dtype)},
                      {"passthrough", layer.passthrough},
                      {"reason", layer.reason},
                      {"exact_first", layer.exact_first},
                      {"exact_last", layer.exact_last},
                      {"k_bytes", layer.k_bytes},
                      {"v_bytes", layer.v_bytes},
                      {"k_bits_per_value", bits_per_value(layer.k_bytes, side_values)},
                      {"v_bits_per_value", bits_per_value(layer.v_bytes, side_values)}});
    k_bytes += layer.k_bytes;
    v_bytes += layer.v_bytes;
    values += side_values;
  }
  table.add_rule();
  table.add({"all", "", Cell::bytes(k_bytes), Cell::fixed(bits_per_value(k_bytes, values), 3), Cell::bytes(v_bytes),
             Cell::fixed(bits_per_value(v_bytes, values), 3), ""});
  result["kind"] = "container";
  result["format_version"] = info.format_version;
  result["producer"] = info.producer;
  result["codec"] = spec_name(info.spec);
  result["spec"] = nlohmann::json::parse(spec_to_json(info.spec));
  result["calibrated"] = info.calibrated;
  result["verified"] = options.verify;
  result["file_bytes"] = info.file_bytes;
  result["original_bytes"] = info.original_bytes;
  result["bits_per_value"] = bits_per_value(k_bytes + v_bytes, 2 * values);
  result["attributes"] = info.dump.attributes;
  result["layers"] = std::move(layers);
  text += fmt::format("size        {} of {} ({:.2f}x), {:.3f} bits a value; tables and header {}\n", format_bytes(double(info.file_bytes)),
                      format_bytes(double(info.original_bytes)),
                      info.file_bytes == 0 ? 0.0 : double(info.original_bytes) / double(info.file_bytes),
                      bits_per_value(k_bytes + v_bytes, 2 * values), format_bytes(double(info.file_bytes - k_bytes - v_bytes)));
  if (options.verify) text += "checksums   all hold\n";
}

void inspect_dump(const Options& options, const Dump& dump, nlohmann::json& result, Table& table, std::string& text) {
  if (options.verify) throw Error(ErrorCode::Usage, "is a dump; only containers hold checksums to verify", options.input);
  const DumpInfo& info = dump.info();
  text += fmt::format("{}: dump, {}\n", options.input, info.format);
  describe_attributes(info, text);
  nlohmann::json layers = nlohmann::json::array();
  std::uint64_t bytes = 0;
  for (const LayerInfo& layer : info.layers) {
    const std::uint64_t vectors = static_cast<std::uint64_t>(layer.num_kv_heads) * static_cast<std::uint64_t>(layer.tokens) *
                                  static_cast<std::uint64_t>(layer.head_dim);
    const std::uint64_t k = vectors * dtype_size(layer.k_dtype), v = vectors * dtype_size(layer.v_dtype);
    std::string queries = layer.q_tokens == 0 ? "none" : fmt::format("{} x {}", layer.num_q_heads, layer.q_tokens);
    table.add({layer.layer, shape_text(layer), Cell::bytes(k), Cell::fixed(bits_per_value(k, static_cast<std::int64_t>(vectors)), 3),
               Cell::bytes(v), Cell::fixed(bits_per_value(v, static_cast<std::int64_t>(vectors)), 3),
               fmt::format("{}; queries {}", dtype_name(layer.k_dtype), queries)});
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"num_q_heads", layer.num_q_heads},
                      {"tokens", layer.tokens},
                      {"q_tokens", layer.q_tokens},
                      {"q_start", layer.q_start},
                      {"head_dim", layer.head_dim},
                      {"k_dtype", dtype_name(layer.k_dtype)},
                      {"v_dtype", dtype_name(layer.v_dtype)},
                      {"sliding_window", layer.sliding_window},
                      {"o_gram", layer.has_o_gram}});
    bytes += k + v;
  }
  result["kind"] = "dump";
  result["format"] = info.format;
  result["attributes"] = info.attributes;
  result["original_bytes"] = bytes;
  result["layers"] = std::move(layers);
  text += fmt::format("size        {} of keys and values\n", format_bytes(double(bytes)));
}

void run(const Options& options) {
  check_outputs(options.output);
  const SpooledInput input(options.input);
  nlohmann::json result = result_envelope("inspect");
  result["input"] = options.input;
  Table table({{"layer"},
               {"shape", "heads x tokens x dim"},
               {"k_bytes", "K"},
               {"k_bits", "bits/value"},
               {"v_bytes", "V"},
               {"v_bits", "bits/value"},
               {"remarks", "", true}});
  std::string text;
  if (has_dump_magic(input.path())) {
    inspect_dump(options, *open_dump(input.path(), options.dump), result, table, text);
  } else {
    std::unique_ptr<Container> container;
    std::unique_ptr<Dump> dump;
    try {
      container = open_container(input.path());
    } catch (const Error& error) {
      try {  // a safetensors file that is no container may be a dump; if it is not, what was wrong with the container is the news
        dump = open_dump(input.path(), options.dump);
      } catch (const Error&) {
        throw error;
      }
    }
    if (container != nullptr)
      inspect_container(options, *container, result, table, text);
    else
      inspect_dump(options, *dump, result, table, text);
  }
  emit(options.output, result, table, text + '\n' + table.text());
}

}  // namespace

Action add_inspect(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Show the codec, the sizes and the effective bits a value of a container, or the shapes of a dump",
           {{"tq4 inspect dump.tq4 --verify", "sizes by layer, and every checksum checked"},
            {"tq4 inspect dump.h5 --json -", "layers and shapes of a dump as JSON"}});
  app.add_option("FILE", options->input, "Container (.tq4) or dump; - = stdin (containers)").required();
  app.add_flag("--verify", options->verify, "Check every checksum of the container (reads the whole file)").group("Checks");
  app.add_option("--axes", options->dump.axes, "Order of the axes of a dump: hsd, shd, bhsd, bshd (default: from the shapes)")
      .type_name("AXES")
      .group("Selection");
  add_output_options(app, options->output, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
