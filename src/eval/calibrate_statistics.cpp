// Moments of a head over several dumps. Products run in fp32 over blocks of rows and are summed in double; every head is one task, so the
// result does not depend on the number of threads.
#include "eval/calibrate_statistics.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "tq4/error.h"

namespace tq4::eval {
namespace {

constexpr std::int64_t kSampledQueries = 192;  ///< a head and dump: attention weights come from these, evenly spaced

struct HeadRows {
  std::int64_t tokens = 0, q_tokens = 0;
  std::vector<float> k, v;
  std::vector<std::vector<float>> q;  ///< one a query head of the group
};

std::vector<float> read_rows(Dump& dump, std::size_t layer_index, Tensor tensor, DType dtype, int head, std::int64_t first,
                             std::int64_t rows, int dim) {
  const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(dim);
  std::vector<unsigned char> raw(count * dtype_size(dtype));
  dump.read(layer_index, tensor, head, first, rows, raw.data());
  std::vector<float> out(count);
  to_float(raw.data(), dtype, count, out.data());
  const auto bad = std::find_if(out.begin(), out.end(), [](float x) { return !std::isfinite(x); });
  if (bad != out.end()) {
    const char* name = tensor == Tensor::K ? "k" : tensor == Tensor::V ? "v" : "q";
    throw Error(ErrorCode::BadInput,
                "holds NaN or infinity at head " + std::to_string(head) + ", token " + std::to_string(first + (bad - out.begin()) / dim),
                dump.info().path + ": layer " + std::to_string(dump.info().layers[layer_index].layer) + " " + name);
  }
  return out;
}

HeadRows load(Dump& dump, std::size_t layer_index, int head, bool queries, std::mutex& mutex) {
  const std::lock_guard lock(mutex);
  const LayerInfo& layer = dump.info().layers[layer_index];
  HeadRows rows;
  rows.tokens = layer.tokens;
  rows.k = read_rows(dump, layer_index, Tensor::K, layer.k_dtype, head, 0, layer.tokens, layer.head_dim);
  rows.v = read_rows(dump, layer_index, Tensor::V, layer.v_dtype, head, 0, layer.tokens, layer.head_dim);
  if (!queries || layer.q_tokens == 0 || layer.num_q_heads < layer.num_kv_heads) return rows;
  rows.q_tokens = layer.q_tokens;
  const int group = layer.num_q_heads / layer.num_kv_heads;
  for (int g = 0; g < group; ++g)
    rows.q.push_back(read_rows(dump, layer_index, Tensor::Q, layer.q_dtype, head * group + g, 0, layer.q_tokens, layer.head_dim));
  return rows;
}

/// RoPE (rotate_half): planes (i, i + D/2) turn by position * theta^(-2i/D). Angles in double, one table for all positions.
class Turns {
 public:
  Turns(std::int64_t tokens, int dim, double theta) : half_(dim / 2) {
    const auto half = static_cast<std::size_t>(half_);
    table_.resize(static_cast<std::size_t>(tokens) * half * 2);
    for (std::size_t i = 0; i < half; ++i) {
      const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / dim);
      for (std::size_t p = 0; p < static_cast<std::size_t>(tokens); ++p) {
        table_[2 * (p * half + i)] = static_cast<float>(std::cos(static_cast<double>(p) * frequency));
        table_[2 * (p * half + i) + 1] = static_cast<float>(std::sin(static_cast<double>(p) * frequency));
      }
    }
  }
  /// out = R_position x; direction -1 undoes it.
  void turn(const float* x, float* out, std::int64_t position, float direction) const {
    const float* row = table_.data() + 2 * position * half_;
    for (int i = 0; i < half_; ++i) {
      const float c = row[2 * i], s = direction * row[2 * i + 1], a = x[i], b = x[i + half_];
      out[i] = a * c - b * s;
      out[i + half_] = b * c + a * s;
    }
  }

 private:
  int half_;
  std::vector<float> table_;
};

void subtract_turned(std::vector<float>& k, const std::vector<double>& mean, int dim, double theta) {
  std::vector<float> mu(mean.begin(), mean.end()), turned(mean.size());
  const auto rows = static_cast<std::int64_t>(k.size()) / dim;
  const Turns turns(rows, dim, theta);
  for (std::int64_t p = 0; p < rows; ++p) {
    turns.turn(mu.data(), turned.data(), p, 1);
    for (int j = 0; j < dim; ++j) k[static_cast<std::size_t>(p * dim + j)] -= turned[static_cast<std::size_t>(j)];
  }
}

double energy(const std::vector<float>& rows) {
  double sum = 0;
  for (const float x : rows) sum += static_cast<double>(x) * x;
  return sum;
}

/// Raw sums turned into mean and covariance.
Moments finish(const core::Matrix& second, const std::vector<double>& sum, double weight) {
  Moments m;
  const std::size_t n = sum.size();
  m.weight = weight;
  m.mean.resize(n);
  m.covariance.resize(n * n);
  for (std::size_t i = 0; i < n; ++i) m.mean[i] = weight > 0 ? sum[i] / weight : 0;
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) m.covariance[i * n + j] = weight > 0 ? second[i * n + j] / weight - m.mean[i] * m.mean[j] : 0;
  }
  return m;
}

void scale_rows(std::vector<float>& rows, const std::vector<float>& weights, int dim) {
  for (std::size_t r = 0; r < weights.size(); ++r) {
    const float s = std::sqrt(std::max(weights[r], 0.0f));
    for (int j = 0; j < dim; ++j) rows[r * static_cast<std::size_t>(dim) + static_cast<std::size_t>(j)] *= s;
  }
}

}  // namespace

HeadStatistics gather_statistics(const std::vector<Dump*>& dumps, std::size_t layer_index, int head, const CalibrateOptions& options,
                                 std::mutex& dumps_mutex) {
  const LayerInfo& shape = dumps.front()->info().layers[layer_index];
  const int dim = shape.head_dim;
  const auto d = static_cast<std::size_t>(dim);
  const double theta = dumps.front()->info().rope_theta;
  HeadStatistics out;
  if (options.rope) {
    out.rope_mean.assign(d, 0);
    std::int64_t tokens = 0;
    std::vector<float> back(d);
    for (Dump* dump : dumps) {
      const HeadRows rows = load(*dump, layer_index, head, false, dumps_mutex);
      const Turns turns(rows.tokens, dim, theta);
      for (std::int64_t p = 0; p < rows.tokens; ++p) {
        turns.turn(rows.k.data() + p * dim, back.data(), p, -1);
        for (std::size_t j = 0; j < d; ++j) out.rope_mean[j] += back[j];
      }
      tokens += rows.tokens;
    }
    for (double& x : out.rope_mean) x /= static_cast<double>(std::max<std::int64_t>(tokens, 1));
  }
  core::Matrix kk(d * d), vv(d * d), qq(d * d);
  std::vector<double> k_sum(d), v_sum(d);
  for (Dump* dump : dumps) {
    HeadRows rows = load(*dump, layer_index, head, true, dumps_mutex);
    out.k_energy += energy(rows.k);
    out.v_energy += energy(rows.v);
    if (options.rope) subtract_turned(rows.k, out.rope_mean, dim, theta);
    core::add_second_moment(rows.k.data(), rows.tokens, dim, kk, &k_sum);
    core::add_second_moment(rows.v.data(), rows.tokens, dim, vv, &v_sum);
    for (const std::vector<float>& q : rows.q) core::add_second_moment(q.data(), rows.q_tokens, dim, qq, nullptr);
    out.tokens += rows.tokens;
    out.queries += rows.q_tokens * static_cast<std::int64_t>(rows.q.size());
    if (out.value_gram.empty() && dump->info().layers[layer_index].has_o_gram) {
      const std::lock_guard lock(dumps_mutex);
      const std::vector<float> gram = dump->read_o_gram(layer_index);
      const auto first = gram.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(head) * d * d);
      out.value_gram.assign(first, first + static_cast<std::ptrdiff_t>(d * d));
    }
  }
  const auto tokens = static_cast<double>(out.tokens);
  out.k = finish(kk, k_sum, tokens);
  if (options.rope) {  // what is left of the mean belongs to the covariance: the codec subtracts R_p rope_mean alone
    for (std::size_t i = 0; i < d; ++i) {
      for (std::size_t j = 0; j < d; ++j) out.k.covariance[i * d + j] += out.k.mean[i] * out.k.mean[j];
    }
    std::fill(out.k.mean.begin(), out.k.mean.end(), 0.0);
  }
  out.v = finish(vv, v_sum, tokens);
  if (tokens > 0) {
    out.k_energy /= tokens;
    out.v_energy /= tokens;
  }
  if (out.queries > 0) {
    for (double& x : qq) x /= static_cast<double>(out.queries);
    out.query = std::move(qq);
  }
  return out;
}

void weight_by_attention(HeadStatistics& statistics, const std::vector<Dump*>& dumps, std::size_t layer_index, int head,
                         const CalibrateOptions& options, const std::vector<float>& noise, std::mutex& dumps_mutex) {
  const double share = options.attention_weight;
  if (share <= 0 || statistics.query.empty()) return;
  const LayerInfo& shape = dumps.front()->info().layers[layer_index];
  const int dim = shape.head_dim;
  const auto d = static_cast<std::size_t>(dim);
  const double sm_scale = dumps.front()->info().sm_scale > 0 ? dumps.front()->info().sm_scale : 1 / std::sqrt(static_cast<double>(dim));
  core::Matrix w = statistics.query;
  const double mean_eigenvalue = core::trace(w, dim) / dim;
  if (!(mean_eigenvalue > 0)) return;
  for (std::size_t i = 0; i < d; ++i) w[i * d + i] += 0.002 * mean_eigenvalue;
  const core::Matrix w_inverse = core::inverse(w, dim);
  const std::vector<float> wi(w_inverse.begin(), w_inverse.end());

  core::Matrix kk(d * d), qq(d * d);
  std::vector<double> k_sum(d);
  double k_weight = 0, q_weight = 0;
  for (Dump* dump : dumps) {
    const LayerInfo& layer = dump->info().layers[layer_index];
    HeadRows rows = load(*dump, layer_index, head, true, dumps_mutex);
    const std::vector<float> original = rows.k;
    if (options.rope) subtract_turned(rows.k, statistics.rope_mean, dim, dump->info().rope_theta);
    std::vector<float> power(static_cast<std::size_t>(rows.tokens)), key_weight(power.size()), value_weight(power.size()),
        logits(power.size());
    for (std::int64_t t = 0; t < rows.tokens; ++t) {
      const float* k = rows.k.data() + t * dim;
      float sum = 0;
      for (std::size_t i = 0; i < d; ++i) {
        float acc = 0;
        for (std::size_t j = 0; j < d; ++j) acc += noise[i * d + j] * (k[j] - static_cast<float>(statistics.k.mean[j]));
        sum += acc * acc;
      }
      power[static_cast<std::size_t>(t)] = sum;
    }
    const std::int64_t count = std::min(kSampledQueries, rows.q_tokens);
    for (const std::vector<float>& q : rows.q) {
      std::vector<float> chosen, weights;
      for (std::int64_t n = 0; n < count; ++n) {
        const std::int64_t row = (n + 1) * rows.q_tokens / count - 1, position = layer.q_start + row;
        const std::int64_t end = dump->info().causal ? std::min(rows.tokens, position + 1) : rows.tokens;
        const std::int64_t begin = layer.sliding_window > 0 ? std::max<std::int64_t>(0, end - layer.sliding_window) : 0;
        const float* query = q.data() + row * dim;
        float top = -1e30f;
        for (std::int64_t t = begin; t < end; ++t) {
          const float* k = original.data() + t * dim;
          float lanes[8] = {};
          for (std::size_t j = 0; j < d; ++j) lanes[j & 7] += query[j] * k[j];
          const float dot = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
          logits[static_cast<std::size_t>(t)] = dot * static_cast<float>(sm_scale);
          top = std::max(top, logits[static_cast<std::size_t>(t)]);
        }
        double total = 0;
        for (std::int64_t t = begin; t < end; ++t)
          total += logits[static_cast<std::size_t>(t)] = std::exp(logits[static_cast<std::size_t>(t)] - top);
        if (!(total > 0)) continue;
        double whitened = 0;
        for (std::size_t i = 0; i < d; ++i) {
          double acc = 0;
          for (std::size_t j = 0; j < d; ++j) acc += wi[i * d + j] * query[j];
          whitened += acc * query[i];
        }
        double noise_met = 0;
        for (std::int64_t t = begin; t < end; ++t) {
          const double p = logits[static_cast<std::size_t>(t)] / total, a = p * (1 - p);
          noise_met += a * power[static_cast<std::size_t>(t)];
          key_weight[static_cast<std::size_t>(t)] += static_cast<float>(a * whitened);
        }
        chosen.insert(chosen.end(), query, query + dim);
        weights.push_back(static_cast<float>(noise_met));
        q_weight += noise_met;
      }
      scale_rows(chosen, weights, dim);
      core::add_second_moment(chosen.data(), static_cast<std::int64_t>(weights.size()), dim, qq, nullptr);
    }
    for (std::int64_t t = 0; t < rows.tokens; ++t) {
      const float weight = key_weight[static_cast<std::size_t>(t)];
      k_weight += weight;
      for (std::size_t j = 0; j < d; ++j) k_sum[j] += weight * rows.k[static_cast<std::size_t>(t) * d + j];
    }
    scale_rows(rows.k, key_weight, dim);
    core::add_second_moment(rows.k.data(), rows.tokens, dim, kk, nullptr);
    statistics.key_weights.push_back(std::move(key_weight));
  }
  if (!(k_weight > 0) || !(q_weight > 0)) return;
  // Mix first and second moments, then take the covariance about the mixed mean.
  Moments& k = statistics.k;
  std::vector<double> sum(d);
  core::Matrix second(d * d);
  for (std::size_t i = 0; i < d; ++i) sum[i] = (1 - share) * k.mean[i] + share * (options.rope ? 0.0 : k_sum[i] / k_weight);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j)
      second[i * d + j] = (1 - share) * (k.covariance[i * d + j] + k.mean[i] * k.mean[j]) + share * kk[i * d + j] / k_weight;
  }
  k = finish(second, sum, 1);
  const double plain = core::trace(statistics.query, dim), weighted = core::trace(qq, dim);
  for (std::size_t i = 0; i < d * d; ++i)
    statistics.query[i] = (1 - share) * statistics.query[i] + share * qq[i] * (weighted > 0 ? plain / weighted : 0);
}

std::vector<SampledRows> sample_rows(const std::vector<Dump*>& dumps, std::size_t layer_index, int head, Side side, std::int64_t count,
                                     const std::vector<float>& centre, double theta, const std::vector<std::vector<float>>& attention,
                                     std::mutex& dumps_mutex) {
  constexpr std::int64_t kRun = 64;
  const int dim = dumps.front()->info().layers[layer_index].head_dim;
  const auto d = static_cast<std::size_t>(dim);
  std::int64_t runs = 0;
  for (const Dump* dump : dumps) runs += (dump->info().layers[layer_index].tokens + kRun - 1) / kRun;
  const std::int64_t step = std::max<std::int64_t>(1, runs * kRun / std::max<std::int64_t>(count, 1));
  std::vector<SampledRows> out;
  std::int64_t run = 0;
  double total = 0, sampled = 0;
  for (std::size_t n = 0; n < dumps.size(); ++n) {
    const LayerInfo& layer = dumps[n]->info().layers[layer_index];
    const Turns turns(theta > 0 ? layer.tokens : 0, dim, theta > 0 ? theta : 1);
    std::vector<float> turned(centre);
    for (std::int64_t begin = 0; begin < layer.tokens; begin += kRun, ++run) {
      if (run % step != 0) continue;
      const std::int64_t size = std::min(kRun, layer.tokens - begin);
      SampledRows part;
      part.head = head;
      part.position0 = begin;
      {
        const std::lock_guard lock(dumps_mutex);
        part.rows = side == Side::K ? read_rows(*dumps[n], layer_index, Tensor::K, layer.k_dtype, head, begin, size, dim)
                                    : read_rows(*dumps[n], layer_index, Tensor::V, layer.v_dtype, head, begin, size, dim);
      }
      part.centred = part.rows;
      for (std::int64_t t = 0; t < size && !centre.empty(); ++t) {
        if (theta > 0) turns.turn(centre.data(), turned.data(), begin + t, 1);
        for (std::size_t j = 0; j < d; ++j) part.centred[static_cast<std::size_t>(t) * d + j] -= turned[j];
      }
      part.weights.assign(static_cast<std::size_t>(size), 1.0f);
      if (!attention.empty()) std::copy_n(attention[n].begin() + begin, size, part.weights.begin());
      for (const float w : part.weights) total += w;
      sampled += static_cast<double>(size);
      out.push_back(std::move(part));
    }
  }
  for (SampledRows& part : out) {
    for (float& w : part.weights) w = total > 0 ? static_cast<float>(w * sampled / total) : 1.0f;
  }
  return out;
}

}  // namespace tq4::eval
