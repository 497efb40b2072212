// What `tq4 profile` does without a GPU: a dump's layer as the profiler takes it, and the page.
#include <gtest/gtest.h>

#include "profile_data.h"
#include "profile_html.h"
#include "tq4/container.h"
#include "tq4/error.h"

namespace tq4::cli {
namespace {

const std::string kDump = TQ4_SOURCE_DIR "/data/lm_a.h5";

TEST(ProfileData, IsTheDumpsLayerWithTokensFirst) {
  LayerData loaded;
  load_layer_data(kDump, 4, "", loaded);
  const LayerInfo& layer = loaded.layer;
  EXPECT_EQ(layer.layer, 4);
  const std::size_t dim = static_cast<std::size_t>(layer.head_dim), heads = static_cast<std::size_t>(layer.num_kv_heads);
  ASSERT_EQ(loaded.data.k.size(), static_cast<std::size_t>(layer.tokens) * heads * dim);
  ASSERT_EQ(loaded.data.q.size(), static_cast<std::size_t>(layer.q_tokens) * static_cast<std::size_t>(layer.num_q_heads) * dim);
  ASSERT_EQ(layer.v_dtype, DType::F16);
  std::vector<std::uint16_t> row(dim);
  const auto dump = open_dump(kDump);
  dump->read(1, Tensor::V, 1, 17, 1, row.data());
  EXPECT_TRUE(std::equal(row.begin(), row.end(), loaded.data.v.begin() + static_cast<std::ptrdiff_t>((17 * heads + 1) * dim)));
  EXPECT_EQ(loaded.data.calibration, nullptr);
  LayerData middle;
  load_layer_data(kDump, -1, "", middle);
  EXPECT_EQ(middle.layer.layer, dump->info().layers[dump->info().layers.size() / 2].layer);
  EXPECT_THROW(load_layer_data(kDump, 99, "", middle), Error);
}

TEST(ProfilePage, ShowsEveryGroupAndEscapesNames) {
  nlohmann::json point{{"codec", "tq4<b>"}, {"layout", "native"},   {"heads", "32/8"},       {"head_dim", 128},   {"block_size", 16},
                       {"q_len", 1},        {"batch", 1},           {"ctx", 1024},           {"seconds", 1.5e-5}, {"bytes", 1e6},
                       {"path", "general"}, {"fp16_seconds", 3e-5}, {"relative_error", 6e-4}};
  nlohmann::json result{{"op", "decode"},
                        {"device", "a & b"},
                        {"ceiling_bytes_per_second", 4e12},
                        {"launch_seconds", 1e-6},
                        {"points", nlohmann::json::array()}};
  for (const int ctx : {4096, 1024, 2048}) {
    point["ctx"] = ctx;
    point["batch"] = 1;
    result["points"].push_back(point);
    point["batch"] = 8;
    result["points"].push_back(point);
  }
  nlohmann::json skipped = point;
  skipped["skipped"] = "needs more <memory>";
  result["points"].push_back(skipped);
  const std::string page = profile_page(result);
  const auto count = [&](const std::string& what) {
    std::size_t n = 0;
    for (std::size_t at = page.find(what); at != std::string::npos; at = page.find(what, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(count("<svg"), 2u);       // a picture a batch
  EXPECT_EQ(count("<polyline"), 4u);  // tq4 and fp16 in each
  EXPECT_EQ(count("<b>"), 0u);
  EXPECT_NE(page.find("a &amp; b"), std::string::npos);
  EXPECT_NE(page.find("needs more &lt;memory&gt;"), std::string::npos);
  EXPECT_NE(page.find(">1k</text>"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos) << "the page needs no network";
  // A single context is a point, not a division by zero.
  result["points"] = nlohmann::json::array({point});
  EXPECT_EQ(profile_page(result).find("nan"), std::string::npos);
}

}  // namespace
}  // namespace tq4::cli
