// `tq4 eval` as users run it, on the dumps of data/: outputs, gate, exit codes, calibrations.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "cli/process.h"
#include "tq4/compressor.h"
#include "tq4/container.h"
#include "tq4/dump.h"

namespace {

using nlohmann::json;
using tq4::cli_test::read_file;
using tq4::cli_test::Result;
using tq4::cli_test::run_shell;

class EvalProgram : public testing::Test {
 protected:
  std::string path(const std::string& name = "") const { return scratch_.path(name); }
  static Result run(const std::string& arguments) { return run_shell("tq4 eval " + arguments); }
  /// A calibration for the layers of `info` that only centres, with the given model name in its fingerprint.
  std::string centring(const tq4::DumpInfo& info, const std::string& model) const {
    tq4::Calibration c;
    c.spec = tq4::spec_from_name("tq4");
    c.model = model;
    c.tokens = 512;
    for (const tq4::LayerInfo& layer : info.layers) {
      tq4::LayerCalibration tables;
      tables.layer = layer.layer, tables.num_kv_heads = layer.num_kv_heads, tables.head_dim = layer.head_dim;
      tables.k.centre.assign(static_cast<std::size_t>(layer.num_kv_heads * layer.head_dim), 0.1f);
      c.layers.push_back(tables);
    }
    c.fingerprint = tq4::calibration_fingerprint(model, c.layers);
    tq4::write_calibration(path("model.tq4cal"), c, true);
    return path("model.tq4cal");
  }
  tq4::cli_test::Scratch scratch_;
  const std::string lm_ = TQ4_SOURCE_DIR "/data/lm_b.h5";
  const std::string fast_ = " --queries 32 --no-recommend ";
};

TEST_F(EvalProgram, WritesTableJsonCsvAndPage) {
  const Result r = run(lm_ + " --bits 3/4 --queries 64 --json " + path("r.json") + " --csv " + path("r.csv") + " --html " + path("r.html"));
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("tq3"), std::string::npos);
  EXPECT_NE(r.out.find("--kv-cache-dtype"), std::string::npos);
  EXPECT_EQ(r.err, "");
  const json report = json::parse(read_file(path("r.json")));
  EXPECT_EQ(report["verb"], "eval");
  ASSERT_EQ(report["codecs"].size(), 2u);
  EXPECT_EQ(report["codecs"][0]["codec"], "tq3");
  EXPECT_GT(report["codecs"][0]["total"]["output_mse"], report["codecs"][1]["total"]["output_mse"]);
  EXPECT_NEAR(report["codecs"][1]["total"]["k_mse"].get<double>(), 0.0091, 0.0004);
  EXPECT_TRUE(report["recommendation"]["tq4"]["flags"].is_string());
  const std::string csv = read_file(path("r.csv"));
  EXPECT_EQ(csv.rfind("codec,layer,head,bits,", 0), 0u) << csv.substr(0, 80);
  EXPECT_NE(read_file(path("r.html")).find("</html>"), std::string::npos);
  // Refuses to overwrite, before any work.
  const Result again = run(lm_ + " --bits 4 --html " + path("r.html"));
  EXPECT_EQ(again.status, 2);
  EXPECT_NE(again.err.find("--force"), std::string::npos) << again.err;
}

TEST_F(EvalProgram, JsonOnStandardOutputIsAlone) {
  const Result r = run(lm_ + fast_ + "--codec tq4,kivi4 --layers 4 --json -");
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(json::parse(r.out)["codecs"][1]["codec"], "kivi4");
}

TEST_F(EvalProgram, EveryBaselineOnTheEncoder) {
  const Result r = run(std::string(TQ4_SOURCE_DIR) + "/data/minilm_512.h5" + fast_ + "--codec all --layers 5 --heads 0 --json -");
  ASSERT_EQ(r.status, 0) << r.err;
  const json report = json::parse(r.out);
  EXPECT_GT(report["codecs"].size(), 35u);
  EXPECT_EQ(report["dump"]["causal"], false);
  for (const json& codec : report["codecs"]) EXPECT_TRUE(codec["total"]["kl_mean"].is_number()) << codec["codec"];
}

TEST_F(EvalProgram, PerplexityIsMeasuredOfEveryCodec) {
  std::set<std::string> measured;
  for (const json& row : json::parse(read_file(TQ4_SOURCE_DIR "/experiments/perplexity/results.json"))) measured.insert(row["codec_name"]);
  for (const std::string& name : tq4::codec_names()) {
    const std::string rest = name.size() > 3 ? name.substr(3) : "";
    const bool both =
        name.starts_with("tq") && name.size() > 2 && name[2] >= '0' && name[2] <= '9' && (rest.empty() || rest == "-norm" || rest == "-2d");
    const std::string sides = both ? std::string("k") + name[2] + 'v' + name[2] + rest : name;  // there tq4 is called k4v4
    EXPECT_TRUE(measured.contains(sides)) << name;
  }
}

TEST_F(EvalProgram, GateFailsWithFour) {
  EXPECT_EQ(run(lm_ + fast_ + "--bits 4 --layers 4 --fail-above kl_mean=1 --fail-above k_mse=0.02").status, 0);
  const Result r = run(lm_ + fast_ + "--bits 4 --layers 4 --fail-above k_mse=0.001");
  EXPECT_EQ(r.status, 4);
  EXPECT_NE(r.err.find("k_mse of tq4 is 0.00"), std::string::npos) << r.err;
  EXPECT_NE(r.out.find("tq4"), std::string::npos) << "the table is printed all the same";
}

TEST_F(EvalProgram, UsageErrorsExitWithTwo) {
  for (const char* arguments :
       {"--codec tq9", "--codec kivi4-g128-r100", "--fail-above kl=1", "--layers 40", "--heads 7", "--queries x", "--max-error 0"}) {
    const Result r = run(lm_ + " --queries 32 --bits 4 " + arguments);
    EXPECT_EQ(r.status, 2) << arguments << ": " << r.err;
    EXPECT_FALSE(r.err.empty()) << arguments;
  }
  EXPECT_EQ(run(path("missing.h5")).status, 3);
}

TEST_F(EvalProgram, CalibrationOfTheModelIsShownBesideThePlainCodec) {
  const auto dump = tq4::open_dump(lm_);
  const Result r = run(lm_ + fast_ + "--bits 4 --json - --calibration " + centring(dump->info(), dump->info().model));
  ASSERT_EQ(r.status, 0) << r.err;
  const json report = json::parse(r.out);
  ASSERT_EQ(report["codecs"].size(), 2u);
  EXPECT_EQ(report["codecs"][1]["codec"], "tq4+cal");
  EXPECT_EQ(report["codecs"][1]["calibrated"], true);
  EXPECT_GT(report["codecs"][1]["total"]["k_bits"], report["codecs"][0]["total"]["k_bits"]) << "centres are counted";
}

TEST_F(EvalProgram, CalibrationOfAnotherModelIsRefused) {
  const auto dump = tq4::open_dump(lm_);
  const Result r = run(lm_ + fast_ + "--bits 4 --calibration " + centring(dump->info(), "another model"));
  EXPECT_EQ(r.status, 3);
  EXPECT_NE(r.err.find("fingerprints differ"), std::string::npos) << r.err;
}

TEST_F(EvalProgram, DumpWithoutQueries) {
  const auto source = tq4::open_dump(lm_);
  tq4::DumpInfo info = source->info();
  info.layers.resize(1);
  tq4::LayerInfo& layer = info.layers[0];
  layer.q_tokens = 0, layer.num_q_heads = 0, layer.tokens = 64;
  auto writer = tq4::create_dump(path("noq.h5"), info, tq4::DType::F16, true);
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(64 * layer.head_dim));
  for (const tq4::Tensor tensor : {tq4::Tensor::K, tq4::Tensor::V}) {
    for (int head = 0; head < layer.num_kv_heads; ++head) {
      source->read(0, tensor, head, 0, 64, rows.data());
      writer->write(0, tensor, head, 0, 64, rows.data());
    }
  }
  writer->commit();
  const Result r = run(path("noq.h5") + " --bits 4");
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("no queries in layer"), std::string::npos) << r.err;
  EXPECT_NE(r.out.find("K error"), std::string::npos);
  EXPECT_EQ(r.out.find("KL"), std::string::npos);
  const Result gate = run(path("noq.h5") + " --bits 4 -q --fail-above kl_mean=1");
  EXPECT_EQ(gate.status, 4);
  EXPECT_NE(gate.err.find("could not be measured"), std::string::npos) << gate.err;
}

}  // namespace
