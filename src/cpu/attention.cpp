// Softmax attention as the textbook writes it, two passes over the logits in double: the oracle others are held to, so nothing clever here.
#include "tq4/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tq4/error.h"

namespace tq4 {

void reference_attention(const float* q, const float* k, const float* v, int q_len, std::int64_t seq_len, int num_q_heads, int num_kv_heads,
                         int head_dim, const AttentionOptions& options, double* out, double* lse) {
  if (q_len < 0 || seq_len < 0 || head_dim <= 0 || num_kv_heads <= 0 || num_q_heads <= 0 || num_q_heads % num_kv_heads != 0) {
    throw Error(ErrorCode::Usage,
                "attention needs head_dim > 0, lengths >= 0 and a number of query heads that is a multiple of the kv heads (" +
                    std::to_string(num_q_heads) + " / " + std::to_string(num_kv_heads) + ")");
  }
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const double sm_scale = options.sm_scale != 0 ? options.sm_scale : 1.0 / std::sqrt(static_cast<double>(head_dim));
  const int group = num_q_heads / num_kv_heads;
  std::vector<double> logits(static_cast<std::size_t>(seq_len));

  for (int i = 0; i < q_len; ++i) {
    const std::int64_t position = seq_len - q_len + i;  // negative where the sequence is shorter than the queries: nothing to see
    const std::int64_t end = options.causal ? std::clamp<std::int64_t>(position + 1, 0, seq_len) : seq_len;
    const std::int64_t begin = options.window > 0 ? std::clamp<std::int64_t>(position + 1 - options.window, 0, end) : 0;
    for (int h = 0; h < num_q_heads; ++h) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(i) * num_q_heads + h;
      const float* query = q + row * head_dim;
      const std::ptrdiff_t head = static_cast<std::ptrdiff_t>(h / group) * seq_len;
      double largest = options.sink_logits != nullptr ? static_cast<double>(options.sink_logits[h]) : kMinusInfinity;
      for (std::int64_t t = begin; t < end; ++t) {
        const float* key = k + (head + t) * head_dim;
        double logit = 0;
        for (int d = 0; d < head_dim; ++d) logit += static_cast<double>(query[d]) * static_cast<double>(key[d]);
        logit *= sm_scale;
        if (options.soft_cap > 0) logit = options.soft_cap * std::tanh(logit / options.soft_cap);
        if (options.alibi_slopes != nullptr) logit += static_cast<double>(options.alibi_slopes[h]) * static_cast<double>(t - position);
        logits[static_cast<std::size_t>(t)] = logit;
        largest = std::max(largest, logit);
      }
      double* sum_v = out + row * head_dim;
      std::fill(sum_v, sum_v + head_dim, 0.0);
      if (largest == kMinusInfinity) {
        if (lse != nullptr) lse[row] = kMinusInfinity;
        continue;
      }
      double total = options.sink_logits != nullptr ? std::exp(static_cast<double>(options.sink_logits[h]) - largest) : 0.0;
      for (std::int64_t t = begin; t < end; ++t) {
        const double weight = std::exp(logits[static_cast<std::size_t>(t)] - largest);
        const float* value = v + (head + t) * head_dim;
        total += weight;
        for (int d = 0; d < head_dim; ++d) sum_v[d] += weight * static_cast<double>(value[d]);
      }
      for (int d = 0; d < head_dim; ++d) sum_v[d] /= total;
      if (lse != nullptr) lse[row] = largest + std::log(total);
    }
  }
}

}  // namespace tq4
