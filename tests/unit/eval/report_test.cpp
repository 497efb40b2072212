// The report on dumps made in memory: totals, batches, missing queries, degenerate keys, bad numbers, the recommendation, and the page.
#include "tq4/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "memory_dump.h"

namespace {

using tq4::CodecReport;
using tq4::Compressor;
using tq4::EvalOptions;
using tq4::Report;
using tq4::test::MemoryDump;

std::vector<std::shared_ptr<const Compressor>> codecs(const std::vector<std::string>& names) {
  std::vector<std::shared_ptr<const Compressor>> list;
  for (const std::string& name : names) list.push_back(tq4::make_compressor(name));
  return list;
}

TEST(Report, HeadsEqualTheMetricsThemselvesAndTotalsTheirMeans) {
  MemoryDump dump(2, 2, 4, 200, 50, 64);
  const Report report = tq4::evaluate(dump, codecs({"tq3", "kivi2"}), {});
  ASSERT_EQ(report.codecs.size(), 2u);
  EXPECT_EQ(report.queries, 2 * 4 * 50);
  for (const CodecReport& codec : report.codecs) {
    ASSERT_EQ(codec.heads.size(), 4u);
    ASSERT_EQ(codec.layers.size(), 2u);
    double k = 0, output = 0;
    for (const auto& head : codec.heads) {
      k += head.quality.k_mse / 4;
      output += head.quality.output_mse / 4;
    }
    EXPECT_NEAR(codec.total.k_mse, k, 1e-12);
    EXPECT_NEAR(codec.total.output_mse, output, 1e-12);
  }
  // Layer 4, kv head 1 (query heads 2 and 3), by hand.
  const auto codec = tq4::make_compressor("tq3");
  auto& layer = dump.layer(1);
  std::vector<float> k(200 * 64), v(k);
  tq4::HeadVectors x;
  x.tokens = 200, x.dim = 64, x.x = layer.k.data() + 200 * 64;
  codec->reconstruct(x, k.data());
  x.side = tq4::Side::V, x.x = layer.v.data() + 200 * 64;
  codec->reconstruct(x, v.data());
  tq4::AttentionProblem p;
  p.q = layer.q.data() + 2 * 50 * 64, p.k = layer.k.data() + 200 * 64, p.v = layer.v.data() + 200 * 64;
  p.q_start = 150, p.q_tokens = 50, p.tokens = 200, p.q_heads = 2, p.dim = 64;
  const auto error = tq4::attention_errors(p, {{k.data(), v.data(), {}, {}}})[0];
  const auto& head = report.codecs[0].heads[3];
  EXPECT_EQ(head.layer, 4);
  EXPECT_EQ(head.head, 1);
  EXPECT_NEAR(head.quality.kl_mean, error.kl_mean(), 1e-9);
  EXPECT_NEAR(head.quality.output_mse, error.output.relative_mse(), 1e-9);
  EXPECT_NEAR(report.codecs[0].total.k_bits, 3.25, 1e-9);  // 3 bits and 16 of scale over 64
  EXPECT_NEAR(report.codecs[0].total.k_bound, std::pow(4, -3.25), 1e-9);
}

TEST(Report, DoesNotDependOnBatchesOrThreads) {
  MemoryDump dump(1, 2, 2, 300, 300, 32);
  EvalOptions small;
  small.memory_bytes = 1;
  small.threads = 1;
  const Report a = tq4::evaluate(dump, codecs({"tq4", "int4", "fp8"}), small);
  const Report b = tq4::evaluate(dump, codecs({"tq4", "int4", "fp8"}), {});
  for (std::size_t c = 0; c < 3; ++c) {
    for (const tq4::MetricInfo& metric : tq4::metric_infos()) {
      const double x = a.codecs[c].total.*metric.value, y = b.codecs[c].total.*metric.value;
      if (!std::isnan(x) || !std::isnan(y)) {
        EXPECT_EQ(x, y) << metric.name;
      }
    }
  }
  EXPECT_EQ(a.samples.approx_logits, b.samples.approx_logits);
}

TEST(Report, ExactTokensAreSeenExactly) {
  MemoryDump dump(1, 1, 1, 64, 64, 32);
  const Report report = tq4::evaluate(dump, codecs({"tq2+w64", "tq2+w32"}), {});
  EXPECT_LT(report.codecs[0].total.output_mse, 1e-12);  // a window as long as the sequence
  EXPECT_EQ(report.codecs[0].total.k_bits, 16);
  EXPECT_GT(report.codecs[1].total.output_mse, 0);
  EXPECT_LT(report.codecs[1].total.k_bits, 16);
}

TEST(Report, WithoutQueriesSaysWhatIsLeftOut) {
  MemoryDump dump(2, 1, 1, 100, 0, 32);
  const Report report = tq4::evaluate(dump, codecs({"tq4"}), {});
  EXPECT_FALSE(report.has_attention);
  ASSERT_EQ(report.notes.size(), 1u);
  EXPECT_NE(report.notes[0].find("no queries in layer 1, 4"), std::string::npos) << report.notes[0];
  EXPECT_TRUE(std::isnan(report.codecs[0].total.kl_mean));
  EXPECT_NEAR(report.codecs[0].total.v_mse, 0.0088, 0.0008);
  const auto json = nlohmann::json::parse(tq4::to_json(report, nullptr));
  EXPECT_TRUE(json["codecs"][0]["total"]["kl_mean"].is_null());
  EXPECT_TRUE(json["recommendation"].is_null());
  EXPECT_NE(tq4::to_html(report, nullptr, "test").find("no queries"), std::string::npos);
  EXPECT_THROW(tq4::recommend(dump, {}), tq4::Error);
}

TEST(Report, ConstantZeroAndRankDeficientKeys) {
  MemoryDump dump(3, 1, 2, 120, 60, 32);
  std::fill(dump.layer(0).k.begin(), dump.layer(0).k.end(), 0.75f);
  std::fill(dump.layer(1).k.begin(), dump.layer(1).k.end(), 0.0f);
  for (std::size_t t = 0; t < 120; ++t) {
    for (std::size_t i = 0; i < 32; ++i) dump.layer(2).k[t * 32 + i] = static_cast<float>(t % 7) * 0.1f * static_cast<float>(i);  // rank 1
  }
  const Report report = tq4::evaluate(dump, codecs({"tq4", "kivi2", "int4-g32", "q4_0", "kvquant4-1%", "nvfp4", "tq3-prod", "tq2.5"}), {});
  for (const CodecReport& codec : report.codecs) {
    for (const auto& head : codec.heads) {
      for (const tq4::MetricInfo& metric : tq4::metric_infos()) {
        const double value = head.quality.*metric.value;
        EXPECT_FALSE(std::isinf(value)) << codec.name << " layer " << head.layer << " " << metric.name;
      }
      EXPECT_TRUE(std::isfinite(head.quality.kl_mean));
      EXPECT_TRUE(std::isfinite(head.quality.k_mse));
    }
    EXPECT_EQ(codec.heads[1].quality.k_mse, 0) << codec.name << " zero keys";
    EXPECT_EQ(codec.heads[1].quality.kl_max, 0) << codec.name << " zero keys";
  }
  ASSERT_GE(report.notes.size(), 2u);
  EXPECT_NE(report.notes[0].find("keys do not differ"), std::string::npos) << report.notes[0];
  EXPECT_NE(report.notes[1].find("all keys are zero"), std::string::npos) << report.notes[1];
}

TEST(Report, RefusesNonFiniteValuesWithTheirPlace) {
  MemoryDump dump(1, 2, 2, 50, 50, 32);
  dump.layer(0).v[static_cast<std::size_t>((50 + 7) * 32 + 5)] = NAN;
  try {
    tq4::evaluate(dump, codecs({"tq4"}), {});
    FAIL();
  } catch (const tq4::Error& e) {
    EXPECT_EQ(e.code(), tq4::ErrorCode::BadInput);
    EXPECT_NE(std::string(e.what()).find("layer 1 v: NaN at head 1, token 7, coordinate 5"), std::string::npos) << e.what();
  }
}

TEST(Report, CodecsThatDoNotServeTheShapeAreLeftOutByName) {
  MemoryDump dump(1, 1, 1, 50, 50, 80);
  const Report report = tq4::evaluate(dump, codecs({"q4_0", "tq4"}), {});
  ASSERT_EQ(report.codecs.size(), 1u);
  EXPECT_NE(report.notes.at(0).find("q4_0 is left out"), std::string::npos);
  EXPECT_THROW(tq4::evaluate(dump, codecs({"q4_0"}), {}), tq4::Error);
}

TEST(Report, QueriesAreThinnedEvenly) {
  MemoryDump dump(1, 1, 1, 200, 100, 32);
  EvalOptions options;
  options.max_queries = 10;
  EXPECT_EQ(tq4::evaluate(dump, codecs({"tq4"}), options).queries, 10);
}

TEST(Report, ProgressEndsAtOneAndCanStop) {
  MemoryDump dump(2, 2, 2, 100, 100, 32);
  EvalOptions options;
  double last = 0;
  options.progress = [&](double share) {
    EXPECT_GE(share, last - 1e-12);
    last = share;
    return true;
  };
  tq4::evaluate(dump, codecs({"tq4", "fp8"}), options);
  EXPECT_NEAR(last, 1, 1e-9);
  options.progress = [](double) { return false; };
  EXPECT_THROW(tq4::evaluate(dump, codecs({"tq4"}), options), tq4::Error);
}

TEST(Recommend, HoldsTheErrorAtTheLeastBits) {
  MemoryDump dump(2, 2, 4, 256, 64, 64);
  // Layer 4: sharp attention over keys with structure, which needs more bits for K.
  for (float& x : dump.layer(1).q) x *= 6;
  double last_bits = 99;
  for (const double limit : {0.002, 0.02, 0.2}) {
    tq4::RecommendOptions options;
    options.max_error = limit;
    const tq4::Recommendation r = tq4::recommend(dump, options);
    ASSERT_EQ(r.layers.size(), 2u);
    for (std::size_t n = 0; n < 2; ++n) {
      EXPECT_LE(r.layers[n].output_mse, limit);
      for (std::size_t i = 0; i < r.candidates.size(); ++i) {
        if (r.candidates[i].codec.starts_with("vllm")) continue;
        if (r.candidates[i].output_mse[n] <= limit) {
          EXPECT_GE(r.candidates[i].bits[n], r.layers[n].bits - 1e-9) << r.candidates[i].codec;
        }
      }
    }
    EXPECT_LE(r.bits, r.tq4.bits + 1e-9) << "choosing by layer cannot cost more";
    EXPECT_LE(r.tq4.worst_error, limit);
    EXPECT_LE(r.vllm.worst_error, limit);
    EXPECT_LE(r.bits, last_bits);
    last_bits = r.bits;
    EXPECT_EQ(r.tq4.flags.rfind("--codec ", 0), 0u) << r.tq4.flags;
    EXPECT_EQ(r.vllm.flags.rfind("--kv-cache-dtype ", 0), 0u) << r.vllm.flags;
  }
  tq4::RecommendOptions small, whole;
  small.memory_bytes = 1;
  const tq4::Recommendation one_by_one = tq4::recommend(dump, small), at_once = tq4::recommend(dump, whole);
  for (std::size_t i = 0; i < at_once.candidates.size(); ++i) {
    EXPECT_EQ(one_by_one.candidates[i].output_mse, at_once.candidates[i].output_mse) << "batches must not change results";
  }
  tq4::RecommendOptions impossible;
  impossible.max_error = 1e-9;
  const tq4::Recommendation none = tq4::recommend(dump, impossible);
  EXPECT_EQ(none.layers[0].codec, "fp16");
  EXPECT_EQ(none.tq4.flags, "--codec fp16");
  EXPECT_EQ(none.vllm.flags, "--kv-cache-dtype auto");
  EXPECT_EQ(none.bits, 16);
}

TEST(Recommend, LayersThatMissTheLimitAreSkipped) {
  MemoryDump dump(4, 1, 1, 128, 32, 32);
  for (float& x : dump.layer(2).q) x *= 2000;  // layer 7: attention all on one key, chosen by noise
  tq4::RecommendOptions options;
  options.max_error = 0.05;
  const tq4::Recommendation r = tq4::recommend(dump, options);
  EXPECT_EQ(r.tq4.fp16_layers, std::vector<int>{7});
  EXPECT_NE(r.tq4.flags.find("--skip-layers 7"), std::string::npos) << r.tq4.flags;
  EXPECT_NE(r.vllm.flags.find("--kv-cache-dtype-skip-layers 7"), std::string::npos) << r.vllm.flags;
}

TEST(Page, IsSelfContained) {
  MemoryDump dump(2, 2, 4, 200, 50, 64);
  const Report report = tq4::evaluate(dump, codecs({"tq4", "tq3", "fp8", "kivi4", "vllm:4bit_nc"}), {});
  const tq4::Recommendation r = tq4::recommend(dump, {});
  const std::string page = tq4::to_html(report, &r, "tq4 test");
  for (const char* forbidden : {"http:", "https:", "<script", "<link", "@import", "url(", "<img", "random <&"}) {
    EXPECT_EQ(page.find(forbidden), std::string::npos) << forbidden;
  }
  for (const char* needed : {"prefers-color-scheme:dark", "Shannon bound", "Recommendation", "--kv-cache-dtype",
                             "random &lt;&amp;&quot;model&quot;&gt;", "kivi4", "arXiv 2402.02750"}) {
    EXPECT_NE(page.find(needed), std::string::npos) << needed;
  }
  std::size_t open = 0, close = 0;
  for (std::size_t at = 0; (at = page.find("<svg", at)) != std::string::npos; ++at) ++open;
  for (std::size_t at = 0; (at = page.find("</svg>", at)) != std::string::npos; ++at) ++close;
  EXPECT_EQ(open, 10u);
  EXPECT_EQ(open, close);
  EXPECT_EQ(page.find("nan"), std::string::npos);
}

TEST(Metrics, KnownByName) {
  EXPECT_EQ(std::string(tq4::metric_info("kl_mean").name), "kl_mean");
  EXPECT_THROW(tq4::metric_info("kl"), tq4::Error);
}

}  // namespace
