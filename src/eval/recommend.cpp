// What bits hold a given error. Every candidate is measured on every layer (attention output, a sample of queries); no additive model stands
// between the measurement and the choice. Per layer the cheapest candidate wins; for one codec over the whole cache, as vLLM and `tq4 compress` take
// it, the layers that miss the limit are kept in fp16 and the candidate with the least total wins.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>

#include "eval/parallel.h"
#include "eval/report_load.h"
#include "tq4/error.h"
#include "tq4/report.h"

namespace tq4 {
namespace {

struct Candidate {
  std::string name;
  int k = 0, v = 0;  ///< indices of the sides
  bool vllm = false;
};

/// Rotation, seed, scale and exact tokens of `base`, the kind and bits of `side`.
SideSpec with_base(SideSpec side, const SideSpec& base) {
  if (side.kind != CodeKind::Mse) return side;
  side.rotation = base.rotation;
  side.seed = base.seed;
  side.scale_rule = base.scale_rule;
  side.scale_dtype = base.scale_dtype;
  side.codebook = base.codebook;
  return side;
}

const SideSpec& rotating(const CodecSpec& base, const SideSpec& side) {
  static const SideSpec kDefault{};
  return side.kind == CodeKind::Mse ? side : base.k.kind == CodeKind::Mse ? base.k : kDefault;
}

class Search {
 public:
  Search(Dump& dump, const RecommendOptions& options) : dump_(dump), options_(options) {
    if (options.calibration != nullptr) {
      calibration_ = *options.calibration;  // transforms and centres suit any bits; pair tables do not
      for (LayerCalibration& layer : calibration_.layers) {
        layer.k.pair_points.clear();
        layer.v.pair_points.clear();
      }
    }
    add_own();
    for (const char* name : {"vllm:3bit_nc", "vllm:k3v4_nc", "vllm:4bit_nc", "vllm:k8v4"}) add_vllm(name);
    add_vllm("fp8");
  }

  Recommendation run() {
    const std::vector<std::size_t> layers = usable_layers();
    Recommendation r;
    r.max_error = options_.max_error;
    for (const Candidate& c : candidates_) r.candidates.push_back({c.name, {}, {}});
    for (std::size_t n = 0; n < layers.size(); ++n) {
      measure_layer(layers[n], static_cast<double>(n) / static_cast<double>(layers.size()), 1.0 / static_cast<double>(layers.size()), r);
    }
    choose_layers(layers, r);
    r.tq4 = choose_uniform(layers, r, false);
    r.vllm = choose_uniform(layers, r, true);
    return r;
  }

 private:
  int add_side(std::vector<std::unique_ptr<Compressor>>& sides, const CodecSpec& spec, bool calibrated) {
    const Calibration* calibration = calibrated && options_.calibration != nullptr ? &calibration_ : nullptr;
    sides.push_back(codec_compressor("candidate", spec, calibration));
    return static_cast<int>(sides.size()) - 1;
  }

  bool pairs_of_base() const { return options_.base.k.pair_codebook && options_.base.v.pair_codebook; }

  void add_own() {
    const std::array<const char*, 4> names{"2", "3", "4", "8"};
    for (const char* bits : names) {
      CodecSpec spec = spec_from_name(*bits == '8' ? std::string("fp8") : std::string("tq") + bits);
      spec.k = with_base(spec.k, rotating(options_.base, options_.base.k));
      spec.v = with_base(spec.v, rotating(options_.base, options_.base.v));
      for (SideSpec* side : {&spec.k, &spec.v}) side->pair_codebook = side->kind == CodeKind::Mse && pairs_of_base();
      spec.sinks = options_.base.sinks;
      spec.window = options_.base.window;
      const bool calibrated = *bits != '8';
      add_side(k_sides_, spec, calibrated);
      add_side(v_sides_, spec, calibrated);
    }
    std::string suffix;  // what with_base took over and a name can say
    if (pairs_of_base()) suffix += "-2d";
    if (options_.base.k.scale_rule == ScaleRule::Norm && options_.base.v.scale_rule == ScaleRule::Norm) suffix += "-norm";
    for (int k = 0; k < 4; ++k) {
      for (int v = 0; v < 3; ++v)
        candidates_.push_back(
            {std::string("k") + names[static_cast<std::size_t>(k)] + "v" + names[static_cast<std::size_t>(v)] + suffix, k, v, false});
    }
    candidates_.push_back({"fp8", 3, 3, false});
  }

  void add_vllm(const char* name) {
    const CodecSpec spec = spec_from_name(name);
    const int k = add_side(k_sides_, spec, false), v = add_side(v_sides_, spec, false);
    candidates_.push_back({name, k, v, true});
  }

  std::vector<std::size_t> usable_layers() const {
    std::vector<std::size_t> layers;
    for (const std::size_t i : eval::selected_layers(dump_.info(), options_.layers)) {
      if (eval::has_queries(dump_.info().layers[i])) layers.push_back(i);
    }
    if (layers.empty())
      throw Error(ErrorCode::BadInput, "a recommendation needs queries in the dump: it is chosen by the attention output",
                  dump_.info().path);
    return layers;
  }

  /// Bits and error of every candidate on one layer, means over its heads.
  void measure_layer(std::size_t index, double from, double width, Recommendation& r) {
    const LayerInfo& layer = dump_.info().layers[index];
    std::vector<double> bits(candidates_.size()), error(candidates_.size());
    // A reconstruction and its packed copy, K and V.
    const std::size_t each = 4 * sizeof(float) * static_cast<std::size_t>(layer.tokens) * static_cast<std::size_t>(layer.head_dim);
    const std::size_t batch = std::clamp<std::size_t>(options_.memory_bytes / std::max<std::size_t>(each, 1), 1, candidates_.size());
    const double step = width / layer.num_kv_heads;
    for (int head = 0; head < layer.num_kv_heads; ++head) {
      const eval::HeadData data = eval::load_head(dump_, index, head, options_.queries);
      for (std::size_t begin = 0; begin < candidates_.size(); begin += batch) {
        const std::size_t count = std::min(batch, candidates_.size() - begin);
        const double at = from + step * (head + static_cast<double>(begin) / static_cast<double>(candidates_.size()));
        measure_batch(layer, head, data, begin, count, at, step * static_cast<double>(count) / static_cast<double>(candidates_.size()),
                      bits, error);
      }
    }
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      r.candidates[i].bits.push_back(bits[i] / layer.num_kv_heads);
      r.candidates[i].output_mse.push_back(error[i] / layer.num_kv_heads);
    }
  }

  /// Adds bits and errors of candidates [begin, begin + count) on one head. A side that several of them use is reconstructed once.
  void measure_batch(const LayerInfo& layer, int head, const eval::HeadData& data, std::size_t begin, std::size_t count, double from,
                     double width, std::vector<double>& bits, std::vector<double>& error) const {
    std::vector<std::vector<float>> k(k_sides_.size()), v(v_sides_.size());
    std::vector<double> k_bits(k.size()), v_bits(v.size());
    std::vector<bool> k_used(k.size()), v_used(v.size());
    for (std::size_t i = begin; i < begin + count; ++i) {
      k_used[static_cast<std::size_t>(candidates_[i].k)] = true;
      v_used[static_cast<std::size_t>(candidates_[i].v)] = true;
    }
    eval::parallel_for(static_cast<std::int64_t>(k.size() + v.size()), options_.threads, [&](std::int64_t task, int) {
      const auto t = static_cast<std::size_t>(task);
      const bool keys = t < k.size();
      const std::size_t at = keys ? t : t - k.size();
      if (!(keys ? k_used : v_used)[at]) return;
      HeadVectors x;
      x.side = keys ? Side::K : Side::V;
      x.layer = layer.layer, x.head = head, x.tokens = layer.tokens, x.dim = layer.head_dim;
      x.x = keys ? data.k.data() : data.v.data();
      const Compressor& codec = *(keys ? k_sides_ : v_sides_)[at];
      std::vector<float>& out = keys ? k[at] : v[at];
      out.resize(static_cast<std::size_t>(x.tokens * x.dim));
      codec.reconstruct(x, out.data());
      (keys ? k_bits : v_bits)[at] = codec.footprint(x).total() / static_cast<double>(x.tokens * x.dim);
    });
    const ExactTokens own{options_.base.sinks, options_.base.window, 0};
    std::vector<Reconstruction> all;
    for (std::size_t i = begin; i < begin + count; ++i) {
      const Candidate& c = candidates_[i];
      const auto at_k = static_cast<std::size_t>(c.k), at_v = static_cast<std::size_t>(c.v);
      const ExactTokens exact = c.vllm ? ExactTokens{} : own;
      all.push_back({k[at_k].data(), v[at_v].data(), exact, exact});
      bits[i] += (k_bits[at_k] + v_bits[at_v]) / 2;
    }
    const auto errors = attention_errors(eval::attention_problem(dump_.info(), layer, data), all, options_.threads,
                                         [&](double share) { return !options_.progress || options_.progress(from + width * share); });
    for (std::size_t i = 0; i < count; ++i) error[begin + i] += errors[i].output.relative_mse();
  }

  void choose_layers(const std::vector<std::size_t>& layers, Recommendation& r) const {
    double sum = 0;
    for (std::size_t n = 0; n < layers.size(); ++n) {
      LayerChoice choice;
      choice.layer = dump_.info().layers[layers[n]].layer;
      choice.codec = "fp16";
      for (std::size_t i = 0; i < candidates_.size(); ++i) {
        const double bits = r.candidates[i].bits[n], error = r.candidates[i].output_mse[n];
        if (candidates_[i].vllm || !(error <= options_.max_error)) continue;
        const bool cheaper = bits < choice.bits - 1e-9, better = bits < choice.bits + 1e-9 && error < choice.output_mse;
        if (cheaper || better) {
          choice.codec = candidates_[i].name;
          choice.bits = bits;
          choice.output_mse = error;
        }
      }
      sum += choice.bits;
      r.layers.push_back(choice);
    }
    r.bits = sum / static_cast<double>(layers.size());
  }

  UniformChoice choose_uniform(const std::vector<std::size_t>& layers, const Recommendation& r, bool vllm) const {
    UniformChoice best;
    best.codec = "fp16";
    for (std::size_t n = 0; n < layers.size(); ++n) best.fp16_layers.push_back(dump_.info().layers[layers[n]].layer);
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      if (candidates_[i].vllm != vllm) continue;
      UniformChoice choice;
      choice.codec = candidates_[i].name;
      choice.bits = 0;
      for (std::size_t n = 0; n < layers.size(); ++n) {
        const double error = r.candidates[i].output_mse[n];
        if (error <= options_.max_error) {
          choice.bits += r.candidates[i].bits[n];
          choice.worst_error = std::max(choice.worst_error, error);
        } else {
          choice.bits += 16;
          choice.fp16_layers.push_back(dump_.info().layers[layers[n]].layer);
        }
      }
      choice.bits /= static_cast<double>(layers.size());
      if (choice.fp16_layers.size() == layers.size()) continue;
      const bool cheaper = choice.bits < best.bits - 1e-9, better = choice.bits < best.bits + 1e-9 && choice.worst_error < best.worst_error;
      if (cheaper || better) best = choice;
    }
    best.flags = vllm ? vllm_flags(best) : tq4_flags(best);
    return best;
  }

  static std::string join(const std::vector<int>& layers, const char* separator) {
    std::string text;
    for (const int layer : layers) text += (text.empty() ? "" : separator) + std::to_string(layer);
    return text;
  }
  std::string tq4_flags(const UniformChoice& choice) const {
    std::string text = "--codec " + choice.codec;
    if (choice.codec == "fp16") return text;
    if (options_.base.sinks > 0) text += " --sinks " + std::to_string(options_.base.sinks);
    if (options_.base.window > 0) text += " --window " + std::to_string(options_.base.window);
    if (!choice.fp16_layers.empty()) text += " --skip-layers " + join(choice.fp16_layers, ",");
    return text;
  }
  static std::string vllm_flags(const UniformChoice& choice) {
    if (choice.codec == "fp16") return "--kv-cache-dtype auto";
    std::string text = "--kv-cache-dtype " + (choice.codec == "fp8" ? std::string("fp8") : "turboquant_" + choice.codec.substr(5));
    if (!choice.fp16_layers.empty()) text += " --kv-cache-dtype-skip-layers " + join(choice.fp16_layers, " ");
    return text;
  }

  Dump& dump_;
  const RecommendOptions& options_;
  Calibration calibration_;
  std::vector<std::unique_ptr<Compressor>> k_sides_, v_sides_;  ///< sides are reconstructed once and combined
  std::vector<Candidate> candidates_;
};

}  // namespace

Recommendation recommend(Dump& dump, const RecommendOptions& options) {
  if (!(options.max_error > 0)) throw Error(ErrorCode::Usage, "the error to hold must be above 0");
  return Search(dump, options).run();
}

}  // namespace tq4
