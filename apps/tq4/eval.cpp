// tq4 eval: what codecs cost on a dump, next to those of others, as a table, JSON, CSV and a page; what bits would hold a given error; and a gate
// for CI. Measuring and drawing are the library's (tq4/report.h); here are the options and the table.
#include <fmt/format.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <memory>

#include "args.h"
#include "build_info.h"
#include "common_args.h"
#include "progress.h"
#include "report.h"
#include "tq4/container.h"
#include "tq4/report.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string input;
  CodecOptions codec;
  std::vector<std::string> calibrations;
  Selection selection;
  ExecOptions exec;
  OutputOptions output;
  std::string html;
  std::vector<Limit> fail_above;
  double max_error = 0.05;
  bool no_recommend = false;
  std::string queries = "4k";
  std::int64_t memory = std::int64_t{1} << 30;
};

constexpr const char* kDefaultCodecs = "tq4,tq3,tq2,k4v3,fp8,int8,int4,q4_0,q4_0-rot,int4-g128-rot,kivi4,kivi4-g128,kivi2,vllm:4bit_nc";

/// Names asked for: --codec (with "all", "default"), --bits, --k-bits and --v-bits.
std::vector<std::string> codec_names(const CodecOptions& o) {
  const bool sides = !o.k_bits.empty() || !o.v_bits.empty();
  if (sides && o.bits.size() > 1) throw Error(ErrorCode::Usage, "several --bits cannot be combined with --k-bits or --v-bits");
  std::vector<std::string> names;
  if (sides) {
    const std::string both = o.bits.empty() ? "4" : o.bits.front();
    names.push_back(fmt::format("k{}v{}", o.k_bits.empty() ? both : o.k_bits, o.v_bits.empty() ? both : o.v_bits));
  } else {
    for (const std::string& bits : o.bits) names.push_back("tq" + bits);
  }
  std::vector<std::string> asked = o.codecs;
  if (asked.empty() && names.empty()) asked = {"default"};
  for (const std::string& name : asked) {
    if (name == "all") {
      names.insert(names.end(), tq4::codec_names().begin(), tq4::codec_names().end());
    } else if (name == "default") {
      for (const std::string& one : parse_names(kDefaultCodecs)) names.push_back(one);
    } else {
      names.push_back(name);
    }
  }
  std::vector<std::string> unique;
  for (const std::string& name : names) {
    if (std::find(unique.begin(), unique.end(), name) == unique.end()) unique.push_back(name);
  }
  return unique;
}

/// The same codec but for exact tokens.
bool same_body(CodecSpec a, CodecSpec b) {
  a.sinks = a.window = b.sinks = b.window = 0;
  return a == b;
}

/// Whether the calibration's tables suit the spec: a pair table only at its own bits.
bool suits(const Calibration& calibration, const CodecSpec& spec) {
  if (same_body(calibration.spec, spec)) return true;
  const auto side = [](const SideSpec& s, const SideSpec& made_for, bool pairs) {
    return s.kind == CodeKind::Mse && made_for.kind == CodeKind::Mse && s.codebook == made_for.codebook &&
           (!pairs || s.bits == made_for.bits);
  };
  const bool k_pairs =
      std::any_of(calibration.layers.begin(), calibration.layers.end(), [](const LayerCalibration& l) { return !l.k.pair_points.empty(); });
  const bool v_pairs =
      std::any_of(calibration.layers.begin(), calibration.layers.end(), [](const LayerCalibration& l) { return !l.v.pair_points.empty(); });
  return side(spec.k, calibration.spec.k, k_pairs) && side(spec.v, calibration.spec.v, v_pairs);
}

std::shared_ptr<const Compressor> own_codec(const std::string& name, const CodecSpec& spec, const Calibration* calibration,
                                            const Device& device) {
  if (device.cuda) return device_codec_compressor(name, spec, calibration, device.index);
  return codec_compressor(name, spec, calibration);
}

/// Sinks, window, rotation, seed and scale of the command line, where the codec is one of tq4's own.
std::shared_ptr<const Compressor> plain_codec(const std::string& name, const CodecOptions& overrides, const Device& device) {
  std::unique_ptr<Compressor> codec = make_compressor(name);
  if (codec->spec() == nullptr) return codec;
  return own_codec(codec->name(), apply_overrides(*codec->spec(), overrides), nullptr, device);
}

std::vector<std::shared_ptr<const Compressor>> all_codecs(const Options& options,
                                                          const std::vector<std::shared_ptr<Calibration>>& calibrations,
                                                          const Device& device) {
  std::vector<std::shared_ptr<const Compressor>> list;
  for (const std::string& name : codec_names(options.codec)) list.push_back(plain_codec(name, options.codec, device));
  const std::size_t plain = list.size();
  for (std::size_t c = 0; c < calibrations.size(); ++c) {
    const Calibration& calibration = *calibrations[c];
    const std::string suffix = calibrations.size() == 1 ? "+cal" : fmt::format("+cal{}", c + 1);
    bool any = false;
    for (std::size_t i = 0; i < plain; ++i) {
      const CodecSpec* spec = list[i]->spec();
      if (spec == nullptr || !suits(calibration, *spec)) continue;
      CodecSpec calibrated = calibration.spec;
      calibrated.k.bits = spec->k.bits, calibrated.v.bits = spec->v.bits;
      calibrated.sinks = spec->sinks, calibrated.window = spec->window;
      list.push_back(own_codec(list[i]->name() + suffix, calibrated, &calibration, device));
      any = true;
    }
    if (!any) {
      CodecSpec spec = calibration.spec;
      if (options.codec.sinks) spec.sinks = *options.codec.sinks;
      if (options.codec.window) spec.window = *options.codec.window;
      list.push_back(own_codec(spec_name(calibration.spec) + suffix, spec, &calibration, device));
    }
  }
  return list;
}

/// The table people read: a line a codec, over all layers; the rest is in JSON, CSV and HTML.
Table summary(const Report& report) {
  std::vector<Column> columns{{"codec", "codec", true}, {"bits"},     {"k_mse", "K error"}, {"/ theory"}, {"/ bound"},
                              {"v_mse", "V error"},     {"/ theory"}, {"/ bound"}};
  if (report.has_attention) {
    for (const char* name : {"logit rms", "KL mean", "KL 99%", "top-1", "output error", "output cos"}) columns.push_back({name});
  }
  Table table(columns);
  const auto times = [](double value, double reference) {
    return Cell(std::isnan(reference) ? "-" : fmt::format("{:.2f}x", value / reference));
  };
  for (const CodecReport& codec : report.codecs) {
    const Quality& q = codec.total;
    std::vector<Cell> cells{codec.name,
                            Cell::fixed(q.bits, 3),
                            Cell::number(q.k_mse, 3),
                            times(q.k_mse, q.k_theory),
                            times(q.k_mse, q.k_bound),
                            Cell::number(q.v_mse, 3),
                            times(q.v_mse, q.v_theory),
                            times(q.v_mse, q.v_bound)};
    if (report.has_attention) {
      for (Cell& cell :
           std::vector<Cell>{Cell::number(q.logit_rmse_centred, 3), Cell::number(q.kl_mean, 3), Cell::number(q.kl_p99, 3),
                             Cell(fmt::format("{:.1f}%", 100 * q.top1)), Cell::number(q.output_mse, 3), Cell::fixed(q.output_cosine, 4)}) {
        cells.push_back(std::move(cell));
      }
    }
    table.add(std::move(cells));
  }
  return table;
}

/// The table programs read: a line a codec and total, layer or head, every metric.
Table details(const Report& report) {
  std::vector<Column> columns{{"codec"}, {"layer"}, {"head"}};
  for (const MetricInfo& info : metric_infos()) columns.push_back({info.name});
  Table table(columns);
  const auto add = [&table](const std::string& codec, const std::string& layer, const std::string& head, const Quality& quality) {
    std::vector<Cell> cells{codec, layer, head};
    for (const MetricInfo& info : metric_infos()) cells.push_back(Cell::number(quality.*info.value));
    table.add(std::move(cells));
  };
  for (const CodecReport& codec : report.codecs) {
    add(codec.name, "", "", codec.total);
    for (const LayerQuality& layer : codec.layers) add(codec.name, std::to_string(layer.layer), "", layer.quality);
    for (const HeadQuality& head : codec.heads) add(codec.name, std::to_string(head.layer), std::to_string(head.head), head.quality);
  }
  return table;
}

std::string recommendation_text(const Recommendation& r) {
  std::string text =
      fmt::format("\nCheapest codecs with an output error (relative squared) of at most {:g} in every layer:\n", r.max_error);
  for (const LayerChoice& c : r.layers)
    text += fmt::format("  layer {:<3} {:<5} {:6.3f} bits, error {:.3g}\n", c.layer, c.codec, c.bits, c.output_mse);
  text += fmt::format("  mean {:.3f} bits a value\n  tq4:  {}   ({:.3f} bits)\n  vLLM: {}   ({:.3f} bits)\n", r.bits, r.tq4.flags,
                      r.tq4.bits, r.vllm.flags, r.vllm.bits);
  return text;
}

/// One line for each limit that a codec breaks.
std::vector<std::string> broken_limits(const std::vector<Limit>& limits, const Report& report) {
  std::vector<std::string> lines;
  for (const Limit& limit : limits) {
    const MetricInfo& info = metric_info(limit.metric);
    for (const CodecReport& codec : report.codecs) {
      const double value = codec.total.*info.value;
      if (std::isnan(value))
        lines.push_back(fmt::format("{} of {} could not be measured on this dump", limit.metric, codec.name));
      else if (value > limit.value)
        lines.push_back(fmt::format("{} of {} is {:.4g}, above {:g}", limit.metric, codec.name, value, limit.value));
    }
  }
  return lines;
}

void run(const Options& options) {
  check_outputs(options.output);
  for (const Limit& limit : options.fail_above) metric_info(limit.metric);
  if (!options.html.empty() && (options.html == options.output.json || options.html == options.output.csv))
    throw Error(ErrorCode::Usage, "names the same file as --json or --csv", "--html " + options.html);
  if (!options.html.empty() && options.html != "-" && !options.output.force && ::access(options.html.c_str(), F_OK) == 0)
    throw Error(ErrorCode::Usage, "exists already; --force replaces it", options.html);
  if (!(options.max_error > 0))
    throw Error(ErrorCode::Usage, "must be above 0; --no-recommend leaves the recommendation out", "--max-error");
  const Device device = resolve_device(options.exec.device, false);
  const std::unique_ptr<Dump> dump = open_dump(options.input, options.selection.dump);
  check_selection(options.selection, dump->info());
  std::vector<std::shared_ptr<Calibration>> calibrations;
  for (const std::string& path : options.calibrations) {
    calibrations.push_back(std::make_shared<Calibration>(read_calibration(path)));
    check_calibration(*calibrations.back(), dump->info());
  }

  EvalOptions eval;
  eval.layers = options.selection.layers;
  eval.heads = options.selection.heads;
  eval.max_queries = options.queries == "all" ? 0 : parse_size(options.queries);
  eval.threads = options.exec.thread_count();
  eval.memory_bytes = static_cast<std::size_t>(options.memory);
  constexpr std::uint64_t kSteps = 10000;
  const auto reporter = [](Progress& progress) {
    auto seen = std::make_shared<std::uint64_t>(0);
    return [&progress, seen](double share) {
      const auto now = static_cast<std::uint64_t>(share * kSteps);
      if (now > *seen) progress.add(now - *seen);
      *seen = std::max(*seen, now);
      return true;
    };
  };
  Report report;
  {
    Progress progress("measuring", kSteps, Progress::Unit::Items, options.output.quiet);
    eval.progress = reporter(progress);
    report = evaluate(*dump, all_codecs(options, calibrations, device), eval);
  }
  for (const std::string& line : report.notes) note(options.output, line);

  std::unique_ptr<Recommendation> recommendation;
  if (!options.no_recommend && report.has_attention) {
    Progress progress("recommending", kSteps, Progress::Unit::Items, options.output.quiet);
    RecommendOptions r;
    r.max_error = options.max_error;
    r.base = apply_overrides(calibrations.empty() ? spec_from_name("tq4") : calibrations.front()->spec, options.codec);
    r.calibration = calibrations.empty() ? nullptr : calibrations.front().get();
    r.layers = options.selection.layers;
    r.threads = eval.threads;
    r.memory_bytes = eval.memory_bytes;
    r.progress = reporter(progress);
    recommendation = std::make_unique<Recommendation>(recommend(*dump, r));
    if (r.calibration != nullptr && recommendation->tq4.codec != "fp16") {
      const std::string& codec = recommendation->tq4.codec;
      const bool made = same_body(spec_from_name(codec), r.calibration->spec);
      const std::string file = made ? options.calibrations.front() : codec + ".tq4cal";
      recommendation->tq4.flags += " --calibration " + file;
      if (!made) {
        report.notes.push_back(fmt::format(
            "recommended with the tables of {}, which were made for {}; make {}'s own first: tq4 calibrate DUMPS --codec {} -o {}",
            options.calibrations.front(), spec_name(r.calibration->spec), codec, codec, file));
        note(options.output, report.notes.back());
      }
    }
  }

  nlohmann::json result = result_envelope("eval");
  result.update(nlohmann::json::parse(to_json(report, recommendation.get())));
  const std::string text = summary(report).text() + (recommendation ? recommendation_text(*recommendation) : std::string());
  emit(options.output, result, details(report), text);
  if (!options.html.empty()) {
    const BuildInfo build = build_info();
    write_text_file(options.html, to_html(report, recommendation.get(), fmt::format("tq4 {} ({})", build.version, build.commit)),
                    options.output.force);
  }
  std::string broken;
  for (const std::string& line : broken_limits(options.fail_above, report)) broken += (broken.empty() ? "" : "; ") + line;
  if (!broken.empty()) throw Error(ErrorCode::QualityGate, broken, "--fail-above");
}

}  // namespace

Action add_eval(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Measure what codecs cost on a dump, next to those of others",
           {{"tq4 eval dump.h5 --bits 3/4 --html report.html", "a table, and a page with pictures"},
            {"tq4 eval dump.h5 --codec tq4,kivi4,q4_0-rot --max-error 0.02 --fail-above kl_mean=0.05 --json -",
             "a gate for CI: exit 4 above the limit"}});
  app.add_option("dump", options->input, "K, V and Q of a model: HDF5, safetensors, npy or npz").required().type_name("DUMP");
  add_codec_options(app, options->codec);
  app.explain(
      "--codec",
      "Codecs by name, comma-separated. tq4's: tq4, k4v3, tq3-2d, ...; others: fp8, int8, int4, intB-gN[-rot], q8_0, q4_0[-rot], "
      "kiviB[-gN][-rN], kvquantB[-1%], nvfp4, mxfp4, vllm:4bit_nc, turboquant-vllm; +wN and +sN keep the last and first N tokens exact; "
      "default, all");
  app.explain("--bits",
              "Bits a value of K and V: 1..8, 2.5, 3.5; several: 3/4 (default, with no --codec either: tq4 at 4, 3 and 2 bits next to ten "
              "others)");
  app.add_option("--calibration", options->calibrations,
                 "Calibration of this model (.tq4cal): its codecs are shown beside the plain ones; repeatable")
      .type_name("FILE")
      .group("Codec");
  add_selection_options(app, options->selection, true);
  add_parsed(
      app, "--queries", options->queries,
      [](const std::string& text) {
        if (text != "all") parse_size(text);
        return text;
      },
      "N", "4k", "Queries a query head, evenly spaced where the dump has more; all = every one")
      .group("Selection");
  add_parsed(app, "--max-error", options->max_error, parse_number, "X", "0.05",
             "Recommend the cheapest bits that hold this relative squared error of the attention output in every layer")
      .group("Recommendation");
  app.add_flag("--no-recommend", options->no_recommend, "Leave the recommendation out").group("Recommendation");
  app.add_list(
         "--fail-above",
         [options](const std::vector<std::string>& texts) {
           for (const std::string& text : texts) options->fail_above.push_back(parse_limit(text));
         },
         "Exit 4 when a codec's metric over all layers is above the value, e.g. kl_mean=0.05; repeatable")
      .type_name("METRIC=VALUE")
      .group("Output");
  add_output_options(app, options->output, true);
  app.add_option("--html", options->html, "Write a self-contained page with pictures").type_name("PATH").group("Output");
  add_threads_option(app, options->exec);
  add_device_option(
      app, options->exec,
      "Where tq4's codecs encode and decode: auto (= cpu here), cpu, cuda or cuda:N. Metrics and other codecs are computed on the CPU");
  add_parsed(app, "--memory", options->memory, parse_size, "SIZE", "1G",
             "Measure codecs in batches whose reconstructions fit in this much memory")
      .group("Execution");
  return [options] { run(*options); };
}

}  // namespace tq4::cli
