// The profile as one HTML page that needs no network and no script: time against context length, then the table's numbers.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace tq4::cli {

/// `result`: the verb's JSON ("points" with codec, layout, heads, batch, q_len, ctx, seconds, fp16_seconds, fp8_seconds, ...).
std::string profile_page(const nlohmann::json& result);

}  // namespace tq4::cli
