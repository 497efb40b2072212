// reference_attention against a brute force that builds the whole masked logit matrix, for every option.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tq4/attention.h"
#include "tq4/error.h"
#include "vectors.h"

namespace tq4 {
namespace {

struct Problem {
  int q_len, seq_len, q_heads, kv_heads, dim;
  std::vector<float> q, k, v;

  Problem(int ql, int s, int hq, int hk, int d)
      : q_len(ql),
        seq_len(s),
        q_heads(hq),
        kv_heads(hk),
        dim(d),
        q(test::gaussian_vectors(ql * hq, d, 1)),
        k(test::gaussian_vectors(hk * s, d, 2)),
        v(test::gaussian_vectors(hk * s, d, 3)) {}
};

/// Softmax over a full row of logits, masked ones at -inf, a sink as one column more without a value.
void brute_force(const Problem& p, const AttentionOptions& o, std::vector<double>& out, std::vector<double>& lse) {
  out.assign(static_cast<std::size_t>(p.q_len * p.q_heads * p.dim), 0);
  lse.assign(static_cast<std::size_t>(p.q_len * p.q_heads), 0);
  for (int i = 0; i < p.q_len; ++i) {
    for (int h = 0; h < p.q_heads; ++h) {
      const int kv = h * p.kv_heads / p.q_heads, position = p.seq_len - p.q_len + i;
      std::vector<long double> weights;
      long double total = 0;
      for (int t = 0; t < p.seq_len; ++t) {
        bool visible = true;
        if (o.causal && t > position) visible = false;
        if (o.window > 0 && t <= position - o.window) visible = false;
        long double logit = 0;
        for (int d = 0; d < p.dim; ++d) {
          logit += static_cast<long double>(p.q[static_cast<std::size_t>((i * p.q_heads + h) * p.dim + d)]) *
                   static_cast<long double>(p.k[static_cast<std::size_t>((kv * p.seq_len + t) * p.dim + d)]);
        }
        logit *= o.sm_scale != 0 ? static_cast<long double>(o.sm_scale) : 1 / std::sqrt(static_cast<long double>(p.dim));
        if (o.soft_cap > 0) logit = o.soft_cap * std::tanh(logit / o.soft_cap);
        if (o.alibi_slopes != nullptr) logit += static_cast<long double>(o.alibi_slopes[h]) * (t - position);
        weights.push_back(visible ? std::exp(logit) : 0);
        total += weights.back();
      }
      if (o.sink_logits != nullptr) total += std::exp(static_cast<long double>(o.sink_logits[h]));
      const std::size_t row = static_cast<std::size_t>(i * p.q_heads + h);
      lse[row] = static_cast<double>(std::log(total));
      for (int t = 0; t < p.seq_len && total > 0; ++t) {
        for (int d = 0; d < p.dim; ++d) {
          out[row * static_cast<std::size_t>(p.dim) + static_cast<std::size_t>(d)] +=
              static_cast<double>(weights[static_cast<std::size_t>(t)] / total *
                                  static_cast<long double>(p.v[static_cast<std::size_t>((kv * p.seq_len + t) * p.dim + d)]));
        }
      }
    }
  }
}

void compare(const Problem& p, const AttentionOptions& o, const char* what) {
  std::vector<double> out(p.q.size(), -1), lse(static_cast<std::size_t>(p.q_len * p.q_heads), -1), expected, expected_lse;
  reference_attention(p.q.data(), p.k.data(), p.v.data(), p.q_len, p.seq_len, p.q_heads, p.kv_heads, p.dim, o, out.data(), lse.data());
  brute_force(p, o, expected, expected_lse);
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-12) << what << " at " << i;
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (std::isinf(expected_lse[i])) {
      ASSERT_EQ(lse[i], expected_lse[i]) << what;
    } else {
      ASSERT_NEAR(lse[i], expected_lse[i], 1e-12) << what;
    }
  }
  std::vector<double> without_lse(out.size());
  reference_attention(p.q.data(), p.k.data(), p.v.data(), p.q_len, p.seq_len, p.q_heads, p.kv_heads, p.dim, o, without_lse.data(), nullptr);
  EXPECT_EQ(out, without_lse);
}

TEST(ReferenceAttention, EveryOptionAloneAndTogether) {
  const float slopes[] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.03f, 0.01f}, sinks[] = {1.0f, -2.0f, 3.0f, 0.0f, 0.5f, 8.0f};
  for (const auto& [q_len, seq_len] : {std::pair{1, 37}, {4, 37}, {5, 5}, {7, 3}, {3, 0}, {1, 1}}) {
    for (const auto& [q_heads, kv_heads] : {std::pair{6, 2}, {3, 3}, {6, 1}}) {
      const Problem p(q_len, seq_len, q_heads, kv_heads, 24);
      for (int mask = 0; mask < 64; ++mask) {
        AttentionOptions o;
        if (mask & 1) o.window = 5;
        if (mask & 2) o.soft_cap = 1.5;
        if (mask & 4) o.alibi_slopes = slopes;
        if (mask & 8) o.sink_logits = sinks;
        if (mask & 16) o.causal = false;
        if (mask & 32) o.sm_scale = 0.7;
        compare(p, o,
                ("options " + std::to_string(mask) + " q_len " + std::to_string(q_len) + " seq_len " + std::to_string(seq_len)).c_str());
      }
    }
  }
}

TEST(ReferenceAttention, LargeLogitsDoNotOverflow) {
  Problem p(1, 9, 1, 1, 8);
  for (float& v : p.q) v *= 1e4f;
  double out[8], lse = 0;
  reference_attention(p.q.data(), p.k.data(), p.v.data(), 1, 9, 1, 1, 8, {}, out, &lse);
  EXPECT_TRUE(std::isfinite(lse));
  for (const double v : out) EXPECT_TRUE(std::isfinite(v));
}

TEST(ReferenceAttention, RefusesGroupsThatDoNotDivide) {
  const Problem p(1, 4, 3, 1, 8);
  double out[24];
  EXPECT_THROW(reference_attention(p.q.data(), p.k.data(), p.v.data(), 1, 4, 3, 2, 8, {}, out, nullptr), Error);
}

}  // namespace
}  // namespace tq4
