// `tq4 calibrate` as users run it, and what it and `tq4 eval` do with input that is not what they hoped for: no queries, few tokens, constant and
// rank-deficient keys, another model, another shape. Dumps are cut from data/lm_a.h5 and lm_b.h5, two texts of one model.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/process.h"
#include "tq4/codebook.h"
#include "tq4/container.h"
#include "tq4/dump.h"

namespace {

using nlohmann::json;
using tq4::Tensor;
using tq4::cli_test::Result;
using tq4::cli_test::run_shell;

/// What to leave out of, or change in, a copy of a dump.
struct Cut {
  std::int64_t tokens = 256;
  bool queries = true;
  std::string model = "the model";
  int heads = 2;
  std::function<void(Tensor, int head, std::vector<float>& rows, int dim)> edit;
};

class CalibrateProgram : public testing::Test {
 protected:
  std::string path(const std::string& name = "") const { return scratch_.path(name); }
  static Result run(const std::string& arguments) { return run_shell("tq4 " + arguments); }

  /// The second layer of data/`source`, cut; queries are the last 64 positions of it.
  std::string dump(const std::string& name, const std::string& source, const Cut& cut) const {
    const auto from = tq4::open_dump(std::string(TQ4_SOURCE_DIR) + "/data/" + source);
    constexpr std::size_t kLayer = 1;
    tq4::DumpInfo info = from->info();
    const std::int64_t all_q = info.layers[kLayer].q_tokens;
    info.layers = {info.layers[kLayer]};
    info.model = cut.model;
    info.attributes.clear();
    tq4::LayerInfo& layer = info.layers[0];
    layer.num_kv_heads = cut.heads;
    layer.num_q_heads = cut.queries ? 2 * cut.heads : 0;
    layer.tokens = cut.tokens;
    layer.q_tokens = cut.queries ? std::min<std::int64_t>(64, cut.tokens) : 0;
    layer.q_start = layer.tokens - layer.q_tokens;
    layer.has_o_gram = false;
    auto writer = tq4::create_dump(path(name), info, tq4::DType::F32, true);
    for (const Tensor tensor : {Tensor::K, Tensor::V, Tensor::Q}) {
      const bool q = tensor == Tensor::Q;
      const std::int64_t count = q ? layer.q_tokens : layer.tokens;
      if (count == 0) continue;
      for (int head = 0; head < (q ? layer.num_q_heads : layer.num_kv_heads); ++head) {
        const auto size = static_cast<std::size_t>(count * layer.head_dim);
        std::vector<std::uint16_t> halves(size);
        from->read(kLayer, tensor, head, q ? all_q - count : 0, count, halves.data());
        std::vector<float> rows(size);
        tq4::to_float(halves.data(), tq4::DType::F16, size, rows.data());
        if (cut.edit) cut.edit(tensor, head, rows, layer.head_dim);
        writer->write(0, tensor, head, 0, count, rows.data());
      }
    }
    writer->commit();
    return path(name);
  }
  /// Metric of the plain codec and of the calibrated one on a dump.
  std::pair<double, double> plain_and_calibrated(const std::string& test, const std::string& calibration, const char* metric) const {
    const Result r = run("eval " + test + " --codec tq4-2d --no-recommend -q --json - --calibration " + calibration);
    EXPECT_EQ(r.status, 0) << r.err;
    if (r.status != 0) return {0, 0};
    const json codecs = json::parse(r.out)["codecs"];
    EXPECT_EQ(codecs.size(), 2u);
    return {codecs[0]["total"][metric].get<double>(), codecs[1]["total"][metric].get<double>()};
  }
  tq4::cli_test::Scratch scratch_;
};

TEST_F(CalibrateProgram, HalvesTheErrorOnAnotherText) {
  const std::string data = std::string(TQ4_SOURCE_DIR) + "/data/";
  ASSERT_EQ(run("calibrate " + data + "lm_a.h5 -q -o " + path("m.tq4cal")).status, 0);
  const Result r = run("eval " + data + "lm_b.h5 --codec k4v4-norm,tq4-2d --no-recommend -q --json - --calibration " + path("m.tq4cal"));
  ASSERT_EQ(r.status, 0) << r.err;
  const json codecs = json::parse(r.out)["codecs"];
  ASSERT_EQ(codecs.size(), 4u);
  const json &plain = codecs[0]["total"], &calibrated = codecs[3]["total"];
  EXPECT_LT(calibrated["output_mse"].get<double>(), 0.5 * plain["output_mse"].get<double>());
  EXPECT_LT(calibrated["kl_mean"].get<double>(), 0.25 * plain["kl_mean"].get<double>());
}

TEST_F(CalibrateProgram, PairTablesFitTheLayer) {
  Cut longer;
  longer.tokens = 1024;
  const std::string learn = dump("a.h5", "lm_a.h5", longer), test = dump("b.h5", "lm_b.h5", longer);
  const std::vector<float> gaussian = tq4::gaussian_pair_table(3, 128).points;
  const auto error = [&](const std::string& calibration, const char* metric) {
    const Result r = run("eval " + test + " --codec tq3-2d --no-recommend -q --json - --calibration " + path(calibration));
    EXPECT_EQ(r.status, 0) << r.err;
    return json::parse(r.out)["codecs"][1]["total"][metric].get<double>();
  };
  for (const std::string options : {"layer", "attention --rope"}) {
    ASSERT_EQ(run("calibrate " + learn + " --codec k3v3-2d -q --force -o " + path("m.tq4cal") + " --pairs " + options).status, 0);
    const tq4::Calibration fitted = tq4::read_calibration(path("m.tq4cal"));
    for (const std::vector<float>& points : {fitted.layers[0].k.pair_points, fitted.layers[0].v.pair_points}) {
      ASSERT_EQ(points.size(), gaussian.size());
      double moved = 0, all = 0;
      for (std::size_t i = 0; i < points.size(); ++i) {
        moved += (points[i] - gaussian[i]) * (points[i] - gaussian[i]);
        all += gaussian[i] * gaussian[i];
      }
      EXPECT_GT(moved, 1e-4 * all) << options;
      EXPECT_LT(moved, 0.3 * all) << options << ": the encoder's inputs are nearly normal";
    }
  }
  // Fitted and used on one text it can only gain.
  ASSERT_EQ(run("calibrate " + test + " --codec k3v3-2d -q -o " + path("own.tq4cal")).status, 0);
  ASSERT_EQ(run("calibrate " + test + " --codec k3v3-2d -q -o " + path("own_fit.tq4cal") + " --pairs layer").status, 0);
  EXPECT_LT(error("own_fit.tq4cal", "v_mse"), 0.995 * error("own.tq4cal", "v_mse"));
  EXPECT_EQ(run("calibrate " + learn + " --pairs head -o " + path("no.tq4cal")).status, 2);
}

TEST_F(CalibrateProgram, OutputShareTradesWoForTheOutput) {
  const std::string data = std::string(TQ4_SOURCE_DIR) + "/data/";
  double error[2] = {};
  for (const int share : {0, 1}) {
    const std::string file = path("m" + std::to_string(share) + ".tq4cal");
    ASSERT_EQ(
        run("calibrate " + data + "lm_a.h5 -q --method none --v-method transform -o " + file + " --output-share " + std::to_string(share))
            .status,
        0);
    const Result r = run("eval " + data + "lm_b.h5 --codec tq4-2d --no-recommend -q --queries 64 --json - --calibration " + file);
    ASSERT_EQ(r.status, 0) << r.err;
    error[share] = json::parse(r.out)["codecs"][1]["total"]["v_mse"].get<double>();
  }
  EXPECT_LT(error[1], 0.97 * error[0]);
  EXPECT_EQ(run("calibrate " + data + "lm_a.h5 --output-share 1.5 -o " + path("no.tq4cal")).status, 2);
}

TEST_F(CalibrateProgram, RecommendedFlagsWork) {
  const std::string learn = dump("a.h5", "lm_a.h5", {}), test = dump("b.h5", "lm_b.h5", {}), in_folder = "cd " + path() + " && ";
  ASSERT_EQ(run("calibrate " + learn + " -q -o " + path("m.tq4cal")).status, 0);
  bool as_made = false, anew = false;
  double limit = 0.1;  // then what 4 bits just hold
  for (int round = 0; round < 2; ++round) {
    const Result r = run("eval " + test + " --bits 4 --json - --max-error " + std::to_string(limit) + " --calibration " + path("m.tq4cal"));
    ASSERT_EQ(r.status, 0) << r.err;
    const json recommendation = json::parse(r.out)["recommendation"], choice = recommendation["tq4"];
    const std::string flags = choice["flags"], codec = choice["codec"];
    EXPECT_NE(codec.find("-2d"), std::string::npos) << "the calibration's codebook: " << codec;
    for (const json& c : recommendation["candidates"]) {
      if (c["codec"] == "k4v4-2d") limit = c["output_mse"][0].get<double>() + 1e-6;
    }
    const bool other = flags.find("m.tq4cal") == std::string::npos;
    (other ? anew : as_made) = true;
    EXPECT_EQ(other, r.err.find("tq4 calibrate DUMPS --codec " + codec + " -o " + codec + ".tq4cal") != std::string::npos) << r.err;
    if (other) {
      ASSERT_EQ(run("calibrate " + learn + " -q --force --codec " + codec + " -o " + path(codec + ".tq4cal")).status, 0);
    }
    const std::string command = in_folder + "tq4 compress " + test + " " + flags + " -q --force -o x.tq4";
    EXPECT_EQ(run_shell(command).status, 0) << command;
  }
  EXPECT_TRUE(as_made && anew) << "both cases are met";
}

TEST_F(CalibrateProgram, StepsCanBeTakenApart) {
  const std::string learn = dump("a.h5", "lm_a.h5", {});
  const Result r = run("calibrate " + learn + " --method none --k-method centre --json - -q -o " + path("k.tq4cal"));
  ASSERT_EQ(r.status, 0) << r.err;
  const json result = json::parse(r.out);
  EXPECT_EQ(result["k_method"], "centre");
  EXPECT_EQ(result["v_method"], "none");
  ASSERT_EQ(result["heads"].size(), 2u);
  const tq4::Calibration k = tq4::read_calibration(path("k.tq4cal"));
  EXPECT_FALSE(k.layers[0].k.centre.empty());
  EXPECT_TRUE(k.layers[0].k.forward.empty() && k.layers[0].v.centre.empty() && k.layers[0].v.forward.empty());
  const std::string test = dump("b.h5", "lm_b.h5", {});
  const auto [plain_k, centred_k] = plain_and_calibrated(test, path("k.tq4cal"), "k_mse");
  EXPECT_LT(centred_k, 0.8 * plain_k);
  const auto [plain_v, same_v] = plain_and_calibrated(test, path("k.tq4cal"), "v_mse");
  EXPECT_EQ(plain_v, same_v);

  ASSERT_EQ(run("calibrate " + learn + " --no-centre -q -o " + path("z.tq4cal")).status, 0);
  EXPECT_TRUE(tq4::read_calibration(path("z.tq4cal")).layers[0].k.centre.empty());
  for (const char* arguments : {"--rope --no-centre", "--rope --k-method none", "--method none", "--codec fp8", "--k-method middle"}) {
    const Result refused = run("calibrate " + learn + " " + arguments + " -o " + path("no.tq4cal"));
    EXPECT_EQ(refused.status, 2) << arguments << ": " << refused.err;
    EXPECT_FALSE(refused.err.empty()) << arguments;
    EXPECT_FALSE(std::filesystem::exists(path("no.tq4cal"))) << arguments;
  }
}

TEST_F(CalibrateProgram, DumpWithoutQueriesSaysWhatItMeansAndStillHelps) {
  Cut cut;
  cut.queries = false;
  cut.tokens = 768;
  const Result r = run("calibrate " + dump("noq.h5", "lm_a.h5", cut) + " -o " + path("m.tq4cal"));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("all layers and heads: no queries: key errors count equally in all directions"), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("all layers and heads: no o_gram"), std::string::npos) << r.err;
  const auto [plain, calibrated] = plain_and_calibrated(dump("b.h5", "lm_b.h5", {}), path("m.tq4cal"), "kl_mean");
  EXPECT_LT(calibrated, 0.6 * plain);
}

TEST_F(CalibrateProgram, FewTokensWarnAndDoNoHarm) {
  Cut cut;
  cut.tokens = 40;
  const Result r = run("calibrate " + dump("few.h5", "lm_a.h5", cut) + " -o " + path("m.tq4cal"));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("40 tokens are few for head_dim 128; covariances are shrunk by 160%"), std::string::npos) << r.err;
  const std::string test = dump("b.h5", "lm_b.h5", {});
  const auto [plain, calibrated] = plain_and_calibrated(test, path("m.tq4cal"), "kl_mean");
  EXPECT_LT(calibrated, plain);
  cut.tokens = 1;
  ASSERT_EQ(run("calibrate " + dump("one.h5", "lm_a.h5", cut) + " -q -o " + path("one.tq4cal")).status, 0);
  const auto [plain1, calibrated1] = plain_and_calibrated(test, path("one.tq4cal"), "output_mse");
  EXPECT_LT(calibrated1, 2 * plain1) << "even one token leaves a working codec";
}

TEST_F(CalibrateProgram, ConstantAndRankDeficientKeys) {
  Cut cut;
  cut.edit = [](Tensor tensor, int head, std::vector<float>& rows, int dim) {
    if (tensor != Tensor::K) return;
    const std::vector<float> first(rows.begin(), rows.begin() + dim);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto token = static_cast<int>(i) / dim;
      const float along = head == 0 ? 1.0f : 0.05f * static_cast<float>(token % 17 - 8);  // head 0 constant, head 1 of rank one
      rows[i] = along * first[i % static_cast<std::size_t>(dim)];
    }
  };
  const std::string odd = dump("odd.h5", "lm_a.h5", cut), usual = dump("b.h5", "lm_b.h5", {});
  const Result r = run("calibrate " + odd + " -o " + path("m.tq4cal"));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("layer 4 head 0: keys are constant: only their mean is kept"), std::string::npos) << r.err;
  const auto [plain, calibrated] = plain_and_calibrated(odd, path("m.tq4cal"), "output_mse");
  EXPECT_LT(calibrated, plain);
  const auto [plain_kl, calibrated_kl] = plain_and_calibrated(usual, path("m.tq4cal"), "kl_mean");
  EXPECT_LT(calibrated_kl, 10 * plain_kl) << "tables learned from such keys work on keys that are not";
  ASSERT_EQ(run("compress " + odd + " --calibration " + path("m.tq4cal") + " -q -o " + path("odd.tq4")).status, 0);
  EXPECT_EQ(run("decompress --test " + path("odd.tq4")).status, 0);
}

TEST_F(CalibrateProgram, AnotherModelOrShapeIsRefused) {
  const std::string mine = dump("mine.h5", "lm_a.h5", {});
  ASSERT_EQ(run("calibrate " + mine + " -q -o " + path("m.tq4cal")).status, 0);
  Cut other, narrow;
  other.model = "another";
  narrow.heads = 1;
  const std::string another = dump("other.h5", "lm_b.h5", other), one_head = dump("narrow.h5", "lm_b.h5", narrow);
  for (const char* verb : {"eval", "compress"}) {
    const std::string end = " --calibration " + path("m.tq4cal") + (std::string(verb) == "compress" ? " -o " + path("x.tq4") : "");
    const Result model = run(verb + (" " + another) + end), shape = run(verb + (" " + one_head) + end);
    EXPECT_EQ(model.status, 3) << model.err;
    EXPECT_NE(model.err.find("fingerprints differ"), std::string::npos) << model.err;
    EXPECT_EQ(shape.status, 3) << shape.err;
    EXPECT_NE(shape.err.find("has 1 kv heads of 128, the calibration 2 of 128"), std::string::npos) << shape.err;
  }
  const Result mixed = run("calibrate " + mine + " " + another + " -o " + path("y.tq4cal"));
  EXPECT_EQ(mixed.status, 3);
  EXPECT_NE(mixed.err.find("another model or shape"), std::string::npos) << mixed.err;
}

}  // namespace
