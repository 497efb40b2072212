// The fused decode kernel on the emulator: shapes small enough for a host, many schedules. Each case runs with several seeds (order of blocks, warps
// and lanes), ways that copies arrive, and numbers of thread blocks, against the float64 reference with the limits of the GPU tests.
#include <algorithm>
#include <array>
#include <limits>
#include <span>

#include "emulator/decode_schedules.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

constexpr Schedule kSchedules[] = {{0, Copies::Eager, 1}, {1, Copies::Lazy, 3}, {2, Copies::Random, 8}};

class Fused : public EmulatedDecode {
 protected:
  static void expect_right(const DecodeCase& c, std::span<const Schedule> schedules = kSchedules) {
    for (const Schedule& s : schedules) {
      SCOPED_TRACE(c.spec + " d" + std::to_string(c.dim) + " seed " + std::to_string(s.seed) + " blocks " + std::to_string(s.blocks));
      emulator::options() = {s.seed, s.copies, s.blocks};
      DecodeProblem problem(c, 3);
      ASSERT_EQ(problem.path(), "fused-sm90");
      for (int run = 0; run < 2; ++run) {  // the second finds the workspace as the first left it
        problem.params().fresh_tokens = run == 0 ? -1 : c.q_len;
        problem.run();
        expect_within_limits(c, problem);
        const auto* workspace = static_cast<const std::uint8_t*>(problem.params().workspace);
        EXPECT_TRUE(std::all_of(workspace, workspace + problem.params().workspace_bytes, [](std::uint8_t byte) { return byte == 0; }));
      }
    }
  }
};

TEST_F(Fused, Codecs) {
  for (const auto& [spec, dim] : {std::pair{"tq4", 64},
                                  {"tq4", 96},
                                  {"tq4", 128},
                                  {"tq3", 64},
                                  {"tq3", 128},
                                  {"tq2", 128},
                                  {"k4v3", 128},
                                  {"k8v4", 64},
                                  {"k8v4", 96},
                                  {"k8v4", 128},
                                  {"tq4-2d", 96},
                                  {"tq4-2d", 128},
                                  {"tq4", 256}})
    expect_right(small(spec, dim));
}

TEST_F(Fused, QueryRows) {
  for (const auto& [q_heads, q_len] : {std::pair{2, 1}, {8, 1}, {4, 2}, {14, 1}, {4, 4}, {16, 2}, {6, 4}}) {
    DecodeCase c = small("tq4", 128);
    c.q_heads = q_heads;
    c.q_len = q_len;
    c.lengths = {2, 0, 67};
    expect_right(c);
    c.dim = 96;
    expect_right(c);
  }
}

/// Pieces fitted to pairs of one length (whole pieces a pair, whole pairs a piece, neither), half of the blocks only, empty units behind pairs of
/// different lengths.
TEST_F(Fused, PiecesAndPairs) {
  DecodeCase c = small("tq4", 128);
  c.lengths = {640, 640, 640};
  expect_right(c, std::array<Schedule, 4>{{{1, Copies::Random, 2}, {2, Copies::Lazy, 12}, {3, Copies::Eager, 7}, {4, Copies::Random, 1}}});
  c.lengths = {700, 40, 5, 300};
  expect_right(c, std::array<Schedule, 2>{{{1, Copies::Random, 3}, {2, Copies::Lazy, 2}}});
}

/// More short sequences than a round has pairs, some of them empty, with and without a window shorter than they are.
TEST_F(Fused, ManySequences) {
  const std::array<Schedule, 2> schedules{{{4, Copies::Random, 3}, {5, Copies::Lazy, 11}}};
  DecodeCase c = small("tq4", 128);
  c.kv_heads = c.q_heads = 8;
  c.lengths.clear();
  for (int i = 0; i < 37; ++i) c.lengths.push_back(i * i * 7 % 61);
  expect_right(c, schedules);
  c.window = 20;
  expect_right(c, schedules);
  c.lengths.resize(20);
  expect_right(c, schedules);
}

/// Enough tiles a warp that the stages of its ring are used again and again.
TEST_F(Fused, RingsGoAround) {
  for (const auto& [spec, dim] :
       {std::pair{"tq4", 64}, {"tq4", 96}, {"tq4", 128}, {"tq3", 128}, {"tq2", 128}, {"k8v4", 128}, {"tq4", 256}}) {
    DecodeCase c = small(spec, dim);
    c.kv_heads = 1, c.q_heads = 2;
    c.lengths = {dim < 128 || spec[2] == '2' ? 4000 : 2500};
    expect_right(c);
  }
}

/// Rings that are full, begin within an exact unit, or hold fewer tokens than rows; exact tokens that queries or a sliding window do not see.
TEST_F(Fused, ExactPart) {
  struct Exact {
    const char* spec;
    int dim, sinks, recent, q_len, window;
  };
  for (const Exact& e : {Exact{"tq4", 128, 4, 32, 2, 0},
                         {"tq3", 128, 4, 64, 1, 0},
                         {"tq4", 128, 0, 20, 1, 0},
                         {"k4v3", 128, 20, 0, 2, 0},
                         {"tq4", 128, 5, 33, 2, 0},
                         {"tq3", 128, 3, 50, 1, 30},
                         {"tq4", 128, 6, 13, 4, 45},
                         {"tq4", 96, 2, 7, 1, 0},
                         {"tq4", 128, 0, 1, 1, 0}}) {
    DecodeCase c = small(e.spec, e.dim);
    c.exact_sinks = e.sinks;
    c.exact_window = e.recent;
    c.exact_rotated = true;
    c.window = e.window;
    c.calibration = {e.q_len == 2, true, false};
    c.q_len = e.q_len;
    c.lengths = {0, 1, 5, 16, 37, 70, 150};
    SCOPED_TRACE("exact " + std::to_string(e.sinks) + "+" + std::to_string(e.recent));
    expect_right(c);
  }
}

/// Matrices of their own for each kv head, pairs of several heads in a round, at every number of warps and rows.
TEST_F(Fused, MatricesAHead) {
  for (const auto& [dim, group] : {std::pair{64, 2}, {64, 8}, {96, 4}, {96, 7}, {96, 16}, {128, 4}, {128, 16}, {256, 4}, {256, 7}}) {
    DecodeCase c = small("tq4", dim);
    c.kv_heads = 3, c.q_heads = 3 * group;
    c.lengths = {40};
    c.calibration = {true, true, false};
    expect_right(c);
  }
}

TEST_F(Fused, Options) {
  DecodeCase c = small("tq4", 128);
  c.window = 40;
  c.dtype = DType::BF16;
  c.calibration = {true, true, false};
  expect_right(c);
  c.block_size = 64;
  c.padded = true;
  c.q_len = 3;
  expect_right(c);
  c.dim = 96;
  expect_right(c);
  DecodeCase rotated = small("k8v4", 128);
  rotated.q_rotated = rotated.out_rotated = true;
  expect_right(rotated);
  DecodeCase many = small("tq4", 64);  // more pairs than a round of a block holds
  many.kv_heads = 4, many.q_heads = 8;
  many.lengths.assign(20, 20);
  expect_right(many);
  DecodeCase lengthy = small("tq4", 128);  // more than 32 pages a warp, parts of one pair in all blocks
  lengthy.lengths = {9000};
  lengthy.kv_heads = 1, lengthy.q_heads = 2;
  expect_right(lengthy);
}

/// More parts of a pair than are read at a time.
TEST_F(Fused, ManyParts) {
  const Schedule schedules[] = {{3, Copies::Random, 21}};
  DecodeCase c = small("tq4", 128);
  c.kv_heads = 1, c.q_heads = 4;
  c.lengths = {700, 9};
  expect_right(c, schedules);
  c.dim = 256, c.q_heads = 8;
  expect_right(c, schedules);
}

/// Pieces of several rounds that begin inside a pair, matrices a head, more sequences than lanes, empty ones among them.
TEST_F(Fused, Rounds) {
  const Schedule schedules[] = {{4, Copies::Random, 3}, {5, Copies::Lazy, 5}};
  for (const auto& [dim, group] : {std::pair{64, 5}, {96, 3}, {128, 2}, {128, 16}, {256, 4}, {256, 8}}) {
    DecodeCase c = small("tq4", dim);
    c.kv_heads = 2, c.q_heads = 2 * group;
    c.lengths.clear();
    for (int i = 0; i < (dim == 64 ? 37 : 13); ++i) c.lengths.push_back(i * i * 7 % 61);
    c.calibration = {true, true, false};
    expect_right(c, schedules);
  }
  DecodeCase c = small("tq4", 128);
  c.lengths = {70, 3, 0, 41, 97, 64, 20, 50, 33, 80, 5};
  c.exact_sinks = 4, c.exact_window = 20, c.exact_rotated = true;
  expect_right(c, schedules);
}

/// A window that is none, and fewer tokens than queries.
TEST_F(Fused, WidestWindow) {
  DecodeCase c = small("tq4", 128);
  c.window = std::numeric_limits<int>::max();
  c.q_len = 4;
  c.lengths = {1, 2, 3, 20};
  expect_right(c);
  c.general_path = true;
  DecodeProblem general(c, 3);
  general.run();
  EXPECT_LT(general.errors().out, 2e-3);
  EXPECT_LT(general.errors().lse, 5e-3);
}

/// Addresses and buffers that the kernel cannot read are refused before a launch.
TEST_F(Fused, Refusals) {
  DecodeCase c = small("tq4", 128);
  c.exact_sinks = 4, c.exact_window = 20, c.exact_rotated = true;
  DecodeProblem problem(c, 3);
  const DecodeParams right = problem.params();
  const auto refused = [&](auto&& spoil) {
    DecodeParams p = right;
    spoil(p);
    EXPECT_THROW(decode(problem.codec(), p, nullptr), Error);
  };
  const auto moved = [](auto pointer, std::uintptr_t bytes) {
    return reinterpret_cast<decltype(pointer)>(reinterpret_cast<std::uintptr_t>(pointer) + bytes);
  };
  refused([&](DecodeParams& p) { p.q = moved(p.q, 8); });
  refused([&](DecodeParams& p) { p.out = moved(p.out, 2); });
  refused([&](DecodeParams& p) { p.workspace = moved(p.workspace, 8); });
  refused([&](DecodeParams& p) { p.exact.window_v = moved(p.exact.window_v, 8); });
  refused([](DecodeParams& p) { p.exact.sink_k = nullptr; });
  refused([](DecodeParams& p) { p.exact.window_v = nullptr; });
  refused([](DecodeParams& p) { p.exact.sinks = -1; });
  refused([](DecodeParams& p) { p.window = -1; });
  decode(problem.codec(), right, nullptr);
}

}  // namespace
}  // namespace tq4::gpu
