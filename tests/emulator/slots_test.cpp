// The slots decode kernel on the emulator: vLLM's presets in vLLM's pages, shapes small enough for a host, many schedules. Each case runs with several
// seeds (order of blocks, warps and lanes), ways that copies arrive, and numbers of thread blocks, against the float64 reference with the limits
// of the GPU tests.
#include <algorithm>
#include <span>

#include "cuda/decode_attention/slots.h"
#include "emulator/decode_schedules.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

constexpr Schedule kSchedules[] = {{0, Copies::Eager, 1}, {1, Copies::Lazy, 3}, {2, Copies::Random, 7}};

class Slots : public EmulatedDecode {
 protected:
  static void expect_right(const DecodeCase& c, std::span<const Schedule> schedules = kSchedules) {
    for (const Schedule& s : schedules) {
      SCOPED_TRACE(c.spec + " d" + std::to_string(c.dim) + " heads " + std::to_string(c.q_heads) + "/" + std::to_string(c.kv_heads) +
                   " q_len " + std::to_string(c.q_len) + (c.swapped ? " swapped" : "") + " seed " + std::to_string(s.seed) + " blocks " +
                   std::to_string(s.blocks));
      emulator::options() = {s.seed, s.copies, s.blocks};
      DecodeProblem problem(c, 3);
      ASSERT_EQ(problem.path(), "slots-sm90");
      for (int run = 0; run < 2; ++run) {  // the second finds the workspace as the first left it
        problem.run();
        expect_within_limits(c, problem);
        const auto* workspace = static_cast<const std::uint8_t*>(problem.params().workspace);
        EXPECT_TRUE(std::all_of(workspace, workspace + slots_kept_bytes(problem.codec()), [](std::uint8_t byte) { return byte == 0; }));
      }
    }
  }
  static DecodeCase small(const char* spec, int dim) {
    DecodeCase c = EmulatedDecode::small(spec, dim);
    c.kind = LayoutKind::Vllm;
    return c;
  }
};

TEST_F(Slots, Presets) {
  for (const auto& [spec, dim] : {std::pair{"vllm:4bit_nc", 128},
                                  {"vllm:k3v4_nc", 128},
                                  {"vllm:3bit_nc", 128},
                                  {"vllm:k8v4", 128},
                                  {"vllm:4bit_nc", 64},
                                  {"vllm:k3v4_nc", 64},
                                  {"vllm:k8v4", 64},
                                  {"vllm:4bit_nc", 256},
                                  {"vllm:k8v4", 256}})
    expect_right(small(spec, dim));
}

/// Newer pages keep the tokens of a head together: at 134 bytes apart they differ in alignment from token to token.
TEST_F(Slots, SwappedAxes) {
  for (const char* spec : {"vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc", "vllm:k8v4"}) {
    DecodeCase c = small(spec, 128);
    c.swapped = true;
    expect_right(c);
    c.block_size = 64;
    expect_right(c);
  }
}

/// 1 kv head: tokens 134 bytes apart; 3: a warp is left over; 16: one group of warps.
TEST_F(Slots, Heads) {
  for (const auto& [q_heads, kv_heads] : {std::pair{4, 1}, {3, 3}, {32, 8}, {7, 1}, {12, 4}, {16, 16}}) {
    DecodeCase c = small("vllm:4bit_nc", 128);
    c.q_heads = q_heads;
    c.kv_heads = kv_heads;
    c.lengths = {19, 0, 130};
    expect_right(c);
  }
}

TEST_F(Slots, QueryRows) {
  for (const auto& [q_heads, q_len] : {std::pair{2, 1}, {4, 2}, {2, 5}, {4, 4}, {16, 1}}) {
    for (const char* spec : {"vllm:4bit_nc", "vllm:3bit_nc"}) {
      DecodeCase c = small(spec, 128);
      c.q_heads = q_heads;
      c.q_len = q_len;
      c.lengths = {2, 0, 67};
      expect_right(c);
    }
  }
}

TEST_F(Slots, Options) {
  DecodeCase c = small("vllm:4bit_nc", 128);
  c.window = 50;
  expect_right(c);
  c = small("vllm:k8v4", 128);
  c.dtype = DType::BF16;
  c.block_size = 64;
  c.window = 20;
  expect_right(c);
  c = small("vllm:3bit_nc", 128);
  c.q_rotated = true;
  expect_right(c);
}

/// Enough units that the stages of the ring are used again and again.
TEST_F(Slots, RingGoesAround) {
  for (const auto& [spec, kv_heads] : {std::pair{"vllm:4bit_nc", 1}, {"vllm:k3v4_nc", 6}, {"vllm:k8v4", 16}}) {
    DecodeCase c = small(spec, 128);
    c.kv_heads = c.q_heads = kv_heads;
    c.lengths = {1070, 100};
    expect_right(c);
  }
}

/// A sequence in so many blocks that leaders merge parts first, read in more than one turn; 1 query row, 8 of them.
TEST_F(Slots, ManyParts) {
  const Schedule schedules[] = {{3, Copies::Random, 21}, {4, Copies::Lazy, 90}};
  for (const int q_len : {1, 4}) {
    DecodeCase c = small("vllm:4bit_nc", 128);
    c.kv_heads = 2, c.q_heads = 4;
    c.q_len = q_len;
    c.lengths = {1300, 9};
    expect_right(c, schedules);
  }
}

/// More sequences in a block than one, and more than lanes, empty ones among them; behind a window.
TEST_F(Slots, ManySequences) {
  const Schedule schedules[] = {{4, Copies::Random, 3}, {5, Copies::Lazy, 11}};
  for (const auto& [spec, kv_heads] : {std::pair{"vllm:4bit_nc", 8}, {"vllm:3bit_nc", 3}, {"vllm:k8v4", 2}}) {
    DecodeCase c = small(spec, 128);
    c.kv_heads = c.q_heads = kv_heads;
    c.lengths.clear();
    for (int i = 0; i < 37; ++i) c.lengths.push_back(i * i * 7 % 61);
    expect_right(c, schedules);
    c.window = 20;
    expect_right(c, schedules);
  }
}

/// What the kernel does not serve goes the general way, by name.
TEST_F(Slots, Refusals) {
  DecodeCase c = small("vllm:3bit_nc", 64);  // values end within a byte
  EXPECT_EQ(DecodeProblem(c, 3).path(), "general");
  c = small("vllm:4bit_nc", 128);
  c.soft_cap = 20;
  EXPECT_EQ(DecodeProblem(c, 3).path(), "general");
  c.soft_cap = 0;
  c.q_heads = 18;
  EXPECT_EQ(DecodeProblem(c, 3).path(), "general");
  c.q_heads = 4;
  c.general_path = true;
  EXPECT_EQ(DecodeProblem(c, 3).path(), "general");
  c.general_path = false;
  DecodeProblem odd(c, 3);
  odd.params().q = static_cast<const std::uint8_t*>(odd.params().q) + 2;  // not aligned to 16 bytes
  EXPECT_THROW(odd.run(), ::tq4::Error);
}

}  // namespace
}  // namespace tq4::gpu
