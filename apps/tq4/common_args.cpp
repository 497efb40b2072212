// Declaration and checks of the shared options; see common_args.h.
#include "common_args.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <thread>

#include "args.h"
#include "tq4/gpu.h"

namespace tq4::cli {
namespace {

template <class T>
T one_of(std::string_view text, const std::vector<std::pair<std::string, T>>& table) {
  std::vector<std::string> names;
  for (const auto& [name, value] : table) {
    if (name == text) return value;
    names.push_back(name);
  }
  throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of {}", text, fmt::join(names, ", ")));
}

bool rotates(const SideSpec& side) { return side.kind == CodeKind::Mse || side.kind == CodeKind::Prod || side.kind == CodeKind::Mixed; }

}  // namespace

void add_output_options(VerbOptions& app, OutputOptions& options, bool with_csv) {
  app.add_option("--json", options.json, "Write the result as JSON; - = stdout").type_name("PATH").group("Output");
  if (with_csv) app.add_option("--csv", options.csv, "Write the table as CSV; - = stdout").type_name("PATH").group("Output");
  app.add_flag("--force", options.force, "Replace files that exist (default: refuse)").group("Output");
  app.add_flag("-q,--quiet", options.quiet, "No progress and no notes on stderr").group("Output");
}

int ExecOptions::thread_count() const {
  if (threads > 0) return threads;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void add_threads_option(VerbOptions& app, ExecOptions& options) {
  const auto parse = [](std::string_view text) {
    const int threads = parse_count(text);
    if (threads > 1024) throw Error(ErrorCode::Usage, fmt::format("{} threads; at most 1024", threads));
    return threads;
  };
  add_parsed(app, "--threads", options.threads, parse, "N", "0", "CPU threads; 0 = all cores. The bytes written do not depend on it")
      .group("Execution");
}

void add_device_option(VerbOptions& app, ExecOptions& options, const std::string& description) {
  const auto parse = [](const std::string& text) {
    const bool numbered = text.size() > 5 && text.compare(0, 5, "cuda:") == 0;
    if (numbered) parse_count(std::string_view(text).substr(5));
    if (!numbered && text != "auto" && text != "cpu" && text != "cuda")
      throw Error(ErrorCode::Usage, fmt::format("'{}' is not one of auto, cpu, cuda, cuda:N", text));
    return text;
  };
  add_parsed(app, "--device", options.device, parse, "DEVICE", "auto", description).group("Execution");
}

Device resolve_device(const std::string& text, bool prefer_cuda, bool cpu_serves) {
  if (text == "cpu") return {};
  const int count = gpu::compiled() ? gpu::device_count() : 0;
  if (text == "auto") return {prefer_cuda && count > 0, 0};
  if (!gpu::compiled()) {
    const char* mend = cpu_serves ? "use --device cpu" : "configure one with -DTQ4_CUDA=ON";
    throw Error(ErrorCode::NoDevice, fmt::format("this build of tq4 has no CUDA backend; {}", mend), "--device " + text);
  }
  if (count == 0) {
    const char* mend = cpu_serves ? "use --device cpu" : "this verb needs one";
    throw Error(ErrorCode::NoDevice, fmt::format("no CUDA device here (no driver, or no GPU); {}", mend), "--device " + text);
  }
  const int index = text == "cuda" ? 0 : parse_count(std::string_view(text).substr(5));
  if (index >= count)
    throw Error(ErrorCode::NoDevice, fmt::format("this machine has {} CUDA device(s), numbered from 0", count), "--device " + text);
  return {true, index};
}

bool Selection::has_layer(int layer) const { return !layers || std::binary_search(layers->begin(), layers->end(), layer); }
bool Selection::has_head(int head) const { return !heads || std::binary_search(heads->begin(), heads->end(), head); }

void add_selection_options(VerbOptions& app, Selection& selection, bool with_heads) {
  add_parsed(app, "--layers", selection.layers, parse_indices, "LIST", "", "Layers by number, e.g. 0..3,30 (default: all)")
      .group("Selection");
  if (with_heads)
    add_parsed(app, "--heads", selection.heads, parse_indices, "LIST", "", "Key/value heads by number (default: all)").group("Selection");
  app.add_option("--dataset", selection.dump.dataset_glob, "Only layers whose dataset path matches, e.g. '/model/layer_*'")
      .type_name("GLOB")
      .group("Selection");
  const auto parse_axes = [](const std::string& text) {
    return one_of<std::string>(text, {{"hsd", "hsd"}, {"shd", "shd"}, {"bhsd", "bhsd"}, {"bshd", "bshd"}});
  };
  add_parsed(app, "--axes", selection.dump.axes, parse_axes, "AXES", "",
             "Order of the axes in the file (b batch, h heads, s tokens, d head_dim): hsd, shd, bhsd, bshd (default: from the shapes)")
      .group("Selection");
}

void check_selection(const Selection& selection, const DumpInfo& info) {
  std::vector<int> present;
  for (const LayerInfo& layer : info.layers) present.push_back(layer.layer);
  if (selection.layers) {
    for (const int wanted : *selection.layers) {
      if (std::find(present.begin(), present.end(), wanted) == present.end())
        throw Error(ErrorCode::Usage, fmt::format("layer {} is not in {} (it has {})", wanted, info.path, fmt::join(present, ", ")),
                    "--layers");
    }
  }
  if (selection.heads) {
    for (const LayerInfo& layer : info.layers) {
      if (selection.has_layer(layer.layer) && !selection.heads->empty() && selection.heads->back() >= layer.num_kv_heads)
        throw Error(ErrorCode::Usage, fmt::format("layer {} has {} key/value heads, numbered from 0", layer.layer, layer.num_kv_heads),
                    "--heads");
    }
  }
}

RotationKind parse_rotation(std::string_view text) {
  return one_of<RotationKind>(text, {{"none", RotationKind::None},
                                     {"haar", RotationKind::Haar},
                                     {"haar-torch", RotationKind::HaarTorch},
                                     {"hadamard", RotationKind::Hadamard},
                                     {"hadamard-signed", RotationKind::HadamardSigned}});
}

ScaleRule parse_scale(std::string_view text) {
  return one_of<ScaleRule>(text, {{"ls", ScaleRule::LeastSquares}, {"norm", ScaleRule::Norm}, {"unbiased", ScaleRule::Unbiased}});
}

void add_codec_options(VerbOptions& app, CodecOptions& options) {
  const auto parse_one = [](std::string_view text) {
    const std::vector<std::string> bits = parse_bits(text);
    if (bits.size() != 1) throw Error(ErrorCode::Usage, "takes one number; several combinations: --codec k4v3,k4v2");
    return bits.front();
  };
  add_parsed(app, "--bits", options.bits, parse_bits, "BITS", "", "Bits a value of K and V: 1..8, 2.5, 3.5; several: 3/4 (default: 4)")
      .group("Codec");
  add_parsed(app, "--k-bits", options.k_bits, parse_one, "BITS", "", "Bits of K alone (8: FP8 keys)").group("Codec");
  add_parsed(app, "--v-bits", options.v_bits, parse_one, "BITS", "", "Bits of V alone").group("Codec");
  add_parsed(app, "--codec", options.codecs, parse_names, "NAME", "",
             "Codec by name: tq3, k4v3, k8v4, fp8, tq4-prod, k4v3-2d, tq4-norm, turboquant-vllm, vllm:4bit_nc, ...")
      .group("Codec");
  add_parsed(app, "--rotation", options.rotation, parse_rotation, "KIND", "",
             "haar, hadamard, hadamard-signed, haar-torch (turboquant-vllm's) or none (default: the codec's, haar)")
      .group("Codec");
  add_parsed(app, "--seed", options.seed, parse_seed, "N", "", "Seed of the rotation, stored in the file (default: 42)").group("Codec");
  add_parsed(app, "--scale", options.scale, parse_scale, "RULE", "",
             "Stored scale: ls (least squares), norm (the paper's), unbiased (default: ls)")
      .group("Codec");
  add_parsed(app, "--sinks", options.sinks, parse_count, "TOKENS", "", "First tokens kept in fp16 (default: 0)").group("Codec");
  add_parsed(app, "--window", options.window, parse_count, "TOKENS", "", "Last tokens kept in fp16 (default: 0)").group("Codec");
}

CodecSpec apply_overrides(CodecSpec spec, const CodecOptions& options) {
  for (SideSpec* side : {&spec.k, &spec.v}) {
    if (!rotates(*side)) continue;
    if (options.rotation) side->rotation = *options.rotation;
    if (options.seed) side->seed = *options.seed;
    if (options.scale) side->scale_rule = *options.scale;
  }
  if (options.sinks) spec.sinks = *options.sinks;
  if (options.window) spec.window = *options.window;
  return spec;
}

std::vector<NamedSpec> codec_specs(const CodecOptions& options, const std::string& fallback) {
  const bool sides = !options.k_bits.empty() || !options.v_bits.empty();
  if (!options.codecs.empty() && (sides || !options.bits.empty()))
    throw Error(ErrorCode::Usage, "--codec names K and V already; leave out --bits, --k-bits and --v-bits");
  if (sides && options.bits.size() > 1) throw Error(ErrorCode::Usage, "several --bits cannot be combined with --k-bits or --v-bits");

  std::vector<std::string> names = options.codecs;
  if (sides) {
    const std::string both = options.bits.empty() ? "4" : options.bits.front();
    names.push_back(fmt::format("k{}v{}", options.k_bits.empty() ? both : options.k_bits, options.v_bits.empty() ? both : options.v_bits));
  }
  if (names.empty()) {
    for (const std::string& bits : options.bits) names.push_back("tq" + bits);
  }
  if (names.empty()) names.push_back(fallback);

  std::vector<NamedSpec> specs;
  for (const std::string& name : names) specs.push_back({name, apply_overrides(spec_from_name(name), options)});
  return specs;
}

}  // namespace tq4::cli
