// Attention and vector metrics against a plain double-precision computation of the same definitions: causal, sliding window, grouped heads,
// exact tokens, odd sizes.
#include "tq4/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "eval/attention_tile.h"
#include "tq4/error.h"

namespace {

using tq4::AttentionError;
using tq4::AttentionProblem;
using tq4::ExactTokens;
using tq4::Reconstruction;

struct Data {
  std::vector<float> q, k, v, k2, v2;
};

Data make_data(int q_heads, std::int64_t q_tokens, std::int64_t tokens, int dim, double noise, unsigned seed) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  Data data;
  const auto fill = [&](std::vector<float>& x, std::int64_t n) {
    x.resize(static_cast<std::size_t>(n));
    for (float& value : x) value = normal(gen);
  };
  fill(data.q, q_heads * q_tokens * dim);
  fill(data.k, tokens * dim);
  fill(data.v, tokens * dim);
  data.k2 = data.k;
  data.v2 = data.v;
  for (float& x : data.k2) x += static_cast<float>(noise) * normal(gen);
  for (float& x : data.v2) x += static_cast<float>(noise) * normal(gen);
  return data;
}

/// The definitions, in double, one query at a time.
AttentionError oracle(const AttentionProblem& p, const Reconstruction& r) {
  AttentionError e;
  const double scale = p.sm_scale > 0 ? p.sm_scale : 1 / std::sqrt(p.dim);
  for (int h = 0; h < p.q_heads; ++h) {
    for (std::int64_t i = 0; i < p.q_tokens; ++i) {
      const std::int64_t pos = p.q_positions != nullptr ? p.q_positions[i] : p.q_start + i;
      const std::int64_t end = p.causal ? pos + 1 : p.tokens;
      const std::int64_t begin = p.causal && p.sliding_window > 0 ? std::max<std::int64_t>(0, end - p.sliding_window) : 0;
      const std::int64_t at = p.causal ? pos : p.tokens - 1;
      const auto exact = [&](const ExactTokens& x, std::int64_t j) {
        return j < x.sinks || (x.window > 0 && j > at - x.window) || (x.block > 0 && j >= (at + 1) / x.block * x.block);
      };
      const float* q = p.q + (h * p.q_tokens + i) * p.dim;
      std::vector<double> l, m;
      for (std::int64_t j = begin; j < end; ++j) {
        double a = 0, b = 0;
        for (int d = 0; d < p.dim; ++d) {
          a += scale * q[d] * p.k[j * p.dim + d];
          b += scale * q[d] * (r.k == nullptr || exact(r.exact_k, j) ? p.k : r.k)[j * p.dim + d];
        }
        l.push_back(a);
        m.push_back(b);
      }
      const double n = static_cast<double>(l.size());
      const double mean = std::accumulate(l.begin(), l.end(), 0.0) / n;
      double shift = 0, zl = 0, zm = 0, error = 0;
      for (std::size_t j = 0; j < l.size(); ++j) {
        shift += (m[j] - l[j]) / n;
        error += (m[j] - l[j]) * (m[j] - l[j]);
        e.logit_max = std::max(e.logit_max, std::fabs(m[j] - l[j]));
        e.logit_energy += (l[j] - mean) * (l[j] - mean);
        zl += std::exp(l[j]);
        zm += std::exp(m[j]);
      }
      e.logit_error += error;
      e.logit_error_centred += error - n * shift * shift;
      double kl = 0;
      std::vector<double> out(static_cast<std::size_t>(p.dim)), out2(out);
      for (std::size_t j = 0; j < l.size(); ++j) {
        const double a = std::exp(l[j]) / zl, b = std::exp(m[j]) / zm;
        kl += a * std::log(a / b);
        const std::int64_t key = begin + static_cast<std::int64_t>(j);
        const float* v2 = r.v == nullptr || exact(r.exact_v, key) ? p.v : r.v;
        for (int d = 0; d < p.dim; ++d) {
          out[static_cast<std::size_t>(d)] += a * p.v[key * p.dim + d];
          out2[static_cast<std::size_t>(d)] += b * v2[key * p.dim + d];
        }
      }
      e.kl.push_back(static_cast<float>(kl));
      std::vector<int> a(l.size()), b(l.size());
      std::iota(a.begin(), a.end(), 0);
      b = a;
      std::stable_sort(a.begin(), a.end(), [&](int x, int y) { return l[static_cast<std::size_t>(x)] > l[static_cast<std::size_t>(y)]; });
      std::stable_sort(b.begin(), b.end(), [&](int x, int y) { return m[static_cast<std::size_t>(x)] > m[static_cast<std::size_t>(y)]; });
      e.same_top1 += a[0] == b[0] ? 1 : 0;
      const std::size_t top = std::min<std::size_t>(8, l.size());
      int same = 0;
      for (std::size_t x = 0; x < top; ++x)
        same += static_cast<int>(std::count(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(top), a[x]));
      e.top8 += static_cast<double>(same) / static_cast<double>(top);
      double dot = 0, aa = 0, bb = 0;
      for (int d = 0; d < p.dim; ++d) {
        const double x = out[static_cast<std::size_t>(d)], y = out2[static_cast<std::size_t>(d)];
        e.output.energy += x * x;
        e.output.error += (x - y) * (x - y);
        dot += x * y, aa += x * x, bb += y * y;
      }
      e.output.cosine_sum += dot / std::sqrt(aa * bb);
      ++e.output.vectors;
      ++e.queries;
      e.logits += static_cast<std::int64_t>(l.size());
    }
  }
  return e;
}

void expect_equal(const AttentionError& a, const AttentionError& b) {
  const auto near = [](double x, double y, const char* what) { EXPECT_NEAR(x, y, 1e-4 * std::fabs(y) + 1e-9) << what; };
  EXPECT_EQ(a.queries, b.queries);
  EXPECT_EQ(a.logits, b.logits);
  near(a.logit_error, b.logit_error, "logit_error");
  near(a.logit_error_centred, b.logit_error_centred, "logit_error_centred");
  near(a.logit_energy, b.logit_energy, "logit_energy");
  near(a.logit_max, b.logit_max, "logit_max");
  near(a.kl_mean(), b.kl_mean(), "kl_mean");
  near(a.kl_max(), b.kl_max(), "kl_max");
  near(a.kl_quantile(0.5), b.kl_quantile(0.5), "kl_median");
  EXPECT_EQ(a.same_top1, b.same_top1);
  near(a.top8, b.top8, "top8");
  near(a.output.error, b.output.error, "output.error");
  near(a.output.energy, b.output.energy, "output.energy");
  near(a.output.cosine_sum, b.output.cosine_sum, "output.cosine");
  ASSERT_EQ(a.kl.size(), b.kl.size());
  for (std::size_t i = 0; i < a.kl.size(); ++i) EXPECT_NEAR(a.kl[i], b.kl[i], 1e-4 * b.kl[i] + 2e-7) << "query " << i;
}

struct Case {
  int q_heads;
  std::int64_t q_tokens, tokens, q_start;
  int dim;
  bool causal;
  int sliding_window;
  ExactTokens exact_k, exact_v;
};

class AttentionMetrics : public testing::TestWithParam<Case> {};

TEST_P(AttentionMetrics, AgreeWithDoublePrecision) {
  const Case& c = GetParam();
  const Data data = make_data(c.q_heads, c.q_tokens, c.tokens, c.dim, 0.1, 7);
  AttentionProblem p;
  p.q = data.q.data(), p.k = data.k.data(), p.v = data.v.data();
  p.q_start = c.q_start, p.q_tokens = c.q_tokens, p.tokens = c.tokens, p.q_heads = c.q_heads, p.dim = c.dim;
  p.causal = c.causal, p.sliding_window = c.sliding_window;
  p.sm_scale = 2.5 / std::sqrt(c.dim);  // peaked enough for a softmax that matters
  const std::vector<Reconstruction> all{{data.k2.data(), data.v2.data(), c.exact_k, c.exact_v},
                                        {nullptr, data.v2.data(), {}, c.exact_v},
                                        {data.k2.data(), nullptr, c.exact_k, {}},
                                        {}};
  const auto one = tq4::attention_errors(p, all, 1);
  const auto two = tq4::attention_errors(p, all, 3);
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    expect_equal(one[i], oracle(p, all[i]));
    EXPECT_EQ(one[i].output.error, two[i].output.error) << "threads must not change results";
    EXPECT_EQ(one[i].kl, two[i].kl);
  }
  EXPECT_EQ(one[3].output.error, 0);
  EXPECT_EQ(one[3].kl_max(), 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionMetrics,
                         testing::Values(Case{1, 1, 1, 0, 32, true, 0, {}, {}},                       // one token
                                         Case{2, 100, 300, 200, 64, true, 0, {}, {}},                 // last queries of a sequence
                                         Case{4, 129, 129, 0, 80, true, 0, {}, {}},                   // odd multiple of 8, from the start
                                         Case{1, 70, 600, 530, 128, true, 64, {}, {}},                // sliding window
                                         Case{3, 50, 333, 0, 96, false, 0, {}, {}},                   // not causal
                                         Case{2, 90, 290, 200, 64, true, 0, {4, 64, 0}, {4, 64, 0}},  // sinks and window
                                         Case{2, 90, 290, 200, 64, true, 100, {40, 16, 0}, {150, 0, 0}},  // ... with a sliding window
                                         Case{2, 300, 300, 0, 64, true, 0, {0, 0, 128}, {0, 128, 0}},     // KIVI's residual
                                         Case{1, 40, 200, 0, 32, false, 0, {4, 64, 0}, {0, 0, 64}}));

TEST(AttentionMetrics, ChosenQueriesEqualThoseOfTheWhole) {
  const Data data = make_data(1, 64, 64, 32, 0.1, 3);
  AttentionProblem p;
  p.q = data.q.data(), p.k = data.k.data(), p.v = data.v.data(), p.q_tokens = p.tokens = 64, p.dim = 32;
  const Reconstruction r{data.k2.data(), data.v2.data(), {}, {}};
  const AttentionError all = tq4::attention_errors(p, {r})[0];
  const std::vector<std::int64_t> positions{5, 17, 63};
  std::vector<float> q;
  for (const std::int64_t i : positions) q.insert(q.end(), data.q.begin() + i * 32, data.q.begin() + (i + 1) * 32);
  p.q = q.data(), p.q_positions = positions.data(), p.q_tokens = 3;
  const AttentionError some = tq4::attention_errors(p, {r})[0];
  for (std::size_t i = 0; i < 3; ++i) EXPECT_NEAR(some.kl[i], all.kl[static_cast<std::size_t>(positions[i])], 1e-6);
}

TEST(AttentionMetrics, ConstantKeysGiveFiniteNumbers) {
  Data data = make_data(1, 40, 40, 32, 0.1, 5);
  std::fill(data.k.begin(), data.k.end(), 1.5f);
  AttentionProblem p;
  p.q = data.q.data(), p.k = data.k.data(), p.v = data.v.data(), p.q_tokens = p.tokens = 40, p.dim = 32;
  const AttentionError same = tq4::attention_errors(p, {{data.k.data(), data.v.data(), {}, {}}})[0];
  EXPECT_EQ(same.logit_relative_mse(), 0);
  EXPECT_EQ(same.kl_max(), 0);
  EXPECT_EQ(same.top1_share(), 1);
  const AttentionError shifted = tq4::attention_errors(p, {{data.k2.data(), data.v.data(), {}, {}}})[0];
  EXPECT_TRUE(std::isfinite(shifted.kl_mean()));
  EXPECT_GT(shifted.kl_mean(), 0);
}

TEST(AttentionMetrics, RefusesQueriesPastTheKeys) {
  const Data data = make_data(1, 4, 4, 32, 0.1, 5);
  AttentionProblem p;
  p.q = data.q.data(), p.k = data.k.data(), p.v = data.v.data(), p.q_tokens = 4, p.tokens = 4, p.dim = 32, p.q_start = 1;
  EXPECT_THROW(tq4::attention_errors(p, {{}}), tq4::Error);
}

TEST(AttentionMetrics, StopsWhenAsked) {
  const Data data = make_data(1, 200, 200, 32, 0.1, 5);
  AttentionProblem p;
  p.q = data.q.data(), p.k = data.k.data(), p.v = data.v.data(), p.q_tokens = 200, p.tokens = 200, p.dim = 32;
  int calls = 0;
  try {
    tq4::attention_errors(p, {{}}, 1, [&](double) { return ++calls < 2; });
    FAIL() << "not stopped";
  } catch (const tq4::Error& e) {
    EXPECT_EQ(e.code(), tq4::ErrorCode::Interrupted);
  }
  EXPECT_EQ(calls, 2);
}

TEST(TileKernels, EveryInstructionSetAgreesWithPlainLoops) {
  const int rows = 11, depth = 37;
  const std::int64_t n = 531;
  const Data data = make_data(1, rows, n, depth, 0.1, 2);
  const tq4::eval::PackedMatrix panel = tq4::eval::pack(data.k.data(), depth, tq4::eval::kPanel);  // any 37 x 32 numbers
  const auto supported = tq4::eval::supported_tile_kernels();
  ASSERT_FALSE(supported.empty());
  for (const tq4::eval::TileKernels* kernels : supported) {
    std::vector<float> c(static_cast<std::size_t>(rows * 40), -1.0f), p(static_cast<std::size_t>(n));
    kernels->multiply_panel(data.q.data(), depth, rows, panel.panel(0), depth, c.data(), 40);
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < 32; ++j) {
        double sum = 0;
        for (int i = 0; i < depth; ++i)
          sum += static_cast<double>(data.q[static_cast<std::size_t>(r * depth + i)]) * panel.panel(0)[i * 32 + j];
        EXPECT_NEAR(c[static_cast<std::size_t>(r * 40 + j)], sum, 1e-4);
      }
      EXPECT_EQ(c[static_cast<std::size_t>(r * 40 + 32)], -1) << "writes 32 columns only";
    }
    const float* l = data.k.data();
    const float* m = data.k2.data();
    const auto row = kernels->softmax_row(l, n, p.data());
    EXPECT_EQ(row.max, *std::max_element(l, l + n));
    double sum = 0, error = 0, shift = 0, weighted = 0, mean = std::accumulate(l, l + n, 0.0) / static_cast<double>(n), variance = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const double e = std::exp(static_cast<double>(l[j]) - row.max), d = static_cast<double>(m[j]) - l[j];
      sum += e, error += d * d, shift += d, weighted += e * d, variance += (l[j] - mean) * (l[j] - mean);
      EXPECT_NEAR(p[static_cast<std::size_t>(j)], e, 1e-6);
    }
    EXPECT_NEAR(row.sum, sum, 1e-5 * sum);
    std::vector<float> sorted(l, l + n);
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(row.top.value[i], sorted[i]);
    const auto difference = kernels->compare_rows(l, p.data(), m, n);
    EXPECT_NEAR(difference.error, error, 1e-5 * error);
    EXPECT_NEAR(difference.shift, shift, 1e-5);
    EXPECT_NEAR(difference.weighted, weighted, 1e-5);
    EXPECT_NEAR(kernels->row_variance_sum(l, n), variance, 1e-5 * variance);
  }
}

TEST(VectorMetrics, ByHand) {
  const std::vector<float> x{3, 4, 0, 0, 1, 0}, y{3, 0, 0, 0, 1, 1};
  const tq4::VectorError e = tq4::vector_error(x.data(), y.data(), 3, 2);
  EXPECT_EQ(e.vectors, 3);
  EXPECT_EQ(e.nonzero, 2);
  EXPECT_DOUBLE_EQ(e.relative_mse(), (16.0 + 1.0) / 26.0);
  EXPECT_NEAR(e.cosine(), (0.6 + std::sqrt(0.5)) / 2, 1e-12);
  EXPECT_EQ(tq4::vector_error(x.data() + 2, y.data() + 2, 1, 2).relative_mse(), 0);
}

TEST(Quantile, NearestRank) {
  EXPECT_EQ(tq4::quantile({5, 1, 4, 2, 3}, 0.5), 3);
  EXPECT_EQ(tq4::quantile({1, 2, 3, 4}, 0.5), 2);
  EXPECT_EQ(tq4::quantile({1, 2, 3, 4}, 1.0), 4);
  EXPECT_EQ(tq4::quantile({1, 2, 3, 4}, 0.0), 1);
  EXPECT_TRUE(std::isnan(tq4::quantile({}, 0.5)));
}

}  // namespace
