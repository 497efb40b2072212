// tq4 calibrate: dumps in, tables out. Every head is one task; a head's statistics are gathered over all dumps, weighted by attention where
// there are queries, and turned into tables.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <mutex>
#include <string>

#include "core/side.h"
#include "eval/calibrate_codebook.h"
#include "eval/calibrate_statistics.h"
#include "eval/calibrate_tables.h"
#include "eval/parallel.h"
#include "tq4/calibration.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr std::int64_t kTokensPerDimension = 4;  ///< fewer than this times head_dim: warn
constexpr std::int64_t kCodebookTokens = 8192;   ///< a layer and side: what pair tables are fitted to
constexpr double kShareFitting = 0.3;            ///< of the progress shown, where pair tables are fitted

CalibrationMethod method_of(const CalibrateOptions& options, Side side) {
  const std::optional<CalibrationMethod>& own = side == Side::K ? options.method_k : options.method_v;
  const CalibrationMethod method = own.value_or(options.method);
  const SideSpec& spec = side == Side::K ? options.spec.k : options.spec.v;
  if (!core::has_codebook(spec)) return CalibrationMethod::None;
  // The predictive transform and R A are for codebooks of unit vectors; Mixed and Prod keep the rotation and get a centre.
  const bool whole = spec.kind == CodeKind::Mse && !spec.norm_correction;
  return whole ? method : std::min(method, CalibrationMethod::Centre);
}

/// Moments about zero instead of the mean.
void about_zero(eval::Moments& m) {
  const std::size_t n = m.mean.size();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) m.covariance[i * n + j] += m.mean[i] * m.mean[j];
  }
  std::fill(m.mean.begin(), m.mean.end(), 0.0);
}

/// (1 - share) m + share times the identity of the same trace.
void blend_with_identity(core::Matrix& m, int dim, double share) {
  if (m.empty() || share <= 0) return;
  const double mean = core::trace(m, dim) / dim;
  for (double& x : m) x *= 1 - share;
  for (std::size_t i = 0; i < static_cast<std::size_t>(dim); ++i) m[i * static_cast<std::size_t>(dim) + i] += share * mean;
}

void check_dumps(const std::vector<Dump*>& dumps, const CalibrateOptions& options) {
  if (dumps.empty()) throw Error(ErrorCode::Usage, "calibration needs at least one dump");
  const DumpInfo& first = dumps.front()->info();
  if (first.layers.empty()) throw Error(ErrorCode::BadInput, "has no layers", first.path);
  for (const Dump* dump : dumps) {
    const DumpInfo& info = dump->info();
    bool same = info.model == first.model && info.layers.size() == first.layers.size();
    for (std::size_t i = 0; same && i < info.layers.size(); ++i) {
      const LayerInfo &a = info.layers[i], &b = first.layers[i];
      same = a.layer == b.layer && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim && a.num_q_heads == b.num_q_heads;
    }
    if (!same) throw Error(ErrorCode::BadInput, "is of another model or shape than " + first.path, info.path);
    if (options.rope && !(info.rope_applied && info.rope_theta > 0)) {
      throw Error(ErrorCode::BadInput, "centring before RoPE needs the attributes rope_applied and rope_theta", info.path);
    }
  }
  if (method_of(options, Side::K) == CalibrationMethod::None && method_of(options, Side::V) == CalibrationMethod::None) {
    throw Error(ErrorCode::Usage, "nothing to calibrate: neither side of " + spec_name(options.spec) + " takes tables with this method");
  }
  if (!(options.output_share >= 0 && options.output_share <= 1)) {
    throw Error(ErrorCode::Usage, "the share of the output is 0 to 1, not " + std::to_string(options.output_share));
  }
  if (options.rope && !options.centre)
    throw Error(ErrorCode::Usage, "keys cannot be centred before RoPE and not centred at all; leave out --rope or --no-centre");
  if (options.rope && method_of(options, Side::K) == CalibrationMethod::None) {
    throw Error(ErrorCode::Usage, "keys of " + spec_name(options.spec) +
                                      " are not calibrated with this method, so there is nothing to centre before RoPE; leave out --rope");
  }
  for (const LayerInfo& layer : first.layers) {
    validate(options.spec.k, layer.head_dim);
    validate(options.spec.v, layer.head_dim);
  }
}

/// Where a head's tables go: slices of a layer's vectors, sized beforehand so that heads may be written from several threads.
struct HeadSlot {
  SideCalibration* side;
  std::size_t head, dim;
  void put(std::vector<float>& table, const std::vector<float>& values, std::size_t stride) const {
    std::copy(values.begin(), values.end(), table.begin() + static_cast<std::ptrdiff_t>(head * stride));
  }
};

/// One pair table for each layer and side that has a pair codebook and tables. key_weights: of each task (layer by layer, head by head).
void fit_pair_tables(const std::vector<Dump*>& dumps, const CalibrateOptions& options, Calibration& calibration,
                     const std::vector<std::vector<std::vector<float>>>& key_weights, std::mutex& dumps_mutex,
                     const std::function<void(double)>& progress) {
  std::int64_t done = 0;
  std::mutex progress_mutex;
  std::vector<std::size_t> first_task;
  std::size_t tasks = 0;
  for (const LayerCalibration& layer : calibration.layers) {
    first_task.push_back(tasks);
    tasks += static_cast<std::size_t>(layer.num_kv_heads);
  }
  const auto count = static_cast<std::int64_t>(2 * calibration.layers.size());
  eval::parallel_for(count, options.threads, [&](std::int64_t t, int) {
    const auto index = static_cast<std::size_t>(t / 2);
    LayerCalibration& layer = calibration.layers[index];
    const Side side = t % 2 == 0 ? Side::K : Side::V;
    SideCalibration& tables = side == Side::K ? layer.k : layer.v;
    const SideSpec& spec = side == Side::K ? options.spec.k : options.spec.v;
    if (spec.kind == CodeKind::Mse && spec.pair_codebook &&
        (!tables.centre.empty() || !tables.rope_mu.empty() || !tables.forward.empty())) {
      eval::CodebookProblem problem;
      problem.spec = spec;
      problem.dim = layer.head_dim;
      problem.side = side;
      problem.layer = &layer;
      const auto d = static_cast<std::size_t>(layer.head_dim);
      for (int head = 0; head < layer.num_kv_heads; ++head) {
        const std::vector<float>& centres = tables.rope_mu.empty() ? tables.centre : tables.rope_mu;
        std::vector<float> centre;
        if (!centres.empty()) {
          const auto begin = centres.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(head) * d);
          centre.assign(begin, begin + static_cast<std::ptrdiff_t>(d));
        }
        const bool weigh = options.pair_fit == PairFit::Attention && side == Side::K;
        std::vector<eval::SampledRows> rows = eval::sample_rows(
            dumps, index, head, side, kCodebookTokens / layer.num_kv_heads, centre, tables.rope_mu.empty() ? 0 : layer.rope_theta,
            weigh ? key_weights[first_task[index] + static_cast<std::size_t>(head)] : std::vector<std::vector<float>>{}, dumps_mutex);
        std::move(rows.begin(), rows.end(), std::back_inserter(problem.sample));
      }
      tables.pair_points = eval::fit_pair_points(problem);
    }
    if (progress) {
      const std::lock_guard lock(progress_mutex);
      progress(static_cast<double>(++done) / static_cast<double>(count));
    }
  });
}

}  // namespace

Calibration calibrate(const std::vector<Dump*>& dumps, const CalibrateOptions& options, CalibrateReport* report) {
  check_dumps(dumps, options);
  const DumpInfo& info = dumps.front()->info();
  Calibration out;
  out.spec = options.spec;
  out.model = info.model;
  for (const Dump* dump : dumps) out.tokens += dump->info().layers.front().tokens;

  struct Task {
    std::size_t layer_index;
    int head;
  };
  std::vector<Task> tasks;
  for (std::size_t i = 0; i < info.layers.size(); ++i) {
    const LayerInfo& shape = info.layers[i];
    LayerCalibration layer;
    layer.layer = shape.layer;
    layer.num_kv_heads = shape.num_kv_heads;
    layer.head_dim = shape.head_dim;
    if (options.rope) {
      layer.rope_theta = info.rope_theta;
      layer.rope_dim = shape.head_dim;
    }
    const auto heads = static_cast<std::size_t>(shape.num_kv_heads), dim = static_cast<std::size_t>(shape.head_dim);
    for (const Side side : {Side::K, Side::V}) {
      SideCalibration& tables = side == Side::K ? layer.k : layer.v;
      const CalibrationMethod method = method_of(options, side);
      if (method == CalibrationMethod::None) continue;
      if (options.centre) (side == Side::K && options.rope ? tables.rope_mu : tables.centre).resize(heads * dim);
      if (method == CalibrationMethod::Centre) continue;
      tables.forward.resize(heads * dim * dim);
      tables.inverse.resize(heads * dim * dim);
      if (method == CalibrationMethod::Feedback) {
        tables.feedback.resize(heads * dim * dim);
        tables.feedback_gain.assign(heads, 1.0f);
      }
    }
    out.layers.push_back(std::move(layer));
    for (int head = 0; head < shape.num_kv_heads; ++head) tasks.push_back({i, head});
  }

  CalibrateReport seen;
  std::vector<std::vector<HeadCalibrationReport>> reports(tasks.size());
  std::vector<std::vector<std::vector<float>>> key_weights(tasks.size());  ///< one a dump and token, where pair tables want them
  const bool fit = options.pair_fit != PairFit::Gaussian;
  const double share_of_heads = fit ? 1 - kShareFitting : 1;
  std::vector<std::vector<std::string>> warnings(tasks.size());  ///< without the place
  std::mutex dumps_mutex, progress_mutex;
  std::int64_t done = 0;
  eval::parallel_for(static_cast<std::int64_t>(tasks.size()), options.threads, [&](std::int64_t t, int) {
    const Task task = tasks[static_cast<std::size_t>(t)];
    LayerCalibration& layer = out.layers[task.layer_index];
    const int dim = layer.head_dim;
    const auto d = static_cast<std::size_t>(dim);
    const std::string where = "layer " + std::to_string(layer.layer) + " head " + std::to_string(task.head) + ": ";
    std::vector<std::string>& warn = warnings[static_cast<std::size_t>(t)];
    eval::HeadStatistics statistics = eval::gather_statistics(dumps, task.layer_index, task.head, options, dumps_mutex);
    if (statistics.tokens == 0) throw Error(ErrorCode::BadInput, "has no tokens to calibrate from", where);
    const double shrink = options.shrink + static_cast<double>(dim) / (2.0 * static_cast<double>(statistics.tokens));
    if (statistics.tokens < kTokensPerDimension * dim) {
      warn.push_back(std::to_string(statistics.tokens) + " tokens are few for head_dim " + std::to_string(dim) +
                     "; covariances are shrunk by " + std::to_string(std::lround(100 * shrink)) + "%");
    }
    for (const Side side : {Side::K, Side::V}) {
      const bool is_k = side == Side::K;
      const SideSpec& spec = is_k ? options.spec.k : options.spec.v;
      SideCalibration& tables = is_k ? layer.k : layer.v;
      const CalibrationMethod method = method_of(options, side);
      if (method == CalibrationMethod::None) continue;
      const Rotation rotation = make_rotation(spec.rotation, dim, spec.seed);
      if (!is_k) blend_with_identity(statistics.value_gram, dim, options.output_share);
      const core::Matrix& weight = is_k ? statistics.query : statistics.value_gram;
      eval::TableProblem problem;
      problem.dim = dim;
      problem.bits = spec.bits;
      problem.pairs = spec.pair_codebook;
      problem.noise = is_k ? options.noise_k : options.noise_v;
      problem.shrink = shrink;
      problem.method = method;
      problem.weight = weight.empty() ? nullptr : &weight;
      problem.rotation = &rotation.matrix;
      eval::Moments& moments = is_k ? statistics.k : statistics.v;
      if (!options.centre) about_zero(moments);
      problem.covariance = &moments.covariance;
      const double before = is_k ? statistics.k_energy : statistics.v_energy;
      const double after = core::trace(moments.covariance, dim);
      const bool constant = !(after > 1e-6 * before);  // below that it is rounding: of fp16 values, and of these fp32 products
      const core::Matrix nothing(d * d);
      if (constant) {
        problem.covariance = &nothing;
        warn.push_back(std::string(is_k ? "keys" : "values") + " are constant: only their mean is kept");
      }
      if (method != CalibrationMethod::Centre && weight.empty()) {
        warn.push_back(is_k ? "no queries: key errors count equally in all directions"
                            : "no o_gram: value errors count equally in all directions");
      }
      eval::HeadTables made = eval::make_tables(problem);
      if (is_k && !constant && !weight.empty() && method != CalibrationMethod::Centre) {
        eval::weight_by_attention(statistics, dumps, task.layer_index, task.head, options, made.forward, dumps_mutex);
        if (!options.centre) about_zero(moments);
        made = eval::make_tables(problem);
      }
      const HeadSlot slot{&tables, static_cast<std::size_t>(task.head), d};
      const std::vector<double>& mean = is_k && options.rope ? statistics.rope_mean : moments.mean;
      if (options.centre) slot.put(is_k && options.rope ? tables.rope_mu : tables.centre, std::vector<float>(mean.begin(), mean.end()), d);
      if (method != CalibrationMethod::Centre) {
        slot.put(tables.forward, made.forward, d * d);
        slot.put(tables.inverse, made.inverse, d * d);
      }
      if (!tables.feedback.empty()) {
        if (!made.feedback.empty()) slot.put(tables.feedback, made.feedback, d * d);
        tables.feedback_gain[slot.head] = made.gain;
      }
      const double share = options.centre && before > 0 ? std::max(0.0, 1 - after / before) : 0;
      reports[static_cast<std::size_t>(t)].push_back({layer.layer, task.head, side, share, made.expected_gain});
    }
    if (options.pair_fit == PairFit::Attention) key_weights[static_cast<std::size_t>(t)] = std::move(statistics.key_weights);
    if (options.progress) {
      const std::lock_guard lock(progress_mutex);
      options.progress(share_of_heads * static_cast<double>(++done) / static_cast<double>(tasks.size()));
    }
  });
  if (fit) {
    fit_pair_tables(dumps, options, out, key_weights, dumps_mutex, [&](double share) {
      if (options.progress) options.progress(share_of_heads + (1 - share_of_heads) * share);
    });
  }
  for (const auto& list : reports) seen.heads.insert(seen.heads.end(), list.begin(), list.end());
  // One line for each thing to say, with the places: a model has hundreds of heads.
  std::vector<std::pair<std::string, std::string>> said;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    const std::string place = "layer " + std::to_string(info.layers[tasks[t].layer_index].layer) + " head " + std::to_string(tasks[t].head);
    for (const std::string& text : warnings[t]) {
      const auto known = std::find_if(said.begin(), said.end(), [&](const auto& entry) { return entry.first == text; });
      if (known == said.end()) {
        said.emplace_back(text, place);
      } else {
        known->second += ", " + place;
      }
    }
  }
  for (const auto& [text, places] : said) {
    const auto count = 1 + std::count(places.begin(), places.end(), ',');
    const bool all = count == static_cast<std::ptrdiff_t>(tasks.size()) && count > 1;
    seen.warnings.push_back((all ? "all layers and heads" : places) + ": " + text);
  }
  out.fingerprint = calibration_fingerprint(out.model, out.layers);
  if (report != nullptr) *report = std::move(seen);
  return out;
}

CalibrationMethod calibration_method_from_name(std::string_view name) {
  for (const CalibrationMethod method :
       {CalibrationMethod::None, CalibrationMethod::Centre, CalibrationMethod::Transform, CalibrationMethod::Feedback}) {
    if (name == calibration_method_name(method)) return method;
  }
  throw Error(ErrorCode::Usage, "'" + std::string(name) + "' is not one of none, centre, transform, feedback");
}

PairFit pair_fit_from_name(std::string_view name) {
  if (name == "gaussian") return PairFit::Gaussian;
  if (name == "layer") return PairFit::Layer;
  if (name == "attention") return PairFit::Attention;
  throw Error(ErrorCode::Usage, "'" + std::string(name) + "' is not one of gaussian, layer, attention");
}

std::string_view calibration_method_name(CalibrationMethod method) {
  switch (method) {
    case CalibrationMethod::None: return "none";
    case CalibrationMethod::Centre: return "centre";
    case CalibrationMethod::Transform: return "transform";
    case CalibrationMethod::Feedback: return "feedback";
  }
  return "?";
}

}  // namespace tq4
