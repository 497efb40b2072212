// The quality report of a dump: every codec against the exact K, V and attention, per layer and kv head; what bits would hold a given
// error; and the page that shows it. Measuring (evaluate, recommend) and showing (to_json, to_html) are separate, so that a program can do one
// without the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/compressor.h"
#include "tq4/dump.h"
#include "tq4/metrics.h"

namespace tq4 {

struct EvalOptions {
  std::optional<std::vector<int>> layers;           ///< by number; none = all
  std::optional<std::vector<int>> heads;            ///< kv heads; none = all
  std::int64_t max_queries = 4096;                  ///< a query head; where the dump has more, evenly spaced ones; 0 = all
  int threads = 0;                                  ///< 0 = all cores. Results do not depend on it
  std::size_t memory_bytes = std::size_t{1} << 30;  ///< codecs are measured in batches whose reconstructions fit (at least one)
  std::function<bool(double)> progress;             ///< share done; returning false stops with Interrupted
};

/// The numbers of a head, a layer or a whole dump. Of a layer or dump: relative errors and bits are means over its heads, logit errors,
/// KL, shares and cosines are over all its queries or vectors. NaN where the dump has no queries, or theory no value.
struct Quality {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  double k_bits = kNone, v_bits = kNone, bits = kNone;  ///< effective bits a value: everything stored over number of values
  double k_mse = kNone, v_mse = kNone;                  ///< relative squared error of the compressed vectors
  double k_theory = kNone, v_theory = kNone;            ///< what the codec's theory gives on random vectors
  double k_bound = kNone, v_bound = kNone;              ///< Shannon: 4^-bits at the effective bits of the side's compressed tokens
  double k_cosine = kNone, v_cosine = kNone;
  double logit_rmse = kNone;          ///< nats
  double logit_rmse_centred = kNone;  ///< after each query's mean error, which the softmax does not see, is taken out
  double logit_max = kNone;
  double logit_mse = kNone;                                                   ///< centred, relative to the logits' variance
  double kl_mean = kNone, kl_median = kNone, kl_p99 = kNone, kl_max = kNone;  ///< nats
  double top1 = kNone, top8 = kNone;                                          ///< shares of queries (of keys) that stay
  double output_mse = kNone;                                                  ///< relative squared error of the attention output
  double output_error = kNone;                                                ///< its square root
  double output_cosine = kNone;
};

/// A metric by name, in the order reports show them.
struct MetricInfo {
  const char* name;
  const char* title;
  const char* help;
  double Quality::*value;
};
const std::vector<MetricInfo>& metric_infos();
/// Throws Usage naming the metrics there are.
const MetricInfo& metric_info(std::string_view name);

struct HeadQuality {
  int layer = 0;
  int head = 0;  ///< kv head
  Quality quality;
  // What totals are made of.
  VectorError k, v;
  AttentionError attention;
  double matrix_bits = 0;
};
struct LayerQuality {
  int layer = 0;
  Quality quality;
};
struct CodecReport {
  std::string name, description, source;
  bool own = false;  ///< one of tq4's codecs with tq4's tables, not a peer's
  bool calibrated = false;
  std::vector<HeadQuality> heads;
  std::vector<LayerQuality> layers;
  Quality total;
  double matrix_bytes = 0;  ///< calibrated matrices, once a model; not in the bits
};

/// Exact and reconstructed logits of one head, and the distribution of rotated coordinates: what the page's pictures need.
struct ReportSamples {
  std::string scatter_codec;
  int scatter_layer = 0, scatter_head = 0;
  std::vector<float> exact_logits, approx_logits;
  std::string histogram_codec;
  int histogram_dim = 0;
  std::vector<double> bin_centres;  ///< of coordinate * sqrt(dim) of a rotated unit vector
  std::vector<double> k_density, v_density, model_density;
  std::vector<double> k_boundaries;  ///< the codebook's, same units
};

struct Report {
  DumpInfo dump;                   ///< layers as measured
  std::vector<std::string> notes;  ///< what was left out, and why
  std::int64_t queries = 0;        ///< a codec, all heads together
  bool has_attention = false;
  std::vector<CodecReport> codecs;  ///< in the order given
  ReportSamples samples;
  double seconds = 0;
};

/// Throws BadInput on NaN or infinity in the dump (naming layer, head, token), Unsupported where no codec serves a head_dim. Codecs that do
/// not serve the dump's head_dim are left out with a note.
Report evaluate(Dump& dump, const std::vector<std::shared_ptr<const Compressor>>& codecs, const EvalOptions& options);

// ---- recommendation ---------------------------------------------------------------------------------------------------------------------

struct RecommendOptions {
  double max_error = 0.05;                   ///< relative squared error of the attention output that every layer must hold
  CodecSpec base;                            ///< rotation, seed, scale rule, sinks and window of the candidates
  const Calibration* calibration = nullptr;  ///< its transforms and centres apply to every candidate
  std::int64_t queries = 256;                ///< a query head, evenly spaced
  int threads = 0;
  std::size_t memory_bytes = std::size_t{1} << 30;  ///< candidates are measured in batches that fit
  std::optional<std::vector<int>> layers;
  std::function<bool(double)> progress;
};
struct LayerChoice {
  int layer = 0;
  std::string codec;      ///< "k4v3", "fp8", or "fp16" where nothing cheaper holds the error
  double bits = 16;       ///< effective bits a value
  double output_mse = 0;  ///< measured
};
/// One codec for all layers but the ones kept in fp16.
struct UniformChoice {
  std::string codec;
  std::vector<int> fp16_layers;
  double bits = 16;        ///< mean over the layers, fp16 ones at 16
  double worst_error = 0;  ///< of the compressed layers
  std::string flags;
};
struct Recommendation {
  double max_error = 0;
  std::vector<LayerChoice> layers;  ///< the cheapest codec of each layer
  double bits = 16;                 ///< their mean
  UniformChoice tq4, vllm;
  struct Candidate {
    std::string codec;
    std::vector<double> bits, output_mse;  ///< by layer
  };
  std::vector<Candidate> candidates;  ///< all that was measured
};
/// Throws BadInput when the dump has no queries.
Recommendation recommend(Dump& dump, const RecommendOptions& options);

// ---- output -----------------------------------------------------------------------------------------------------------------------------

/// JSON text of one object: "dump", "notes", "codecs" (each with "total", "layers", "heads"), "recommendation" (or null).
std::string to_json(const Report& report, const Recommendation* recommendation);
/// A self-contained page (inline CSS and SVG, no script, no network), readable in light and dark.
std::string to_html(const Report& report, const Recommendation* recommendation, std::string_view producer);

}  // namespace tq4
