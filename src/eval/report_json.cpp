// The report as JSON: every number of the page, at full precision. NaN (no queries, no theory) is null.
#include <nlohmann/json.hpp>

#include "tq4/report.h"

namespace tq4 {
namespace {

using nlohmann::json;

json quality_json(const Quality& q) {
  json j = json::object();
  for (const MetricInfo& info : metric_infos()) j[info.name] = q.*info.value;
  return j;
}

json codec_json(const CodecReport& codec) {
  json j{{"codec", codec.name},
         {"description", codec.description},
         {"source", codec.source},
         {"own", codec.own},
         {"calibrated", codec.calibrated},
         {"matrix_bytes", codec.matrix_bytes},
         {"total", quality_json(codec.total)}};
  json& layers = j["layers"] = json::array();
  for (const LayerQuality& layer : codec.layers) {
    layers.push_back(quality_json(layer.quality));
    layers.back()["layer"] = layer.layer;
  }
  json& heads = j["heads"] = json::array();
  for (const HeadQuality& head : codec.heads) {
    heads.push_back(quality_json(head.quality));
    heads.back()["layer"] = head.layer;
    heads.back()["head"] = head.head;
  }
  return j;
}

json uniform_json(const UniformChoice& u) {
  return {{"codec", u.codec}, {"fp16_layers", u.fp16_layers}, {"bits", u.bits}, {"worst_output_mse", u.worst_error}, {"flags", u.flags}};
}

json recommendation_json(const Recommendation& r) {
  json j{
      {"max_error", r.max_error}, {"metric", "output_mse"}, {"bits", r.bits}, {"tq4", uniform_json(r.tq4)}, {"vllm", uniform_json(r.vllm)}};
  json& layers = j["layers"] = json::array();
  for (const LayerChoice& c : r.layers)
    layers.push_back({{"layer", c.layer}, {"codec", c.codec}, {"bits", c.bits}, {"output_mse", c.output_mse}});
  json& candidates = j["candidates"] = json::array();
  for (const auto& c : r.candidates) candidates.push_back({{"codec", c.codec}, {"bits", c.bits}, {"output_mse", c.output_mse}});
  return j;
}

}  // namespace

std::string to_json(const Report& report, const Recommendation* recommendation) {
  json dump{{"path", report.dump.path},     {"format", report.dump.format},     {"model", report.dump.model},
            {"source", report.dump.source}, {"sm_scale", report.dump.sm_scale}, {"causal", report.dump.causal},
            {"queries", report.queries}};
  json& layers = dump["layers"] = json::array();
  for (const LayerInfo& l : report.dump.layers) {
    layers.push_back({{"layer", l.layer},
                      {"kv_heads", l.num_kv_heads},
                      {"q_heads", l.num_q_heads},
                      {"head_dim", l.head_dim},
                      {"tokens", l.tokens},
                      {"q_tokens", l.q_tokens},
                      {"sliding_window", l.sliding_window}});
  }
  json j{{"dump", std::move(dump)}, {"notes", report.notes}, {"seconds", report.seconds}};
  json& codecs = j["codecs"] = json::array();
  for (const CodecReport& codec : report.codecs) codecs.push_back(codec_json(codec));
  j["recommendation"] = recommendation != nullptr ? recommendation_json(*recommendation) : json();
  return j.dump(2);
}

}  // namespace tq4
