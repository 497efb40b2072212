// tq4 calibrate: tables for a model from dumps of it, to be used on every other text of that model (compress and eval --calibration).
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "common_args.h"
#include "paths.h"
#include "progress.h"
#include "report.h"
#include "tq4/container.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::vector<std::string> inputs;
  std::string output;
  CodecOptions codec;
  DumpOptions dump;
  CalibrateOptions calibrate;
  ExecOptions exec;
  OutputOptions output_options;
};

void run(Options& options) {
  const std::string output = options.output.empty() ? beside(options.inputs.front(), ".tq4cal") : options.output;
  for (const std::string& input : options.inputs) {
    check_seekable_input(input);
    check_output_path(input, output, options.output_options.force);
  }
  check_outputs(options.output_options);
  const std::vector<NamedSpec> specs = codec_specs(options.codec, "tq4-2d");
  if (specs.size() != 1) throw Error(ErrorCode::Usage, "calibrate for one codec at a time", "--codec");
  std::vector<std::unique_ptr<Dump>> dumps;
  std::vector<Dump*> pointers;
  for (const std::string& input : options.inputs) {
    dumps.push_back(open_dump(input, options.dump));
    pointers.push_back(dumps.back().get());
  }
  options.calibrate.spec = specs.front().spec;
  options.calibrate.threads = options.exec.thread_count();
  CalibrateReport report;
  Calibration calibration;
  {
    constexpr std::uint64_t kSteps = 1000;
    Progress progress("calibrating", kSteps, Progress::Unit::Items, options.output_options.quiet);
    std::uint64_t shown = 0;
    options.calibrate.progress = [&](double share) {
      const auto now = static_cast<std::uint64_t>(std::lround(share * kSteps));
      progress.add(now - shown);
      shown = now;
    };
    calibration = calibrate(pointers, options.calibrate, &report);
  }
  write_calibration(output, calibration, options.output_options.force);

  Table table({{"layer"}, {"head"}, {"side"}, {"mean_share", "mean %"}, {"expected_gain", "expected gain"}});
  nlohmann::json heads = nlohmann::json::array();
  for (const HeadCalibrationReport& head : report.heads) {
    const char* side = head.side == Side::K ? "k" : "v";
    table.add({head.layer, head.head, side, Cell(fmt::format("{:.1f}", 100 * head.mean_share), fmt::format("{}", head.mean_share)),
               Cell::fixed(head.expected_gain, 2)});
    heads.push_back({{"layer", head.layer},
                     {"head", head.head},
                     {"side", side},
                     {"mean_share", head.mean_share},
                     {"expected_gain", head.expected_gain}});
  }
  for (const std::string& warning : report.warnings) note(options.output_options, "warning: " + warning);
  nlohmann::json result = result_envelope("calibrate");
  result["output"] = output;
  result["codec"] = spec_name(calibration.spec);
  const auto name_of = [&](const std::optional<CalibrationMethod>& own) {
    return std::string(calibration_method_name(own.value_or(options.calibrate.method)));
  };
  result["method"] = std::string(calibration_method_name(options.calibrate.method));
  result["k_method"] = name_of(options.calibrate.method_k);
  result["v_method"] = name_of(options.calibrate.method_v);
  result["centre"] = options.calibrate.centre;
  result["rope"] = options.calibrate.rope;
  result["pairs"] = options.calibrate.pair_fit == PairFit::Gaussian ? "gaussian"
                    : options.calibrate.pair_fit == PairFit::Layer  ? "layer"
                                                                    : "attention";
  result["output_share"] = options.calibrate.output_share;
  result["tokens"] = calibration.tokens;
  result["warnings"] = report.warnings;
  result["heads"] = std::move(heads);
  emit(options.output_options, result, table,
       table.text() +
           fmt::format("\n{} for {} from {} tokens of {}\n", output, spec_name(calibration.spec), calibration.tokens, calibration.model));
}

}  // namespace

Action add_calibrate(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(
      app, "Learn tables for a model that halve a codec's error at the same bytes",
      {{"tq4 calibrate a.h5 b.h5 --codec tq4-2d -o model.tq4cal",
        "from two sequences of one model; then compress --calibration model.tq4cal"},
       {"tq4 calibrate dump.h5 --codec k3v3-2d --rope", "centre keys before RoPE: better still, at a small cost in the decode kernel"}});
  app.add_option("DUMPS", options->inputs, "K, V and Q of a model (HDF5, safetensors, npy or npz), each a sequence from position 0")
      .required()
      .type_name("DUMP");
  app.add_option("-o,--output", options->output, "Calibration to write (default: the first dump's name with .tq4cal)")
      .type_name("FILE")
      .group("Output");
  add_codec_options(app, options->codec);
  const auto method = [](const std::string& text) { return calibration_method_from_name(text); };
  add_parsed(app, "--method", options->calibrate.method, method, "NAME", "feedback",
             "centre (mean of each head), transform (and a matrix from key covariance and query moment), feedback (and predictive coding: "
             "later codes make "
             "good what earlier ones got wrong; encoding costs about ten times as much, decoding nothing)")
      .group("Calibration");
  const auto side_method = [](const std::string& text) { return std::optional(calibration_method_from_name(text)); };
  add_parsed(app, "--k-method", options->calibrate.method_k, side_method, "NAME", "", "Method of K alone; also none (default: --method)")
      .group("Calibration");
  add_parsed(app, "--v-method", options->calibrate.method_v, side_method, "NAME", "", "Method of V alone; also none (default: --method)")
      .group("Calibration");
  app.add_flag(
         "--no-centre", [options] { options->calibrate.centre = false; },
         "Subtract no means: transforms are made from second moments about zero")
      .group("Calibration");
  app.add_flag("--rope", options->calibrate.rope, "Centre keys before RoPE: decoding has to add q . R_p mu to every logit")
      .group("Calibration");
  const auto number = [](const std::string& text) {
    try {
      std::size_t used = 0;
      const double value = std::stod(text, &used);
      if (used == text.size() && value >= 0) return value;
    } catch (const std::exception&) {
    }
    throw Error(ErrorCode::Usage, fmt::format("'{}' is no number of at least 0", text));
  };
  add_parsed(app, "--shrink", options->calibrate.shrink, number, "X", "0.002",
             "Share of the mean eigenvalue added to covariances (and head_dim / 2 tokens)")
      .group("Calibration");
  add_parsed(app, "--attention-weight", options->calibrate.attention_weight, number, "X", "0.5",
             "Share of the statistics weighted by attention, 0 to 1")
      .group("Calibration");
  add_parsed(app, "--output-share", options->calibrate.output_share, number, "X", "0",
             "Share of the values' weight that counts all directions of the attention output equally instead of by o_gram, 0 to 1")
      .group("Calibration");
  const auto fit = [](const std::string& text) { return pair_fit_from_name(text); };
  add_parsed(
      app, "--pairs", options->calibrate.pair_fit, fit, "NAME", "gaussian",
      "Points of a -2d codebook: gaussian (the same for all), layer (fitted to what each layer's encoder quantizes), attention (and keys "
      "weighted by the attention that they get)")
      .group("Calibration");
  add_threads_option(app, options->exec);
  add_output_options(app, options->output_options, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
