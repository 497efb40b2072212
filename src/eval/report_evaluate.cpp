// Measuring: heads one after the other, codecs in batches that fit the memory budget, tokens and queries on all threads.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <set>

#include "eval/parallel.h"
#include "eval/report_load.h"
#include "eval/report_samples.h"
#include "eval/report_totals.h"
#include "tq4/error.h"
#include "tq4/report.h"

namespace tq4 {
namespace {

using eval::HeadData;

/// One codec's reconstruction of one head.
struct Approximation {
  std::vector<float> k, v;
};

HeadVectors head_vectors(const LayerInfo& layer, int head, Side side, const HeadData& data) {
  HeadVectors x;
  x.side = side;
  x.layer = layer.layer;
  x.head = head;
  x.tokens = layer.tokens;
  x.dim = layer.head_dim;
  x.x = side == Side::K ? data.k.data() : data.v.data();
  return x;
}

/// Error over the tokens that stay compressed at the end of the sequence.
VectorError compressed_error(const Compressor& codec, const HeadVectors& x, const std::vector<float>& y) {
  const ExactTokens exact = codec.exact(x.side);
  const std::int64_t begin = std::min<std::int64_t>(exact.sinks, x.tokens);
  const std::int64_t end = std::clamp(exact.exact_from(x.tokens - 1), begin, x.tokens);
  return vector_error(x.x + begin * x.dim, y.data() + begin * x.dim, end - begin, x.dim);
}

/// Sizes, theory and bound: what does not need the data.
void describe_sizes(const Compressor& codec, const HeadVectors& k, const HeadVectors& v, HeadQuality& result) {
  const double values = static_cast<double>(k.tokens) * k.dim;
  const Footprint fk = codec.footprint(k), fv = codec.footprint(v);
  Quality& q = result.quality;
  q.k_bits = fk.total() / values;
  q.v_bits = fv.total() / values;
  q.bits = (q.k_bits + q.v_bits) / 2;
  const auto bound = [&](const Footprint& f) {  // of the tokens that are compressed, as the errors are
    const double compressed = values - static_cast<double>(f.exact_tokens) * k.dim;
    return compressed > 0 ? std::pow(4.0, -(f.code_bits + f.constant_bits) / compressed) : Quality::kNone;
  };
  q.k_bound = bound(fk);
  q.v_bound = bound(fv);
  q.k_theory = codec.theoretical_mse(Side::K, k.dim);
  q.v_theory = codec.theoretical_mse(Side::V, v.dim);
  result.matrix_bits = fk.matrix_bits + fv.matrix_bits;
}

class Evaluation {
 public:
  Evaluation(Dump& dump, std::vector<std::shared_ptr<const Compressor>> codecs, const EvalOptions& options, Report& report)
      : dump_(dump), codecs_(std::move(codecs)), options_(options), report_(report), samples_(codecs_) {}

  void run(const std::vector<std::size_t>& layers) {
    std::vector<std::pair<std::size_t, int>> heads;
    for (const std::size_t i : layers) {
      for (int h = 0; h < dump_.info().layers[i].num_kv_heads; ++h) {
        if (!options_.heads || std::find(options_.heads->begin(), options_.heads->end(), h) != options_.heads->end())
          heads.emplace_back(i, h);
      }
    }
    if (heads.empty())
      throw Error(ErrorCode::BadInput, "nothing to measure: no layer with tokens, or none of the heads asked for", dump_.info().path);
    samples_.choose(dump_.info(), heads);
    for (std::size_t n = 0; n < heads.size(); ++n) {
      first_ = static_cast<double>(n) / static_cast<double>(heads.size());
      width_ = 1.0 / static_cast<double>(heads.size());
      measure(heads[n].first, heads[n].second);
    }
    report_.samples = samples_.finish();
  }

 private:
  void measure(std::size_t layer_index, int head) {
    const LayerInfo& layer = dump_.info().layers[layer_index];
    const HeadData data = eval::load_head(dump_, layer_index, head, options_.max_queries);
    samples_.add_vectors(layer, head, data);
    // A reconstruction and its packed copy, K and V.
    const std::size_t each = 4 * sizeof(float) * static_cast<std::size_t>(layer.tokens) * static_cast<std::size_t>(layer.head_dim);
    const std::size_t batch = std::clamp<std::size_t>(options_.memory_bytes / std::max<std::size_t>(each, 1), 1, codecs_.size());
    for (std::size_t begin = 0; begin < codecs_.size(); begin += batch) {
      measure_batch(layer, head, data, begin, std::min(batch, codecs_.size() - begin));
    }
  }

  void measure_batch(const LayerInfo& layer, int head, const HeadData& data, std::size_t begin, std::size_t count) {
    std::vector<Approximation> approximations(count);
    std::vector<HeadQuality> results(count);
    const HeadVectors k = head_vectors(layer, head, Side::K, data), v = head_vectors(layer, head, Side::V, data);
    eval::parallel_for(static_cast<std::int64_t>(2 * count), options_.threads, [&](std::int64_t task, int) {
      const auto at = static_cast<std::size_t>(task / 2);
      const Compressor& codec = *codecs_[begin + at];
      const HeadVectors& x = task % 2 == 0 ? k : v;
      std::vector<float>& y = task % 2 == 0 ? approximations[at].k : approximations[at].v;
      y.resize(static_cast<std::size_t>(x.tokens * x.dim));
      codec.reconstruct(x, y.data());
      (task % 2 == 0 ? results[at].k : results[at].v) = compressed_error(codec, x, y);
    });
    std::vector<Reconstruction> reconstructions;
    for (std::size_t i = 0; i < count; ++i) {
      const Compressor& codec = *codecs_[begin + i];
      reconstructions.push_back({approximations[i].k.data(), approximations[i].v.data(), codec.exact(Side::K), codec.exact(Side::V)});
      describe_sizes(codec, k, v, results[i]);
      results[i].layer = layer.layer;
      results[i].head = head;
    }
    const double from = first_ + width_ * static_cast<double>(begin) / static_cast<double>(codecs_.size());
    const double step = width_ * static_cast<double>(count) / static_cast<double>(codecs_.size());
    if (eval::has_queries(layer)) {
      const AttentionProblem problem = eval::attention_problem(dump_.info(), layer, data);
      const auto progress = [&](double share) { return !options_.progress || options_.progress(from + step * share); };
      std::vector<AttentionError> errors = attention_errors(problem, reconstructions, options_.threads, progress);
      for (std::size_t i = 0; i < count; ++i) results[i].attention = std::move(errors[i]);
      samples_.add_logits(problem, layer, head, begin, reconstructions);
    } else if (options_.progress && !options_.progress(from + step)) {
      throw Error(ErrorCode::Interrupted, "interrupted");
    }
    for (std::size_t i = 0; i < count; ++i) {
      eval::fill_quality(results[i]);
      report_.codecs[begin + i].heads.push_back(std::move(results[i]));
    }
  }

  Dump& dump_;
  std::vector<std::shared_ptr<const Compressor>> codecs_;
  const EvalOptions& options_;
  Report& report_;
  eval::SampleCollector samples_;
  double first_ = 0, width_ = 1;
};

bool is_own(const Compressor& codec) {
  const CodecSpec* spec = codec.spec();
  if (spec == nullptr) return false;
  const auto own = [](const SideSpec& s) {
    return s.codebook != CodebookKind::Vllm && s.codebook != CodebookKind::TurboquantVllm && s.kind != CodeKind::Uniform &&
           s.kind != CodeKind::Prod && (s.kind == CodeKind::Fp8 || s.kind == CodeKind::Fp16 || s.scale_rule == ScaleRule::LeastSquares);
  };
  const bool plain = (spec->k.kind == CodeKind::Fp8 || spec->k.kind == CodeKind::Fp16) && spec->k.kind == spec->v.kind;
  return own(spec->k) && own(spec->v) && !plain;
}

}  // namespace

Report evaluate(Dump& dump, const std::vector<std::shared_ptr<const Compressor>>& codecs, const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Report report;
  report.dump = dump.info();
  const std::vector<std::size_t> layers = eval::selected_layers(dump.info(), options.layers);
  report.dump.layers.clear();
  std::set<int> dims;
  std::string without_queries;
  for (const std::size_t i : layers) {
    const LayerInfo& layer = dump.info().layers[i];
    report.dump.layers.push_back(layer);
    dims.insert(layer.head_dim);
    if (eval::has_queries(layer))
      report.has_attention = true;
    else
      without_queries += (without_queries.empty() ? "" : ", ") + std::to_string(layer.layer);
  }
  if (!without_queries.empty()) {
    report.notes.push_back(
        "no queries in layer " + without_queries +
        ": logit, softmax and attention-output metrics are left out there; K and V metrics stand (a dump with q has them all)");
  }
  for (const LayerInfo& layer : dump.info().layers) {
    if (layer.tokens == 0) report.notes.push_back("layer " + std::to_string(layer.layer) + " has no tokens and is left out");
  }
  std::vector<std::shared_ptr<const Compressor>> used;
  for (const auto& codec : codecs) {
    try {
      for (const int dim : dims) codec->check(dim);
      used.push_back(codec);
    } catch (const Error& error) {
      report.notes.push_back(codec->name() + " is left out: " + error.message());
    }
  }
  if (used.empty())
    throw Error(ErrorCode::Unsupported,
                "none of the codecs serves this dump: " + (report.notes.empty() ? std::string("none given") : report.notes.back()));
  for (const auto& codec : used) {
    CodecReport r;
    r.name = codec->name();
    r.description = codec->description();
    r.source = codec->source();
    r.calibrated = codec->calibration() != nullptr;
    r.own = is_own(*codec);
    report.codecs.push_back(std::move(r));
  }
  Evaluation(dump, used, options, report).run(layers);
  for (CodecReport& codec : report.codecs) eval::fill_totals(codec);
  for (const HeadQuality& head : report.codecs.front().heads) report.queries += head.attention.queries;
  eval::note_odd_layers(report);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tq4
