// What the program does with wrong files, wrong options and bad moments: one clear line on stderr, the documented exit status, nothing
// half-written and nothing lost.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cmath>
#include <limits>
#include <random>
#include <sstream>

#include "process.h"

namespace tq4::cli_test {
namespace {

const std::string kDump = TQ4_SOURCE_DIR "/data/minilm_512.h5";

/// One line (two for usage errors, which point at --help) that names the verb and contains `says`.
void expect_refused(const Result& result, int status, const std::string& says) {
  EXPECT_EQ(result.status, status) << result.err;
  EXPECT_NE(result.err.find(says), std::string::npos) << result.err;
  EXPECT_EQ(result.err.rfind("tq4", 0), 0u) << result.err;
  EXPECT_LE(std::count(result.err.begin(), result.err.end(), '\n'), 2) << result.err;
}

Result compress_arrays(const Scratch& scratch, const std::vector<Array>& arrays, const std::vector<std::string>& options = {}) {
  write_file(scratch.path("in.safetensors"), safetensors(arrays));
  std::vector<std::string> arguments{"compress", scratch.path("in.safetensors"), "-o", scratch.path("out.tq4")};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return run_program(arguments);
}

void expect_nothing_written(const Scratch& scratch) { EXPECT_EQ(scratch.names(), (std::vector<std::string>{"in.safetensors"})); }

TEST(Usage, HelpVersionAndSlips) {
  const Result bare = run_program({});
  EXPECT_EQ(bare.status, 2);
  EXPECT_TRUE(bare.out.empty());
  EXPECT_NE(bare.err.find("Usage: tq4 VERB"), std::string::npos);
  EXPECT_EQ(run_program({"--help"}).status, 0);
  EXPECT_NE(run_program({"--version"}).out.find("HDF5"), std::string::npos);
  EXPECT_NE(run_program({"--version", "--json"}).out.find("\"simd\""), std::string::npos);
  expect_refused(run_program({"comprss", "x.h5"}), 2, "did you mean 'compress'?");
  expect_refused(run_program({"compress", "x.h5", "--bit", "4"}), 2, "did you mean '--bits'?");
  expect_refused(run_program({"compress"}), 2, "DUMP");
  expect_refused(run_program({"compress", kDump, "--bits", "9"}), 2, "--bits: '9' is not a number of bits");
  expect_refused(run_program({"compress", kDump, "--codec", "tq44"}), 2, "tq4");
  expect_refused(run_program({"compress", kDump, "--bits", "4", "--codec", "k4v3"}), 2, "--codec names K and V already");
  expect_refused(run_program({"compress", kDump, "--layers", "0..99"}), 2, "is not in");
  expect_refused(run_program({"decompress", kDump}), 2, "-o back.h5");
  expect_refused(run_program({"calibrate", TQ4_SOURCE_DIR "/data/lm_a.h5", "--rope", "--no-centre"}), 2, "leave out --rope or --no-centre");
  expect_refused(run_program({"calibrate", TQ4_SOURCE_DIR "/data/lm_a.h5", "--codec", "k8v4", "--rope"}), 2, "leave out --rope");
  const Result no_device = run_program({"profile", "--device", "cuda:99"});
  expect_refused(no_device, 5, "cuda:99");
  EXPECT_EQ(no_device.err.find("--device cpu"), std::string::npos) << "profile has no CPU to fall back to: " << no_device.err;
  for (const std::string verb : {"compress", "decompress", "eval"}) {
    const std::string input = verb == "decompress" ? "no.tq4" : kDump;
    const Result away = run_program({verb, input, "--device", "cuda:99", "-o", "x"});
    if (verb != "eval") expect_refused(away, 5, "--device cpu");
    expect_refused(run_program({verb, input, "--device", "gpu"}), 2, "--device: 'gpu' is not one of auto, cpu, cuda, cuda:N");
  }
  expect_refused(run_program({"compress", kDump, "-o", ""}), 2, "is empty");
  expect_refused(run_program({"compress", ""}), 2, "is empty");
  expect_refused(run_program({"calibrate"}), 2, "DUMPS is required");
  expect_refused(run_program({"profile", "--dry-run", "--ctx", "0"}), 2, "--ctx: 0 is not possible");
  expect_refused(run_program({"decompress", kDump, "--test"}), 3, "is an HDF5 file, not a tq4 container; tq4 compress makes one of a dump");
  expect_refused(run_program({"compare", kDump, kDump, "--max-error", "-1"}), 2, "--max-error: '-1' is below 0");
  expect_refused(run_program({"compress", kDump, "--calibration", kDump}), 3, "not a tq4 calibration; tq4 calibrate makes one");
  // Every verb's help fits 80 columns and shows two examples.
  const Result top = run_program({"--help"});
  std::istringstream lines(top.out.substr(top.out.find("Verbs")));
  std::string line;
  for (std::getline(lines, line); std::getline(lines, line) && !line.empty();) {
    if (line[2] == ' ') continue;
    const std::string verb = line.substr(2, line.find(' ', 2) - 2);
    const Result help = run_program({verb, "--help"});
    EXPECT_EQ(help.status, 0) << verb;
    EXPECT_NE(help.out.find("Examples:"), std::string::npos) << verb;
    std::istringstream text(help.out);
    for (std::string row; std::getline(text, row);) EXPECT_LE(row.size(), 80u) << verb << ": " << row;
  }
}

TEST(Usage, CompletionsAndManPageNameEveryVerb) {
  for (const char* kind : {"bash", "zsh", "fish", "man"}) {
    const Result text = run_program({"completions", kind});
    EXPECT_EQ(text.status, 0);
    for (const char* verb : {"compress", "decompress", "inspect", "compare", "convert", "codebook"})
      EXPECT_NE(text.out.find(verb), std::string::npos) << kind;
  }
  EXPECT_EQ(run_shell("bash -n <(tq4 completions bash)").status, 0);
  const Result completed =
      run_shell("source <(tq4 completions bash); COMP_WORDS=(tq4 compress --bi); COMP_CWORD=2; _tq4; echo \"${COMPREPLY[@]}\"");
  EXPECT_EQ(completed.out, "--bits\n") << completed.err;
  expect_refused(run_program({"completions", "csh"}), 2, "bash, zsh, fish, man");
}

TEST(BadInput, NotADump) {
  const Scratch scratch;
  expect_refused(run_program({"compress", scratch.path("none.h5")}), 3, "there is no such file");
  expect_refused(run_program({"compress", scratch.path()}), 3, "is a folder");
  write_file(scratch.path("text.h5"), "this is no HDF5 file, whatever its name says\n");
  expect_refused(run_program({"compress", scratch.path("text.h5")}), 3, "text.h5");
  write_file(scratch.path("empty.h5"), "");
  expect_refused(run_program({"compress", scratch.path("empty.h5")}), 3, "empty.h5");
  const std::string whole = read_file(kDump);
  for (const double share : {0.001, 0.1, 0.5, 0.99}) {
    write_file(scratch.path("cut.h5"), whole.substr(0, static_cast<std::size_t>(share * static_cast<double>(whole.size()))));
    expect_refused(run_program({"compress", scratch.path("cut.h5")}), 3, "cut.h5");
  }
  EXPECT_EQ(scratch.names(), (std::vector<std::string>{"cut.h5", "empty.h5", "text.h5"}));
}

TEST(BadInput, MissingMisnamedOrMisshapenTensors) {
  const Scratch scratch;
  std::vector<Array> layer = random_layer(0, 2, 16, 32);
  expect_refused(compress_arrays(scratch, {layer[0]}), 3, "in.safetensors");
  expect_refused(compress_arrays(scratch, {{"banana", {2, 16, 32}, {}}}), 3, "in.safetensors");
  expect_refused(compress_arrays(scratch, {layer[0], {"layer_0_value", {16, 32}, {}}}), 3, "in.safetensors");
  expect_refused(compress_arrays(scratch, {layer[0], {"layer_0_value", {2, 16, 2, 2, 32}, {}}}), 3, "in.safetensors");
  expect_refused(compress_arrays(scratch, {layer[0], {"layer_0_value", {2, 17, 32}, {}}}), 3, "in.safetensors");
  expect_nothing_written(scratch);
}

TEST(BadInput, HeadDimsThatNoCodecServes) {
  const Scratch scratch;
  for (const int dim : {12, 33, 1024}) {
    const Result result = compress_arrays(scratch, random_layer(0, 2, 16, dim), {"--axes", "hsd"});
    EXPECT_TRUE(result.status == 2 || result.status == 6) << dim << " " << result.status << result.err;
    EXPECT_NE(result.err.find(std::to_string(dim)), std::string::npos) << result.err;
    expect_nothing_written(scratch);
  }
}

TEST(BadInput, NanAndInfinityAreRefusedWithTheirPlace) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    const Scratch scratch;
    std::vector<Array> layer = random_layer(5, 2, 100, 32);
    layer[1].values[static_cast<std::size_t>((1 * 100 + 37) * 32 + 9)] = bad;
    expect_refused(compress_arrays(scratch, layer), 3, "layer 5 V head 1 token 37 coordinate 9 is ");
    expect_refused(compress_arrays(scratch, layer, {"--window", "70"}), 3, "layer 5 V head 1 token 37 coordinate 9 is ");
    expect_nothing_written(scratch);
    EXPECT_EQ(compress_arrays(scratch, layer, {"--nonfinite", "zero"}).status, 0);
    EXPECT_EQ(run_program({"decompress", scratch.path("out.tq4"), "--test"}).status, 0);
  }
  const Scratch scratch;
  std::vector<Array> layer = random_layer(0, 1, 100, 32);
  layer[0].values[0] = 1e6f;
  expect_refused(compress_arrays(scratch, layer, {"--skip-layers", "0"}), 3, "too large for the fp16");
}

TEST(BadInput, ZeroVectorsAndEmptyTensorsWork) {
  const Scratch scratch;
  EXPECT_EQ(compress_arrays(scratch, {{"layer_0_key", {2, 16, 32}, {}}, {"layer_0_value", {2, 16, 32}, {}}}).status, 0);
  EXPECT_EQ(run_program({"compare", scratch.path("in.safetensors"), scratch.path("out.tq4"), "--max-error", "0"}).status, 0);
  const Result empty = compress_arrays(scratch, {{"layer_0_key", {2, 0, 32}, {}}, {"layer_0_value", {2, 0, 32}, {}}}, {"--force"});
  EXPECT_EQ(empty.status, 0) << empty.err;
  EXPECT_EQ(run_program({"decompress", scratch.path("out.tq4"), "-o", scratch.path("back.h5")}).status, 0);
}

TEST(BadInput, DamagedContainers) {
  const Scratch scratch;
  ASSERT_EQ(compress_arrays(scratch, random_layer(0, 2, 64, 32)).status, 0);
  const std::string good = read_file(scratch.path("out.tq4"));
  const std::string bad = scratch.path("bad.tq4");
  std::mt19937 random(7);
  for (int i = 0; i < 24; ++i) {  // a bit flipped anywhere is found
    std::string flipped = good;
    flipped[random() % flipped.size()] ^= static_cast<char>(1 << random() % 8);
    write_file(bad, flipped);
    expect_refused(run_program({"decompress", bad, "--test"}), 3, "bad.tq4");
    EXPECT_EQ(run_program({"inspect", bad, "--verify"}).status, 3);
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, std::size_t{100}, good.size() / 2, good.size() - 1}) {
    write_file(bad, good.substr(0, size));
    expect_refused(run_program({"decompress", bad, "-o", scratch.path("back.h5")}), 3, "bad.tq4");
  }
  EXPECT_FALSE(std::filesystem::exists(scratch.path("back.h5")));
  write_file(bad, safetensors(random_layer(0, 2, 16, 32)));
  expect_refused(run_program({"decompress", bad, "--test"}), 3, "bad.tq4");
}

TEST(Output, ExistsOrIsTheInput) {
  const Scratch scratch;
  const std::string dump = scratch.path("in.h5");
  std::filesystem::copy_file(kDump, dump);
  write_file(scratch.path("in.tq4"), "precious");
  expect_refused(run_program({"compress", dump}), 2, "--force");
  EXPECT_EQ(read_file(scratch.path("in.tq4")), "precious");
  expect_refused(run_program({"compress", dump, "-o", dump, "--force"}), 2, "is the input as well");
  std::filesystem::create_symlink(dump, scratch.path("link"));
  expect_refused(run_program({"compress", scratch.path("link"), "-o", dump, "--force"}), 2, "is the input as well");
  EXPECT_EQ(read_file(dump), read_file(kDump));
  EXPECT_EQ(run_program({"compress", dump, "--force"}).status, 0);
  expect_refused(run_program({"compress", dump, "--force", "--json", scratch.path("in.h5"), "--csv", scratch.path("in.h5")}), 2,
                 "same file");
}

TEST(Output, NowhereToWrite) {
  const Scratch scratch;
  expect_refused(run_program({"compress", kDump, "-o", scratch.path("no/such/folder/a.tq4")}), 1, "no/such/folder");
  std::filesystem::create_directory(scratch.path("locked"));
  std::filesystem::permissions(scratch.path("locked"), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec |
                                                           std::filesystem::perms::others_exec | std::filesystem::perms::others_read);
  // As nobody when the tests run as root. The dump is copied to where nobody may read it.
  std::filesystem::copy_file(kDump, scratch.path("in.h5"));
  Conditions nobody;
  nobody.unprivileged = true;
  if (::access(TQ4_PROGRAM, X_OK) == 0 && run_program({"--version"}, nobody).status == 0)
    expect_refused(run_program({"compress", scratch.path("in.h5"), "-o", scratch.path("locked/a.tq4")}, nobody), 1, "locked/a.tq4");
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path("locked")));
}

TEST(Output, DiskFull) {
  const Scratch scratch;
  Conditions full;
  full.max_file_bytes = 64 * 1024;
  expect_refused(run_program({"compress", kDump, "-o", scratch.path("a.tq4")}, full), 1, "a.tq4");
  EXPECT_TRUE(scratch.names().empty());
  ASSERT_EQ(run_program({"compress", kDump, "-o", scratch.path("a.tq4")}).status, 0);
  expect_refused(run_program({"decompress", scratch.path("a.tq4"), "-o", scratch.path("back.h5")}, full), 1, "back.h5");
  expect_refused(run_program({"convert", scratch.path("a.tq4"), "--layout", "native", "-o", scratch.path("p.h5")}, full), 1, "p.h5");
  EXPECT_EQ(scratch.names(), (std::vector<std::string>{"a.tq4"}));
}

TEST(Output, DiskReallyFull) {
  const Scratch scratch;
  const std::string disk = scratch.path("disk");
  std::filesystem::create_directory(disk);
  if (run_shell("mount -t tmpfs -o size=128k tq4-test " + disk).status != 0) GTEST_SKIP() << "no right to mount a small file system";
  const Result compressed = run_program({"compress", kDump, "-o", disk + "/a.tq4"});
  const Result decompressed = run_shell("tq4 compress '" + kDump + "' -q -o " + scratch.path("a.tq4") + " > /dev/null && tq4 decompress " +
                                        scratch.path("a.tq4") + " -o " + disk + "/back.h5");
  const bool empty = std::filesystem::is_empty(disk);
  run_shell("umount " + disk);
  expect_refused(compressed, 1, "a.tq4");
  expect_refused(decompressed, 1, "back.h5");
  EXPECT_TRUE(empty);
}

TEST(Output, KilledAtAnyMomentLeavesTheOldFileOrTheNewOne) {
  const Scratch scratch;
  write_file(scratch.path("in.safetensors"), safetensors(random_layer(0, 4, 4000, 128)));
  const std::string out = scratch.path("out.tq4");
  ASSERT_EQ(run_program({"compress", scratch.path("in.safetensors"), "--bits", "2", "-o", out}).status, 0);
  const std::string old = read_file(out);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program({"compress", scratch.path("in.safetensors"), "--bits", "4", "-o", scratch.path("new.tq4")}).status, 0);
  const auto takes = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin);
  const std::string fresh = read_file(scratch.path("new.tq4"));
  std::mt19937 random(3);
  int killed = 0;
  for (int i = 0; i < 16; ++i) {
    for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
      write_file(out, old);
      Conditions conditions;
      conditions.signal = signal;
      conditions.after = std::chrono::microseconds(random() % static_cast<unsigned>(takes.count() + 1));
      const Result result = run_program({"compress", scratch.path("in.safetensors"), "--bits", "4", "--force", "-o", out}, conditions);
      EXPECT_TRUE(result.status == 0 || result.status == 128 + signal) << result.status << result.err;
      killed += result.status != 0 ? 1 : 0;
      const std::string now = read_file(out);
      EXPECT_TRUE(now == old || now == fresh) << "signal " << signal << " left " << now.size() << " bytes";
      if (signal != SIGKILL) {
        EXPECT_EQ(scratch.names(), (std::vector<std::string>{"in.safetensors", "new.tq4", "out.tq4"}));
      }
      for (const std::string& name :
           scratch.names()) {  // kill -9 cannot be caught: its temporary stays, under a name nobody takes for a result
        if (name != "in.safetensors" && name != "new.tq4" && name != "out.tq4") {
          EXPECT_EQ(name.front(), '.') << name;
          std::filesystem::remove(scratch.path(name));
        }
      }
    }
  }
  EXPECT_GT(killed, 8);
}

TEST(Output, StandardOutputThatFails) {
  const Result full = run_shell("tq4 codebook --bits 8 > /dev/full");
  EXPECT_EQ(full.status, 1) << full.err;
  EXPECT_NE(full.err.find("standard output"), std::string::npos) << full.err;
}

}  // namespace
}  // namespace tq4::cli_test
