// One head of a dump as fp32 arrays: what the report and the recommendation measure on.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tq4/dump.h"
#include "tq4/metrics.h"

namespace tq4::eval {

struct HeadData {
  std::vector<float> k, v;  ///< [tokens, dim]
  std::vector<float> q;     ///< [q_heads, q_positions.size(), dim]
  std::vector<std::int64_t> q_positions;
  int q_heads = 0;
};
/// `max_queries` evenly spaced queries a head, the last one included; 0 = all. Throws BadInput on NaN and infinity.
HeadData load_head(Dump& dump, std::size_t layer_index, int head, std::int64_t max_queries);
/// The problem of a head; `data` must outlive it.
AttentionProblem attention_problem(const DumpInfo& info, const LayerInfo& layer, const HeadData& data);
bool has_queries(const LayerInfo& layer);

/// Indices into info.layers of the layers asked for that have tokens.
std::vector<std::size_t> selected_layers(const DumpInfo& info, const std::optional<std::vector<int>>& layers);

}  // namespace tq4::eval
