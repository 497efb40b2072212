// The launch choices and the file that remembers the winners: host code, the same with and without CUDA.
#include "tq4/tune.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cuda/decode_attention/splits.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "tq4_tune_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

ProfileShape shape_of(std::int64_t ctx) {
  ProfileShape s;
  s.spec = spec_from_name("tq4");
  s.ctx = ctx;
  return s;
}

DeviceInfo device_of(const std::string& name, int driver) {
  DeviceInfo d;
  d.name = name;
  d.sm_count = 132;
  d.driver_version = driver;
  return d;
}

TEST(Tune, OnlyDecodesGeneralPathHasChoices) {
  ProfileShape s = shape_of(1024);
  EXPECT_EQ(tune_candidates(s, "general").size(), 6u);  // 1, 2, 3, 4, 6, 8 parts of 128 tokens and more
  EXPECT_TRUE(tune_candidates(s, "fused-sm90").empty());
  s.ctx = 1 << 20;
  EXPECT_EQ(tune_candidates(s, "general").back().splits, 128);
  s.ctx = 10;
  EXPECT_EQ(tune_candidates(s, "general"), std::vector<LaunchChoice>{{1}});
  for (const ProfileOp op : {ProfileOp::Store, ProfileOp::Encode, ProfileOp::Dequant, ProfileOp::Prefill}) {
    s.op = op;
    EXPECT_TRUE(tune_candidates(s, "general").empty());
  }
}

/// One sequence of 8 kv heads on 132 multiprocessors of 4 blocks each, and more of them: the blocks fill the waves they take, and no part is a few
/// tiles longer than it need be.
TEST(Tune, RuleFillsTheMultiprocessors) {
  EXPECT_EQ(best_splits(8, 528, 1024), 8);
  EXPECT_EQ(best_splits(8, 528, 8192), 64);
  EXPECT_EQ(best_splits(8, 528, 32768), 64);
  EXPECT_EQ(best_splits(16, 528, 32768), 32);
  EXPECT_EQ(best_splits(64, 528, 32768), 8);
  EXPECT_EQ(best_splits(256, 528, 32768), 2);
  EXPECT_EQ(best_splits(512, 528, 32768), 1);
  EXPECT_GE(best_splits(1, 528, 1 << 20), 120);
  EXPECT_EQ(best_splits(8, 528, 0), 1);
  for (const std::int64_t blocks : {3, 40, 100, 529, 100000}) {
    for (const std::int64_t tokens : {1, 127, 300, 5000, 200000}) EXPECT_LE(best_splits(blocks, 528, tokens), most_splits(tokens));
  }
}

TEST(Tune, WinnersAreKeptByDeviceDriverAndShape) {
  const Folder folder;
  const std::string path = folder.path + "/deep/er/tune.tsv";
  const DeviceInfo device = device_of("GPU\twith a tab", 13000);
  {
    TuneCache cache = TuneCache::load(path);  // not there: empty
    EXPECT_EQ(cache.size(), 0u);
    cache.put(device, shape_of(8192), {12});
    cache.put(device, shape_of(8192), {16});  // replaces
    cache.put(device, shape_of(1024), {0});
    cache.save(path);
  }
  const TuneCache cache = TuneCache::load(path);
  EXPECT_EQ(cache.size(), 2u);
  EXPECT_EQ(cache.find(device, shape_of(8192)), LaunchChoice{16});
  EXPECT_EQ(cache.find(device, shape_of(5000)), LaunchChoice{16});  // rounded up to 8192
  EXPECT_EQ(cache.find(device, shape_of(1000)), LaunchChoice{0});
  EXPECT_FALSE(cache.find(device, shape_of(16384)));
  EXPECT_FALSE(cache.find(device_of("GPU\twith a tab", 12080), shape_of(8192)));
  EXPECT_FALSE(cache.find(device_of("another GPU", 13000), shape_of(8192)));
  for (const auto change :
       {+[](ProfileShape& s) { s.num_q_heads = 64; }, +[](ProfileShape& s) { s.head_dim = 64; }, +[](ProfileShape& s) { s.q_len = 4; },
        +[](ProfileShape& s) { s.batch = 8; }, +[](ProfileShape& s) { s.block_size = 64; },
        +[](ProfileShape& s) { s.layout = LayoutKind::Vllm; }, +[](ProfileShape& s) { s.spec = spec_from_name("k4v3"); },
        +[](ProfileShape& s) { s.ragged = true; }, +[](ProfileShape& s) { s.spec.window = 64; }}) {
    ProfileShape other = shape_of(8192);
    change(other);
    EXPECT_FALSE(cache.find(device, other)) << tune_shape_key(other);
  }
}

TEST(Tune, DamagedLinesAreLeftOut) {
  const Folder folder;
  const std::string path = folder.path + "/tune.tsv";
  const DeviceInfo device = device_of("G", 13000);
  const std::string key = tune_device_key(device) + "\t" + tune_shape_key(shape_of(2048)) + "\t";
  std::ofstream(path) << "nonsense\n\t\n"
                      << key << "splits x\n"
                      << key << "splits -3\n"
                      << key << "splits 4 5\n"
                      << key << "tiles 4\n"
                      << key << "splits 7";
  const TuneCache cache = TuneCache::load(path);
  EXPECT_EQ(cache.size(), 1u);
  EXPECT_EQ(cache.find(device, shape_of(2048)), LaunchChoice{7});
  std::ofstream(folder.path + "/file") << "x";
  EXPECT_THROW(cache.save(folder.path + "/file/tune.tsv"), Error);
}

TEST(Tune, DefaultPathFollowsTheEnvironment) {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string old_xdg = xdg == nullptr ? "" : xdg, old_home = home == nullptr ? "" : home;
  ::setenv("XDG_CACHE_HOME", "/somewhere", 1);
  ::setenv("HOME", "/home/x", 1);
  EXPECT_EQ(TuneCache::default_path(), "/somewhere/tq4/tune.tsv");
  ::setenv("XDG_CACHE_HOME", "relative", 1);  // the specification says to ignore it
  EXPECT_EQ(TuneCache::default_path(), "/home/x/.cache/tq4/tune.tsv");
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(TuneCache::default_path(), "");
  EXPECT_EQ(TuneCache::load("").size(), 0u);
  if (xdg != nullptr) ::setenv("XDG_CACHE_HOME", old_xdg.c_str(), 1);
  if (home != nullptr) ::setenv("HOME", old_home.c_str(), 1);
}

}  // namespace
}  // namespace tq4::gpu
