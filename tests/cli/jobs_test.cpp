// The main jobs through the program: compress, inspect, decompress, compare, convert at every codec the README names, with the numbers they
// print, and that neither threads nor pipes change a byte.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "process.h"

namespace tq4::cli_test {
namespace {

const std::string kDump = TQ4_SOURCE_DIR "/data/minilm_512.h5";

nlohmann::json json_of(const Result& result) {
  EXPECT_EQ(result.status, 0) << result.err;
  return nlohmann::json::parse(result.out, nullptr, false);
}

class Jobs : public testing::TestWithParam<std::vector<std::string>> {};

TEST_P(Jobs, ThereAndBackWithTheErrorThatWasPrinted) {
  const Scratch scratch;
  std::vector<std::string> arguments{"compress", kDump, "-o", scratch.path("a.tq4"), "--json", "-"};
  arguments.insert(arguments.end(), GetParam().begin(), GetParam().end());
  const nlohmann::json compressed = json_of(run_program(arguments)).at("outputs").at(0);
  EXPECT_EQ(compressed.at("file_bytes").get<std::uint64_t>(), std::filesystem::file_size(scratch.path("a.tq4")));
  const nlohmann::json inspected = json_of(run_program({"inspect", scratch.path("a.tq4"), "--verify", "--json", "-"}));
  EXPECT_EQ(inspected.at("spec"), compressed.at("spec"));
  EXPECT_EQ(inspected.at("bits_per_value"), compressed.at("bits_per_value"));

  const Result decompressed = run_program({"decompress", scratch.path("a.tq4"), "-o", scratch.path("back.h5"), "--dtype", "float32"});
  ASSERT_EQ(decompressed.status, 0) << decompressed.err;
  const nlohmann::json compared = json_of(run_program({"compare", kDump, scratch.path("back.h5"), "--json", "-"}));
  for (const char* side : {"k", "v"}) {
    const double printed = compressed.at(side).at("relative_squared_error"), found = compared.at(side).at("relative_squared_error");
    EXPECT_NEAR(found, printed, 1e-6 * printed + 1e-12) << side;
    for (const nlohmann::json& layer : compressed.at("layers")) {
      if (layer.at(side).at("theory").is_null()) continue;
      // Real vectors under one rotation. The least-squares scale gains on the theory where d is small (32 here), and never loses.
      const double ratio = layer.at(side).at("relative_squared_error").get<double>() / layer.at(side).at("theory").get<double>();
      EXPECT_LT(ratio, 1.05) << side << layer;
      EXPECT_GT(ratio, 0.8) << side << layer;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, Jobs,
                         testing::Values(std::vector<std::string>{"--bits", "2"}, std::vector<std::string>{"--bits", "2.5"},
                                         std::vector<std::string>{"--bits", "3"}, std::vector<std::string>{"--bits", "3.5"},
                                         std::vector<std::string>{"--bits", "4"},
                                         std::vector<std::string>{"--k-bits", "4", "--v-bits", "3"},
                                         std::vector<std::string>{"--codec", "k8v4"}, std::vector<std::string>{"--codec", "fp8"},
                                         std::vector<std::string>{"--codec", "fp16"},
                                         std::vector<std::string>{"--bits", "4", "--rotation", "hadamard-signed", "--seed", "7"},
                                         std::vector<std::string>{"--codec", "turboquant-vllm"}),
                         [](const auto& codec) {
                           std::string name;
                           for (const std::string& word : codec.param) {
                             for (const char c : word) name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           }
                           return name;
                         });

TEST(Program, BytesDoNotDependOnThreads) {
  const Scratch scratch;
  for (const char* threads : {"1", "3"})
    ASSERT_EQ(
        run_program({"compress", kDump, "--bits", "3", "--sinks", "4", "--window", "64", "--threads", threads, "-o", scratch.path(threads)})
            .status,
        0);
  EXPECT_EQ(read_file(scratch.path("1")), read_file(scratch.path("3")));
}

TEST(Program, SinksWindowAndSkippedLayersAreExact) {
  const Scratch scratch;
  const std::string out = scratch.path("a.tq4");
  const Result result = run_program({"compress", kDump, "--bits", "2", "--sinks", "4", "--window", "508", "--skip-layers", "5", "-o", out});
  ASSERT_EQ(result.status, 0) << result.err;
  // 4 + 508 tokens are all of the 512: every layer is stored in fp16 and comes back as it was.
  EXPECT_NE(result.out.find("--skip-layers"), std::string::npos) << result.out;
  EXPECT_EQ(run_program({"compare", kDump, out, "--max-error", "0"}).status, 0);
}

TEST(Program, SeveralBitsGiveSeveralContainers) {
  const Scratch scratch;
  const std::string dump = scratch.path("d.h5");
  std::filesystem::copy_file(kDump, dump);
  ASSERT_EQ(run_program({"compress", dump, "--bits", "3/4"}).status, 0);
  EXPECT_EQ(scratch.names(), (std::vector<std::string>{"d.h5", "d.tq3.tq4", "d.tq4.tq4"}));
  const Result refused = run_program({"compress", dump, "--bits", "3/4", "-o", scratch.path("one.tq4")});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("2 codecs give 2 files"), std::string::npos) << refused.err;
}

TEST(Program, PipesCarryContainers) {
  const Scratch scratch;
  const Result piped = run_shell("tq4 compress '" + kDump + "' -o - -q | tq4 decompress - --test");
  EXPECT_EQ(piped.status, 0) << piped.err;
  EXPECT_NE(piped.out.find("OK: every checksum holds"), std::string::npos) << piped.out;
  ASSERT_EQ(run_program({"compress", kDump, "-o", scratch.path("a.tq4")}).status, 0);
  ASSERT_EQ(run_shell("tq4 compress '" + kDump + "' -o - -q > " + scratch.path("b.tq4")).status, 0);
  EXPECT_EQ(read_file(scratch.path("a.tq4")), read_file(scratch.path("b.tq4")));
  const Result seeks = run_shell("tq4 compress - < '" + kDump + "'");
  EXPECT_EQ(seeks.status, 2);
  EXPECT_NE(seeks.err.find("need to seek"), std::string::npos) << seeks.err;
}

TEST(Program, ConvertsBetweenContainerAndEveryLayout) {
  struct Case {
    std::string dump, codec;
    std::vector<std::string> layout;
  };
  const std::string wide = TQ4_SOURCE_DIR "/data/lm_a.h5";  // head_dim 128: 3-bit values fit native pages
  const std::vector<Case> cases{{wide, "k4v3", {"--layout", "native"}},
                                {kDump, "k3v4", {"--layout", "native", "--block-size", "64"}},
                                {kDump, "turboquant-vllm", {"--layout", "turboquant-vllm"}},
                                {kDump, "turboquant-vllm", {"--layout", "turboquant-vllm", "--padded", "--block-size", "32"}},
                                {kDump, "vllm:4bit_nc", {"--layout", "vllm"}},
                                {kDump, "vllm:k8v4", {"--layout", "vllm", "--heads-outer"}}};
  for (const Case& c : cases) {
    const Scratch scratch;
    const std::string container = scratch.path("a.tq4"), pages = scratch.path("pages.h5"), back = scratch.path("back.tq4");
    ASSERT_EQ(run_program({"compress", c.dump, "--codec", c.codec, "-o", container}).status, 0);
    std::vector<std::string> arguments{"convert", container, "-o", pages};
    arguments.insert(arguments.end(), c.layout.begin(), c.layout.end());
    const Result there = run_program(arguments);
    ASSERT_EQ(there.status, 0) << c.codec << there.err;
    ASSERT_EQ(run_program({"convert", pages, "-o", back}).status, 0) << c.codec;
    const Result same = run_program({"compare", container, back, "--max-error", "0"});
    EXPECT_EQ(same.status, 0) << c.codec << same.err << same.out;
    const Result no_dump = run_program({"inspect", pages});
    EXPECT_EQ(no_dump.status, 3);
    EXPECT_NE(no_dump.err.find("holds pages (cache, block_table), not keys and values; tq4 convert"), std::string::npos) << no_dump.err;
    const Result dtype = run_program({"decompress", back, "-o", pages + ".x", "--dtype", "int8"});
    EXPECT_EQ(dtype.status, 2);
    EXPECT_NE(dtype.err.find("--dtype: 'int8' is not one of float16, bfloat16, float32"), std::string::npos) << dtype.err;
  }
  const Scratch scratch;
  ASSERT_EQ(run_program({"compress", kDump, "--sinks", "4", "-o", scratch.path("a.tq4")}).status, 0);
  const Result refused = run_program({"convert", scratch.path("a.tq4"), "--layout", "native", "-o", scratch.path("p.h5")});
  EXPECT_EQ(refused.status, 6) << refused.err;
  EXPECT_FALSE(std::filesystem::exists(scratch.path("p.h5")));
}

TEST(Program, CompareIsAGate) {
  const Scratch scratch;
  ASSERT_EQ(run_program({"compress", kDump, "--bits", "4", "-o", scratch.path("a.tq4")}).status, 0);
  EXPECT_EQ(run_program({"compare", kDump, scratch.path("a.tq4"), "--max-error", "0.02"}).status, 0);
  const Result failed = run_program({"compare", kDump, scratch.path("a.tq4"), "--max-error", "0.001"});
  EXPECT_EQ(failed.status, 4);
  EXPECT_NE(failed.err.find("is above 0.001"), std::string::npos) << failed.err;
}

TEST(Program, CodebookPrintsTheKnownNumbers) {
  const Result text = run_program({"codebook", "--bits", "1,2", "--dim", "128"});
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_EQ(text.out, read_file(TQ4_SOURCE_DIR "/tests/cli/golden/codebook_1_2.txt"));
  const nlohmann::json json = json_of(run_program({"codebook", "--bits", "4", "--kind", "gaussian", "--json", "-"}));
  EXPECT_EQ(json.at("schema_version"), 1);
  EXPECT_NEAR(json.at("codebooks").at(0).at("mse").get<double>(), 0.009497, 1e-5);
}

}  // namespace
}  // namespace tq4::cli_test
