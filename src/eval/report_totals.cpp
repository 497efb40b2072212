// How heads add up: relative errors and sizes are means over heads (each head counts alike, whatever its energy); logit errors, KL and
// shares are over all queries together.
#include "eval/report_totals.h"

#include <cmath>
#include <map>
#include <string>

#include "tq4/error.h"

namespace tq4 {

const std::vector<MetricInfo>& metric_infos() {
  static const std::vector<MetricInfo> infos{
      {"bits", "bits", "effective bits a value, K and V together: codes, scales, zeros, centres, outliers, tokens kept in fp16",
       &Quality::bits},
      {"k_bits", "K bits", "effective bits a value of K", &Quality::k_bits},
      {"v_bits", "V bits", "effective bits a value of V", &Quality::v_bits},
      {"k_mse", "K error", "relative squared error of K", &Quality::k_mse},
      {"v_mse", "V error", "relative squared error of V", &Quality::v_mse},
      {"k_theory", "K theory", "relative squared error on random vectors by the codec's theory", &Quality::k_theory},
      {"v_theory", "V theory", "the same for V", &Quality::v_theory},
      {"k_bound", "K bound", "Shannon bound 4^-bits at the effective bits of K's compressed tokens", &Quality::k_bound},
      {"v_bound", "V bound", "Shannon bound 4^-bits at the effective bits of V's compressed tokens", &Quality::v_bound},
      {"k_cosine", "K cos", "mean cosine of K and its reconstruction", &Quality::k_cosine},
      {"v_cosine", "V cos", "mean cosine of V and its reconstruction", &Quality::v_cosine},
      {"logit_rmse", "logit rmse", "root mean squared error of the attention logits, nats", &Quality::logit_rmse},
      {"logit_rmse_centred", "logit rmse*", "the same less each query's mean error, which the softmax does not see",
       &Quality::logit_rmse_centred},
      {"logit_max", "logit max", "largest error of a logit, nats", &Quality::logit_max},
      {"logit_mse", "logit error", "centred squared error over the variance of the logits", &Quality::logit_mse},
      {"kl_mean", "KL mean", "mean KL divergence of the softmax from the exact one, nats", &Quality::kl_mean},
      {"kl_median", "KL median", "its median over queries", &Quality::kl_median},
      {"kl_p99", "KL 99%", "its 99th percentile", &Quality::kl_p99},
      {"kl_max", "KL max", "its maximum", &Quality::kl_max},
      {"top1", "same top-1", "share of queries whose strongest key stays the strongest", &Quality::top1},
      {"top8", "same top-8", "share of the 8 strongest keys that stay among the 8 strongest", &Quality::top8},
      {"output_mse", "output error", "relative squared error of the attention output", &Quality::output_mse},
      {"output_error", "output rms", "its square root", &Quality::output_error},
      {"output_cosine", "output cos", "mean cosine of the attention output", &Quality::output_cosine},
  };
  return infos;
}

const MetricInfo& metric_info(std::string_view name) {
  std::string known;
  for (const MetricInfo& info : metric_infos()) {
    if (name == info.name) return info;
    known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  throw Error(ErrorCode::Usage, "unknown metric \"" + std::string(name) + "\" (known: " + known + ")");
}

namespace eval {
namespace {

void fill_attention(Quality& q, const AttentionError& a) {
  if (a.queries == 0) return;
  q.logit_rmse = a.logit_rmse();
  q.logit_rmse_centred = a.logit_rmse_centred();
  q.logit_max = a.logit_max;
  q.kl_mean = a.kl_mean();
  q.kl_median = a.kl_quantile(0.5);
  q.kl_p99 = a.kl_quantile(0.99);
  q.kl_max = a.kl_max();
  q.top1 = a.top1_share();
  q.top8 = a.top8_share();
  q.output_cosine = a.output.cosine();
}

/// Mean of a member over heads that have it; NaN when none has.
void mean(const std::vector<const HeadQuality*>& heads, double Quality::*member, Quality& to) {
  double sum = 0;
  int count = 0;
  for (const HeadQuality* head : heads) {
    const double value = head->quality.*member;
    if (std::isnan(value)) continue;
    sum += value;
    ++count;
  }
  to.*member = count > 0 ? sum / count : Quality::kNone;
}

Quality combine(const std::vector<const HeadQuality*>& heads) {
  Quality q;
  for (double Quality::*member : {&Quality::k_bits, &Quality::v_bits, &Quality::bits, &Quality::k_mse, &Quality::v_mse, &Quality::k_theory,
                                  &Quality::v_theory, &Quality::k_bound, &Quality::v_bound, &Quality::logit_mse, &Quality::output_mse}) {
    mean(heads, member, q);
  }
  VectorError k, v;
  AttentionError attention;
  for (const HeadQuality* head : heads) {
    k.add(head->k);
    v.add(head->v);
    attention.add(head->attention);
  }
  q.k_cosine = k.cosine();
  q.v_cosine = v.cosine();
  fill_attention(q, attention);
  q.output_error = std::sqrt(q.output_mse);
  return q;
}

}  // namespace

void fill_quality(HeadQuality& head) {
  Quality& q = head.quality;
  q.k_mse = head.k.relative_mse();
  q.v_mse = head.v.relative_mse();
  q.k_cosine = head.k.cosine();
  q.v_cosine = head.v.cosine();
  fill_attention(q, head.attention);
  if (head.attention.queries > 0) {
    q.logit_mse = head.attention.logit_relative_mse();
    q.output_mse = head.attention.output.relative_mse();
    q.output_error = std::sqrt(q.output_mse);
  }
}

void fill_totals(CodecReport& codec) {
  std::map<int, std::vector<const HeadQuality*>> by_layer;
  std::vector<const HeadQuality*> all;
  for (const HeadQuality& head : codec.heads) {
    by_layer[head.layer].push_back(&head);
    all.push_back(&head);
    codec.matrix_bytes += head.matrix_bits / 8;
  }
  for (const auto& [layer, heads] : by_layer) codec.layers.push_back({layer, combine(heads)});
  codec.total = combine(all);
}

void note_odd_layers(Report& report) {
  for (const HeadQuality& head : report.codecs.front().heads) {
    const std::string where = "layer " + std::to_string(head.layer) + " head " + std::to_string(head.head);
    if (head.k.vectors > 0 && head.k.energy == 0) report.notes.push_back(where + ": all keys are zero, its attention is uniform");
    if (head.v.vectors > 0 && head.v.energy == 0) report.notes.push_back(where + ": all values are zero");
    const AttentionError& a = head.attention;
    if (a.queries > 1 && head.k.energy > 0 && a.logit_energy <= 1e-10 * static_cast<double>(a.logits)) {
      report.notes.push_back(
          where + ": keys do not differ (all logits of a query are equal): top-1, top-8 and relative logit errors mean nothing there");
    }
  }
}

}  // namespace eval
}  // namespace tq4
