// tq4 compress: a dump of keys and values in, a container out. This file holds the options, the plan (which layer is stored how) and the
// report; the work itself is in encode_dump.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "args.h"
#include "common_args.h"
#include "encode_dump.h"
#include "paths.h"
#include "report.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string input, output, calibration, nonfinite = "refuse", measure = "auto";
  CodecOptions codec;
  Selection selection;
  std::vector<int> skip_layers;
  ExecOptions exec;
  OutputOptions output_options;
};

struct Target {
  NamedSpec codec;
  std::string path;
};

std::vector<Target> plan_outputs(const Options& options, const std::vector<NamedSpec>& specs) {
  if (specs.size() == 1) return {{specs[0], options.output.empty() ? beside(options.input, ".tq4") : options.output}};
  // Several codecs: one container each, named after the codec, beside the input or in the folder that -o names.
  std::string stem = beside(options.input, "");
  if (!options.output.empty()) {
    if (!std::filesystem::is_directory(options.output))
      throw Error(ErrorCode::Usage,
                  fmt::format("{} codecs give {} files; -o must name an existing folder, or be left out", specs.size(), specs.size()),
                  "-o");
    stem = (std::filesystem::path(options.output) / std::filesystem::path(stem).filename()).string();
  }
  std::vector<Target> targets;
  for (const NamedSpec& spec : specs) {
    std::string suffix = spec.name;
    std::replace(suffix.begin(), suffix.end(), ':', '-');
    targets.push_back({spec, fmt::format("{}.{}.tq4", stem, suffix)});
  }
  return targets;
}

/// The whole name stands above the table; a long one would only widen it.
std::string layer_codec(const StoredLayer& layer, const std::string& name) {
  return layer.passthrough ? "fp16" : name.size() <= 12 ? name : "as above";
}

double ratio(std::uint64_t original, std::uint64_t compressed) {
  return compressed == 0 ? 1.0 : static_cast<double>(original) / static_cast<double>(compressed);
}

nlohmann::json side_json(std::uint64_t bytes, std::int64_t values, const SideResult& side) {
  nlohmann::json json{{"bytes", bytes}, {"bits_per_value", bits_per_value(bytes, values)}, {"measured_vectors", side.error.vectors}};
  json["relative_squared_error"] = side.error.vectors > 0 ? nlohmann::json(side.error.relative_mse()) : nlohmann::json();
  json["cosine"] = side.error.vectors > 0 ? nlohmann::json(side.error.cosine()) : nlohmann::json();
  json["theory"] = std::isnan(side.theory) ? nlohmann::json() : nlohmann::json(side.theory);
  return json;
}

Cell error_cell(const SideResult& side) {
  return side.error.vectors == 0 ? Cell("-", "")
                                 : Cell(fmt::format("{:.3g}", side.error.relative_mse()), fmt::format("{}", side.error.relative_mse()));
}

/// One row a layer, a total, and the same as JSON.
std::string report_table(const CompressResult& result, const std::string& codec_name, Table& table, nlohmann::json& json) {
  std::uint64_t k_bytes = 0, v_bytes = 0;
  std::int64_t values = 0;
  SideResult k_total, v_total;
  k_total.theory = v_total.theory = std::nan("");
  json["layers"] = nlohmann::json::array();
  for (const LayerResult& layer : result.layers) {
    const LayerInfo& shape = layer.stored.shape;
    const std::int64_t side_values = std::int64_t{shape.num_kv_heads} * shape.tokens * shape.head_dim;
    table.add({shape.layer, fmt::format("{} x {} x {}", shape.num_kv_heads, shape.tokens, shape.head_dim),
               layer_codec(layer.stored, codec_name), Cell::bytes(layer.original_bytes),
               Cell::bytes(layer.stored.k_bytes + layer.stored.v_bytes),
               Cell::fixed(ratio(layer.original_bytes, layer.stored.k_bytes + layer.stored.v_bytes), 2),
               Cell::fixed(bits_per_value(layer.stored.k_bytes, side_values), 3), error_cell(layer.k), Cell::number(layer.k.theory, 3),
               Cell::fixed(bits_per_value(layer.stored.v_bytes, side_values), 3), error_cell(layer.v), Cell::number(layer.v.theory, 3)});
    json["layers"].push_back({{"layer", shape.layer},
                              {"num_kv_heads", shape.num_kv_heads},
                              {"tokens", shape.tokens},
                              {"head_dim", shape.head_dim},
                              {"codec", layer.stored.passthrough ? "fp16" : codec_name},
                              {"reason", layer.stored.reason},
                              {"exact_first", layer.stored.exact_first},
                              {"exact_last", layer.stored.exact_last},
                              {"original_bytes", layer.original_bytes},
                              {"k", side_json(layer.stored.k_bytes, side_values, layer.k)},
                              {"v", side_json(layer.stored.v_bytes, side_values, layer.v)}});
    k_bytes += layer.stored.k_bytes;
    v_bytes += layer.stored.v_bytes;
    values += side_values;
    k_total.error.add(layer.k.error);
    v_total.error.add(layer.v.error);
  }
  table.add_rule();
  table.add({"all", "", "", Cell::bytes(result.original_bytes), Cell::bytes(k_bytes + v_bytes),
             Cell::fixed(ratio(result.original_bytes, k_bytes + v_bytes), 2), Cell::fixed(bits_per_value(k_bytes, values), 3),
             error_cell(k_total), "", Cell::fixed(bits_per_value(v_bytes, values), 3), error_cell(v_total), ""});
  json["original_bytes"] = result.original_bytes;
  json["file_bytes"] = result.file_bytes;
  json["k"] = side_json(k_bytes, values, k_total);
  json["v"] = side_json(v_bytes, values, v_total);
  json["bits_per_value"] = bits_per_value(k_bytes + v_bytes, 2 * values);
  return fmt::format("{} with all tables: {} of {} ({:.2f}x), {:.3f} bits a value; errors are relative squared errors{}\n", "file",
                     format_bytes(double(result.file_bytes)), format_bytes(double(result.original_bytes)),
                     ratio(result.original_bytes, result.file_bytes), bits_per_value(k_bytes + v_bytes, 2 * values),
                     result.measured_all ? ", all vectors decoded"
                                         : fmt::format(", {} of {} vectors decoded", result.measured_vectors, result.encoded_vectors));
}

void compress_one(const Options& options, const Target& target, Dump& dump, const Calibration* calibration, const Device& device,
                  bool to_stdout, nlohmann::json& json, Table& table, std::string& text) {
  SpooledOutput output(target.path);
  EncodeRequest request;
  request.spec = target.codec.spec;
  request.calibration = calibration;
  request.selection = options.selection;
  request.skip_layers = options.skip_layers;
  request.threads = options.exec.thread_count();
  if (device.cuda) request.cuda_device = device.index;
  request.nonfinite = options.nonfinite == "zero" ? NonFinite::Zero : NonFinite::Refuse;
  request.measure = options.measure == "all" ? Measure::All : options.measure == "none" ? Measure::None : Measure::Auto;
  request.quiet = options.output_options.quiet;
  request.overwrite = options.output_options.force;

  const auto start = std::chrono::steady_clock::now();
  const CompressResult result = encode_dump(dump, output.path(), request);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  const std::string name = spec_name(target.codec.spec);
  nlohmann::json one{{"output", target.path},
                     {"codec", name},
                     {"spec", nlohmann::json::parse(spec_to_json(target.codec.spec))},
                     {"calibrated", calibration != nullptr},
                     {"seconds", seconds},
                     {"threads", request.threads},
                     {"device", device.name()}};
  const std::string summary = report_table(result, name, table, one);
  json.push_back(std::move(one));
  text += fmt::format("{} -> {}: {}{}{}, {} in {}\n\n{}\n{}", options.input, to_stdout ? "standard output" : target.path, name,
                      calibration != nullptr ? ", calibrated" : "", device.cuda ? ", on " + device.name() : "",
                      format_bytes(double(result.original_bytes)), format_seconds(seconds), table.text(), summary);
  for (const LayerResult& layer : result.layers) {
    if (!layer.stored.reason.empty()) text += fmt::format("layer {} is kept in fp16: {}\n", layer.stored.shape.layer, layer.stored.reason);
  }
  output.finish();
}

/// Matrices and pair tables of a calibration hold its rotation and its bits; only what is stored as scale may differ, and what stays exact.
void check_calibrated_spec(const Calibration& calibration, CodecSpec wanted) {
  for (const auto& [made_for, side] : {std::pair(&calibration.spec.k, &wanted.k), std::pair(&calibration.spec.v, &wanted.v)}) {
    side->scale_rule = made_for->scale_rule;
    side->scale_dtype = made_for->scale_dtype;
  }
  wanted.sinks = calibration.spec.sinks;
  wanted.window = calibration.spec.window;
  if (!(wanted == calibration.spec))
    throw Error(ErrorCode::Usage,
                fmt::format("was made for {}, not for {}; leave the codec options out, or calibrate for that codec",
                            spec_name(calibration.spec), spec_name(wanted)),
                "--calibration");
}

void run(const Options& options) {
  check_outputs(options.output_options);
  check_seekable_input(options.input);
  const bool to_stdout = options.output == "-";
  if (to_stdout && (options.output_options.json == "-")) throw Error(ErrorCode::Usage, "-o - and --json - both ask for standard output");

  const Device device = resolve_device(options.exec.device, false);
  std::unique_ptr<Calibration> calibration;
  if (!options.calibration.empty()) calibration = std::make_unique<Calibration>(read_calibration(options.calibration));
  std::vector<NamedSpec> specs;
  const bool codec_named =
      !options.codec.bits.empty() || !options.codec.k_bits.empty() || !options.codec.v_bits.empty() || !options.codec.codecs.empty();
  if (calibration != nullptr && !codec_named)
    specs = {{spec_name(calibration->spec), apply_overrides(calibration->spec, options.codec)}};
  else
    specs = codec_specs(options.codec);
  const std::vector<Target> targets = plan_outputs(options, specs);
  for (const Target& target : targets) check_output_path(options.input, target.path, options.output_options.force);
  if (to_stdout && targets.size() > 1) throw Error(ErrorCode::Usage, "-o - takes one container", "-o");

  DumpOptions dump_options = options.selection.dump;
  dump_options.read_once = targets.size() == 1;
  const std::unique_ptr<Dump> dump = open_dump(options.input, dump_options);
  check_selection(options.selection, dump->info());
  if (calibration != nullptr) {
    check_calibration(*calibration, dump->info());
    for (const NamedSpec& spec : specs) check_calibrated_spec(*calibration, spec.spec);
  }
  nlohmann::json runs = nlohmann::json::array();
  std::string text;
  const auto new_table = [] {
    return Table({{"layer"},
                  {"shape", "heads x tokens x dim"},
                  {"codec", "", true},
                  {"original_bytes", "original"},
                  {"compressed_bytes", "compressed"},
                  {"ratio"},
                  {"k_bits", "K bits"},
                  {"k_error", "K error"},
                  {"k_theory", "theory"},
                  {"v_bits", "V bits"},
                  {"v_error", "V error"},
                  {"v_theory", "theory"}});
  };
  Table table = new_table();
  for (const Target& target : targets) {
    table = new_table();
    if (!text.empty()) text += '\n';
    compress_one(options, target, *dump, calibration.get(), device, to_stdout, runs, table, text);
  }
  nlohmann::json result = result_envelope("compress");
  result["input"] = options.input;
  result["outputs"] = std::move(runs);
  if (to_stdout) {  // stdout carries the container
    if (!options.output_options.json.empty())
      write_text_file(options.output_options.json, result.dump(2) + "\n", options.output_options.force);
    if (!options.output_options.quiet) fmt::print(stderr, "{}", text);
    return;
  }
  emit(options.output_options, result, table, text);
}

}  // namespace

Action add_compress(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Compress the keys and values of a dump into a .tq4 container",
           {{"tq4 compress dump.h5 --bits 3/4", "dump.tq3.tq4 and dump.tq4.tq4, and what each cost"},
            {"tq4 compress dump.h5 --k-bits 4 --v-bits 3 --sinks 4 --window 64 -o small.tq4",
             "4-bit keys, 3-bit values, the first 4 and last 64 tokens in fp16"}});
  app.add_option("DUMP", options->input, "Dump: HDF5, safetensors, npy or npz (FORMAT.md)").required();
  app.add_option("-o,--output", options->output, "Container to write; - = stdout (default: DUMP with .tq4 for its suffix)")
      .type_name("PATH")
      .group("Output");
  add_codec_options(app, options->codec);
  app.add_option("--calibration", options->calibration, "Use a .tq4cal file made by tq4 calibrate; its codec is the default")
      .type_name("PATH")
      .group("Codec");
  add_parsed(app, "--skip-layers", options->skip_layers, parse_indices, "LIST", "", "Layers kept in fp16, e.g. 0..1,30 (default: none)")
      .group("Codec");
  const auto parse_nonfinite = [](const std::string& text) {
    if (text != "refuse" && text != "zero") throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of refuse, zero", text));
    return text;
  };
  add_parsed(app, "--nonfinite", options->nonfinite, parse_nonfinite, "POLICY", "refuse",
             "NaN and infinity: refuse (with their position) or zero")
      .group("Codec");
  const auto parse_measure = [](const std::string& text) {
    if (text != "auto" && text != "all" && text != "none")
      throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of auto, all, none", text));
    return text;
  };
  add_parsed(
      app, "--measure", options->measure, parse_measure, "SHARE", "auto",
      "Vectors decoded again to measure the error: all, none, or auto (all of a dump up to 262144 vectors, about as many of a larger one)")
      .group("Output");
  add_selection_options(app, options->selection, false);
  add_threads_option(app, options->exec);
  add_device_option(app, options->exec, "Where to encode: auto (= cpu here), cpu, cuda or cuda:N");
  add_output_options(app, options->output_options, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
