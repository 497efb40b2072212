// tq4 compare: how far two files' keys and values are apart, layer by layer: an original against what decompress gave back, or against the
// container itself. --max-error makes it a gate for scripts (exit status 4).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "args.h"
#include "common_args.h"
#include "progress.h"
#include "report.h"
#include "tensor_source.h"
#include "tq4/metrics.h"
#include "verb.h"

namespace tq4::cli {
namespace {

struct Options {
  std::string original, other;
  std::optional<double> max_error;
  Selection selection;
  OutputOptions output;
};

struct Difference {
  VectorError error;
  double max_abs = 0;
  void add(const Difference& other) {
    error.add(other.error);
    max_abs = std::max(max_abs, other.max_abs);
  }
};

constexpr std::int64_t kRunValues = 1 << 20;

Difference compare_side(TensorSource& a, TensorSource& b, std::size_t layer_a, std::size_t layer_b, Side side, const Selection& selection,
                        Progress& progress) {
  const LayerInfo& shape = a.layers()[layer_a];
  const std::int64_t run = std::max<std::int64_t>(1, kRunValues / std::max(1, shape.head_dim));
  Difference total;
  std::vector<float> x, y;
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    if (!selection.has_head(head)) continue;
    for (std::int64_t at = 0; at < shape.tokens; at += run) {
      const std::int64_t count = std::min(run, shape.tokens - at);
      a.read(layer_a, side, head, at, count, x);
      b.read(layer_b, side, head, at, count, y);
      Difference part;
      part.error = vector_error(x.data(), y.data(), count, shape.head_dim);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double apart = std::abs(double(x[i]) - double(y[i]));
        part.max_abs = apart > part.max_abs || std::isnan(apart) ? apart : part.max_abs;
      }
      total.add(part);
      progress.add(static_cast<std::uint64_t>(count));
    }
  }
  return total;
}

nlohmann::json side_json(const Difference& d) {
  return {{"relative_squared_error", d.error.relative_mse()},
          {"cosine", d.error.cosine()},
          {"max_abs_difference", d.max_abs},
          {"vectors", d.error.vectors}};
}

void run(const Options& options) {
  check_outputs(options.output);
  TensorSource a(options.original, options.selection.dump), b(options.other, options.selection.dump);
  DumpInfo info;
  info.path = a.path();
  info.layers = a.layers();
  check_selection(options.selection, info);

  std::vector<std::pair<std::size_t, std::size_t>> pairs;
  std::vector<int> missing;
  std::uint64_t vectors = 0;
  for (std::size_t i = 0; i < a.layers().size(); ++i) {
    const LayerInfo& layer = a.layers()[i];
    if (!options.selection.has_layer(layer.layer)) continue;
    const int found = b.find(layer.layer);
    if (found < 0) {
      missing.push_back(layer.layer);
      continue;
    }
    const LayerInfo& other = b.layers()[static_cast<std::size_t>(found)];
    if (layer.num_kv_heads != other.num_kv_heads || layer.tokens != other.tokens || layer.head_dim != other.head_dim)
      throw Error(ErrorCode::BadInput,
                  fmt::format("layer {} is {} x {} x {}, in {} it is {} x {} x {}", layer.layer, other.num_kv_heads, other.tokens,
                              other.head_dim, a.path(), layer.num_kv_heads, layer.tokens, layer.head_dim),
                  b.path());
    pairs.emplace_back(i, static_cast<std::size_t>(found));
    vectors += 2 * static_cast<std::uint64_t>(layer.num_kv_heads) * static_cast<std::uint64_t>(layer.tokens);
  }
  if (pairs.empty()) throw Error(ErrorCode::BadInput, fmt::format("has no layer in common with {}", a.path()), b.path());
  if (!missing.empty())
    note(options.output,
         fmt::format("{} has {} of the {} layers; the others are left out", b.path(), pairs.size(), pairs.size() + missing.size()));

  Table table({{"layer"},
               {"shape", "heads x tokens x dim"},
               {"k_error", "K error"},
               {"k_cosine", "cosine"},
               {"k_max", "max |diff|"},
               {"v_error", "V error"},
               {"v_cosine", "cosine"},
               {"v_max", "max |diff|"}});
  nlohmann::json layers = nlohmann::json::array();
  Difference k_total, v_total;
  const auto row = [&](const Cell& layer, const Cell& shape, const Difference& k, const Difference& v) {
    table.add({layer, shape, Cell::number(k.error.relative_mse(), 3), Cell::fixed(k.error.cosine(), 5), Cell::number(k.max_abs, 3),
               Cell::number(v.error.relative_mse(), 3), Cell::fixed(v.error.cosine(), 5), Cell::number(v.max_abs, 3)});
  };
  {
    Progress progress("compare", vectors, Progress::Unit::Items, options.output.quiet);
    for (const auto& [i, j] : pairs) {
      const LayerInfo& shape = a.layers()[i];
      const Difference k = compare_side(a, b, i, j, Side::K, options.selection, progress);
      const Difference v = compare_side(a, b, i, j, Side::V, options.selection, progress);
      row(shape.layer, fmt::format("{} x {} x {}", shape.num_kv_heads, shape.tokens, shape.head_dim), k, v);
      layers.push_back({{"layer", shape.layer}, {"k", side_json(k)}, {"v", side_json(v)}});
      k_total.add(k);
      v_total.add(v);
    }
  }
  table.add_rule();
  row("all", "", k_total, v_total);
  nlohmann::json result = result_envelope("compare");
  result["original"] = options.original;
  result["other"] = options.other;
  result["layers"] = std::move(layers);
  result["k"] = side_json(k_total);
  result["v"] = side_json(v_total);
  emit(options.output, result, table,
       fmt::format("{} against {}: relative squared errors, cosines, largest difference of a value\n\n{}", b.path(), a.path(),
                   table.text()));
  if (options.max_error) {
    const double worst = std::max(k_total.error.relative_mse(), v_total.error.relative_mse());
    if (!(worst <= *options.max_error))
      throw Error(ErrorCode::QualityGate, fmt::format("relative squared error {:.4g} is above {:.4g}", worst, *options.max_error),
                  "--max-error");
  }
}

double parse_error_bound(std::string_view text) {
  const double bound = parse_number(text);
  if (bound < 0) throw Error(ErrorCode::Usage, fmt::format("'{}' is below 0, which no error is", text));
  return bound;
}

}  // namespace

Action add_compare(VerbOptions& app) {
  auto options = std::make_shared<Options>();
  describe(app, "Compare the keys and values of two files (dumps or containers) layer by layer",
           {{"tq4 compare dump.h5 back.h5", "what compression lost"},
            {"tq4 compare dump.h5 dump.tq4 --max-error 0.02", "the same without writing back.h5; exit 4 when K or V lost more than 2%"}});
  app.add_option("ORIGINAL", options->original, "Dump or container").required();
  app.add_option("OTHER", options->other, "Dump or container").required();
  add_parsed(app, "--max-error", options->max_error, parse_error_bound, "ERROR", "",
             "Exit 4 when the relative squared error of K or of V is above")
      .group("Checks");
  add_selection_options(app, options->selection, true);
  add_output_options(app, options->output, true);
  return [options] { run(*options); };
}

}  // namespace tq4::cli
