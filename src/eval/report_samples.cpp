// Sampling for the pictures. The histogram takes unit vectors times sqrt(dim) after centre and transform, which is what a codebook is built for.
#include "eval/report_samples.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tq4/codebook.h"

namespace tq4::eval {
namespace {

constexpr int kBins = 120;
constexpr double kRange = 5;  ///< bins cover -5..5 standard deviations
constexpr std::int64_t kVectorsPerHead = 64;
constexpr std::int64_t kScatterPoints = 1500;

/// Density of sqrt(dim) times a coordinate of a random unit vector in R^dim (numerics: the sphere's marginal).
double sphere_density(double u, int dim) {
  const double x2 = u * u / dim;
  if (x2 >= 1) return 0;
  const double log_norm = std::lgamma(dim / 2.0) - std::lgamma((dim - 1) / 2.0) - 0.5 * std::log(std::numbers::pi * dim);
  return std::exp(log_norm + (dim - 3) / 2.0 * std::log1p(-x2));
}

bool rotates(const SideSpec& side) { return side.kind == CodeKind::Mse || side.kind == CodeKind::Prod || side.kind == CodeKind::Mixed; }

double dot(const float* a, const float* b, int dim) {
  double sum = 0;
  for (int i = 0; i < dim; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

}  // namespace

SampleCollector::SampleCollector(const std::vector<std::shared_ptr<const Compressor>>& codecs) : codecs_(codecs) {
  for (const auto& codec : codecs_) {
    if (codec->spec() != nullptr && rotates(codec->spec()->k)) {
      histogram_codec_ = codec.get();
      break;
    }
  }
  k_counts_.assign(kBins, 0.0);
  v_counts_.assign(kBins, 0.0);
  samples_.scatter_codec = codecs_.front()->name();
  if (histogram_codec_ != nullptr) samples_.histogram_codec = histogram_codec_->name();
}

void SampleCollector::choose(const DumpInfo& info, const std::vector<std::pair<std::size_t, int>>& heads) {
  std::vector<std::pair<std::size_t, int>> with_queries;
  for (const auto& head : heads) {
    if (has_queries(info.layers[head.first])) with_queries.push_back(head);
  }
  const auto& [index, head] = (with_queries.empty() ? heads : with_queries)[(with_queries.empty() ? heads : with_queries).size() / 2];
  samples_.scatter_layer = info.layers[index].layer;
  samples_.scatter_head = head;
  samples_.histogram_dim = info.layers[index].head_dim;
  if (histogram_codec_ == nullptr) return;
  const CodecSpec& spec = *histogram_codec_->spec();
  k_rotation_ = make_rotation(spec.k.rotation, samples_.histogram_dim, spec.k.seed);
  if (rotates(spec.v)) v_rotation_ = make_rotation(spec.v.rotation, samples_.histogram_dim, spec.v.seed);
}

void SampleCollector::add_side(const LayerInfo& layer, int head, Side side, const std::vector<float>& x, std::vector<double>& counts) {
  const Rotation& rotation = side == Side::K ? k_rotation_ : v_rotation_;
  if (rotation.matrix.empty() || layer.head_dim != samples_.histogram_dim) return;
  const Calibration* calibration = histogram_codec_->calibration();
  const LayerCalibration* tables = calibration != nullptr ? calibration->find(layer.layer) : nullptr;
  const std::int64_t step = std::max<std::int64_t>(1, layer.tokens / kVectorsPerHead);
  const int dim = layer.head_dim;
  std::vector<double> centred(static_cast<std::size_t>(dim)), y(static_cast<std::size_t>(dim));
  for (std::int64_t t = step / 2; t < layer.tokens; t += step) {
    const HeadTransform transform = head_transform(tables, side, head, t);
    if (transform.rope_mu != nullptr) return;  // its centre turns with the position: the plain picture would mislead
    const float* matrix = transform.forward != nullptr ? transform.forward : rotation.matrix.data();
    for (int i = 0; i < dim; ++i) {
      centred[static_cast<std::size_t>(i)] =
          x[static_cast<std::size_t>(t * dim + i)] - (transform.centre != nullptr ? transform.centre[i] : 0.0f);
    }
    double norm = 0;
    for (int i = 0; i < dim; ++i) {
      double sum = 0;
      for (int j = 0; j < dim; ++j) sum += matrix[i * dim + j] * centred[static_cast<std::size_t>(j)];
      y[static_cast<std::size_t>(i)] = sum;
      norm += sum * sum;
    }
    if (norm <= 0) continue;
    const double scale = std::sqrt(dim / norm);
    for (const double value : y) {
      const int bin = static_cast<int>(std::floor((value * scale + kRange) / (2 * kRange) * kBins));
      if (bin >= 0 && bin < kBins) ++counts[static_cast<std::size_t>(bin)];
    }
  }
}

void SampleCollector::add_vectors(const LayerInfo& layer, int head, const HeadData& data) {
  if (histogram_codec_ == nullptr) return;
  add_side(layer, head, Side::K, data.k, k_counts_);
  add_side(layer, head, Side::V, data.v, v_counts_);
}

void SampleCollector::add_logits(const AttentionProblem& problem, const LayerInfo& layer, int head, std::size_t first,
                                 const std::vector<Reconstruction>& batch) {
  if (layer.layer != samples_.scatter_layer || head != samples_.scatter_head) return;
  if (scatter_codec_ < first || scatter_codec_ >= first + batch.size()) return;
  const Reconstruction& r = batch[scatter_codec_ - first];
  const double scale = problem.sm_scale > 0 ? problem.sm_scale : 1 / std::sqrt(static_cast<double>(problem.dim));
  std::uint64_t state = 0x9e3779b97f4a7c15u;  // a fixed sequence (SplitMix64): the same points every time
  const auto next = [&state](std::int64_t below) {
    state += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::int64_t>((z ^ (z >> 31)) % static_cast<std::uint64_t>(below));
  };
  for (std::int64_t n = 0; n < kScatterPoints; ++n) {
    const std::int64_t g = next(problem.q_heads), i = next(problem.q_tokens);
    const std::int64_t position = problem.causal ? problem.q_positions[i] : problem.tokens - 1;
    std::int64_t begin = 0;
    if (problem.causal && problem.sliding_window > 0) begin = std::max<std::int64_t>(0, position + 1 - problem.sliding_window);
    const std::int64_t j = begin + next(position + 1 - begin);
    const bool exact = j < r.exact_k.sinks || j >= r.exact_k.exact_from(position);
    const float* q = problem.q + (g * problem.q_tokens + i) * problem.dim;
    samples_.exact_logits.push_back(static_cast<float>(scale * dot(q, problem.k + j * problem.dim, problem.dim)));
    samples_.approx_logits.push_back(static_cast<float>(scale * dot(q, (exact ? problem.k : r.k) + j * problem.dim, problem.dim)));
  }
}

ReportSamples SampleCollector::finish() {
  if (histogram_codec_ != nullptr) {
    const double width = 2 * kRange / kBins;
    const auto density = [&](const std::vector<double>& counts) {
      double total = 0;
      for (const double c : counts) total += c;
      std::vector<double> d;
      if (total == 0) return d;
      for (const double c : counts) d.push_back(c / total / width);
      return d;
    };
    samples_.k_density = density(k_counts_);
    samples_.v_density = density(v_counts_);
    for (int b = 0; b < kBins; ++b) {
      const double centre = -kRange + (b + 0.5) * width;
      samples_.bin_centres.push_back(centre);
      samples_.model_density.push_back(sphere_density(centre, samples_.histogram_dim));
    }
    const SideSpec& side = histogram_codec_->spec()->k;
    const Codebook book = make_codebook(side.codebook, side.kind == CodeKind::Prod ? side.bits - 1 : side.bits, samples_.histogram_dim);
    for (const double b : book.boundaries) samples_.k_boundaries.push_back(b * std::sqrt(static_cast<double>(samples_.histogram_dim)));
  }
  return std::move(samples_);
}

}  // namespace tq4::eval
