// Decode attention against the float64 reference on the dequantised values: every codec pair, layout, head size, group, and option alone
// and in combination; the limits are those of the issue: 2e-3 relative in fp16, 1e-2 in bf16.
#include "gpu/decode_harness.h"

namespace tq4::gpu {
namespace {

constexpr LayoutKind kNative = LayoutKind::Native, kTqv = LayoutKind::TurboquantVllm, kVllm = LayoutKind::Vllm;

std::string describe(const DecodeCase& c) {
  std::string s = c.spec + " " + std::string(layout_name(c.kind)) + " d" + std::to_string(c.dim) + " heads " + std::to_string(c.q_heads) +
                  "/" + std::to_string(c.kv_heads) + " block " + std::to_string(c.block_size) + " q_len " + std::to_string(c.q_len) + " " +
                  std::string(dtype_name(c.dtype));
  if (c.padded) s += " padded";
  if (c.swapped) s += " swapped";
  if (c.window) s += " window " + std::to_string(c.window);
  if (c.soft_cap > 0) s += " soft cap";
  if (c.alibi) s += " alibi";
  if (c.sink_logits) s += " sink logits";
  if (c.exact_sinks || c.exact_window) s += " exact " + std::to_string(c.exact_sinks) + "+" + std::to_string(c.exact_window);
  if (c.calibration.matrices) s += " matrices";
  if (c.calibration.centres) s += " centres";
  if (c.calibration.rope) s += " rope";
  if (c.general_path) s += " general path";
  if (c.q_rotated) s += " q rotated";
  if (c.out_rotated) s += " out rotated";
  return s;
}

void expect_right_on_path(const DecodeCase& c, unsigned seed) {
  SCOPED_TRACE(describe(c));
  DecodeProblem problem(c, seed);
  problem.run();
  const DecodeErrors e = problem.errors();
  const double limit = c.dtype == DType::F16 ? 2e-3 : 1e-2;
  EXPECT_TRUE(e.finite);
  EXPECT_LT(e.out, limit) << problem.path();
  EXPECT_LT(e.worst_row, 4 * limit) << problem.path();
  EXPECT_LT(e.lse, 5e-3) << problem.path();
}

/// Both paths where the fused kernel may serve the case.
void expect_right(const DecodeCase& c, unsigned seed = 1) {
  expect_right_on_path(c, seed);
  if (c.kind != LayoutKind::Native || c.general_path) return;
  DecodeCase general = c;
  general.general_path = true;
  expect_right_on_path(general, seed);
}

TEST(Decode, EveryCodecPairInNativePages) {
  TQ4_REQUIRE_DEVICE();
  for (const char* spec : {"tq1",   "tq2",    "tq3",     "tq4",      "tq5",       "tq6",          "tq7",          "tq8",
                           "k4v3",  "k3v4",   "k4v2",    "k8v4",     "k4v8",      "fp8",          "fp16",         "k16v4",
                           "k4v16", "tq4-2d", "k3v4-2d", "tq4-norm", "vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) {
    DecodeCase c;
    c.spec = spec;
    expect_right(c);
  }
}

TEST(Decode, OtherLayouts) {
  TQ4_REQUIRE_DEVICE();
  for (const char* spec : {"turboquant-vllm", "turboquant-vllm-k3v3", "turboquant-vllm-k4v2"}) {
    for (const bool padded : {false, true}) {
      for (const int dim : {64, 96, 128}) {
        DecodeCase c;
        c.spec = spec;
        c.kind = kTqv;
        c.dim = dim;
        c.padded = padded;
        expect_right(c);
      }
    }
  }
  for (const char* spec : {"vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"}) {
    for (const bool swapped : {false, true}) {
      for (const int dim : {64, 128, 256}) {
        DecodeCase c;
        c.spec = spec;
        c.kind = kVllm;
        c.dim = dim;
        c.swapped = swapped;
        expect_right(c);
      }
    }
  }
}

TEST(Decode, HeadSizes) {
  TQ4_REQUIRE_DEVICE();
  for (const int dim : {32, 64, 80, 96, 112, 128, 160, 192, 256, 512}) {
    DecodeCase c;
    c.dim = dim;
    expect_right(c);
    c.spec = "k8v4";
    c.dtype = DType::BF16;
    expect_right(c);
  }
  for (const int dim : {40, 72, 88, 104, 120, 200}) {  // no multiple of 16: rows of 8-bit values fit native pages
    DecodeCase c;
    c.spec = "fp8";
    c.dim = dim;
    expect_right(c);
    c.spec = "turboquant-vllm";
    c.kind = kTqv;
    expect_right(c);
  }
}

TEST(Decode, GroupsAndQueryLengths) {
  TQ4_REQUIRE_DEVICE();
  for (const int group : {1, 3, 4, 5, 6, 7, 8, 12, 16, 20}) {
    DecodeCase c;
    c.q_heads = 2 * group;
    c.lengths = {5, 130};
    expect_right(c);
  }
  for (const int q_len : {2, 3, 4, 8, 16}) {
    DecodeCase c;
    c.q_len = q_len;
    c.q_heads = 14;
    c.lengths = {1, 16, 17, 250};  // shorter than q_len too: the first queries see nothing
    expect_right(c);
  }
}

TEST(Decode, PageSizes) {
  TQ4_REQUIRE_DEVICE();
  for (const int block : {16, 32, 48, 64, 128, 256}) {
    DecodeCase c;
    c.block_size = block;
    expect_right(c);
    c.padded = true;
    expect_right(c);
    c.kind = kTqv;
    c.spec = "turboquant-vllm";
    expect_right(c);
  }
  DecodeCase odd;
  odd.kind = kVllm;
  odd.spec = "vllm:3bit_nc";
  odd.block_size = 24;
  expect_right(odd);
}

TEST(Decode, EmptyAndLongSequences) {
  TQ4_REQUIRE_DEVICE();
  DecodeCase c;
  c.lengths = {0, 40, 0};
  expect_right(c);
  c.lengths = {0};
  expect_right(c);
  c.sink_logits = true;
  expect_right(c);
  DecodeCase lengthy;
  lengthy.lengths = {6001};
  expect_right(lengthy);
  lengthy.lengths = {3000, 1, 700, 64};
  expect_right(lengthy);
}

TEST(Decode, Options) {
  TQ4_REQUIRE_DEVICE();
  for (const DType dtype : {DType::F16, DType::BF16}) {
    DecodeCase c;
    c.dtype = dtype;
    DecodeCase window = c, cap = c, alibi = c, sinks = c, all = c;
    window.window = 50;
    cap.soft_cap = 3;
    alibi.alibi = true;
    sinks.sink_logits = true;
    all.window = 100, all.soft_cap = 5, all.alibi = true, all.sink_logits = true, all.q_len = 3;
    for (const DecodeCase& o : {window, cap, alibi, sinks, all}) expect_right(o);
    all.spec = "vllm:3bit_nc";
    all.kind = kVllm;
    expect_right(all);
  }
}

TEST(Decode, RotationInsideOrOutside) {
  TQ4_REQUIRE_DEVICE();
  RotationKind kinds[] = {RotationKind::Haar, RotationKind::Hadamard, RotationKind::HadamardSigned, RotationKind::None};
  for (RotationKind& kind : kinds) {
    for (const bool q : {false, true}) {
      for (const bool out : {false, true}) {
        DecodeCase c;
        c.rotation = &kind;
        c.q_rotated = q;
        c.out_rotated = out;
        expect_right(c);
        c.dim = 96;
        expect_right(c);
      }
    }
  }
}

TEST(Decode, ExactPart) {
  TQ4_REQUIRE_DEVICE();
  for (const auto& [sinks, window] : {std::pair{4, 64}, std::pair{0, 32}, std::pair{4, 0}, std::pair{20, 500}}) {
    for (const int q_len : {1, 4}) {
      DecodeCase c;
      c.exact_sinks = sinks;
      c.exact_window = window;
      c.q_len = q_len;
      c.lengths = {0, 3, 30, 70, 333};
      expect_right(c);
      c.window = 40;
      expect_right(c);
    }
  }
}

TEST(Decode, FusedPathServesWhatItSays) {
  TQ4_REQUIRE_DEVICE();
  if (device_info(0).compute_major != 9) GTEST_SKIP() << "the fused path is for sm_90";
  for (const char* spec : {"tq4", "k4v3", "tq3", "tq4-2d", "tq3-2d"}) {
    for (const int dim : {64, 128, 256}) {
      DecodeCase c;
      c.spec = spec;
      c.dim = dim;
      c.lengths = {0, 1, 17, 1000, 333};
      DecodeProblem problem(c, 5);
      const bool built = std::string(spec) != "k4v3" || dim == 128;
      EXPECT_EQ(problem.path(), built ? "fused-sm90" : "general") << spec << " " << dim;
      expect_right(c);
    }
  }
  for (const char* spec : {"tq4", "k8v4", "tq4-2d"}) {  // 3-bit values do not fit native pages there
    for (const int group : {1, 4, 7, 16}) {
      DecodeCase c;
      c.spec = spec;
      c.dim = 96;
      c.q_heads = 2 * group;
      c.lengths = {0, 1, 17, 1000, 333};
      EXPECT_EQ(DecodeProblem(c, 5).path(), spec[1] == '8' && group > 4 ? "general" : "fused-sm90") << spec << " " << group;
      expect_right(c);
    }
  }
  DecodeCase many;  // more pairs than one round of a block holds
  many.kv_heads = 8, many.q_heads = 16;
  many.lengths.assign(150, 40);
  for (std::size_t i = 0; i < many.lengths.size(); i += 3) many.lengths[i] = static_cast<int>(i);
  expect_right(many);
}

TEST(Decode, FusedExactPart) {
  TQ4_REQUIRE_DEVICE();
  if (device_info(0).compute_major != 9) GTEST_SKIP() << "the fused path is for sm_90";
  for (const auto& [sinks, window] : {std::pair{4, 64}, std::pair{0, 32}, std::pair{4, 0}, std::pair{20, 500}}) {
    for (const CalibrationOptions o : {CalibrationOptions{false, false, false}, CalibrationOptions{true, true, false}}) {
      for (const int q_len : {1, 2}) {
        DecodeCase c;
        c.exact_sinks = sinks;
        c.exact_window = window;
        c.exact_rotated = true;
        c.q_len = q_len;
        c.calibration = o;
        c.lengths = {0, 3, 30, 70, 333};
        EXPECT_EQ(DecodeProblem(c, 5).path(), "fused-sm90");
        expect_right(c);
        c.window = 40;
        expect_right(c);
        c.dim = 96;
        if (q_len == 2) c.q_heads = 4;
        EXPECT_EQ(DecodeProblem(c, 5).path(), "fused-sm90");
        expect_right(c);
      }
    }
  }
}

TEST(Decode, CalibrationGivesTrueLogits) {
  TQ4_REQUIRE_DEVICE();
  for (const CalibrationOptions o :
       {CalibrationOptions{true, false, false}, CalibrationOptions{false, true, false}, CalibrationOptions{false, false, true},
        CalibrationOptions{true, true, false}, CalibrationOptions{true, true, true}}) {
    DecodeCase c;
    c.calibration = o;
    c.key_mean = 0.3f;
    expect_right(c);
    c.sink_logits = true;
    c.soft_cap = 6;
    expect_right(c);
    c.exact_sinks = 4;
    c.exact_window = 32;
    c.alibi = true;
    c.q_len = 2;
    expect_right(c);
    c.spec = "tq4-2d";
    c.dim = 64;
    c.dtype = DType::BF16;
    expect_right(c);
  }
  DecodeCase rotated;
  rotated.calibration = {true, true, false};
  rotated.q_rotated = rotated.out_rotated = true;
  expect_right(rotated);
}

/// Exact tokens in rotated space are no privilege of the fused kernel: options it refuses take the same buffers.
TEST(Decode, RotatedExactTokensOnTheGeneralPath) {
  TQ4_REQUIRE_DEVICE();
  for (const int q_len : {1, 4}) {
    DecodeCase c;
    c.general_path = true;
    c.exact_sinks = 4;
    c.exact_window = 64;
    c.exact_rotated = true;
    c.q_len = q_len;
    c.lengths = {0, 3, 30, 70, 333};
    expect_right(c);
    c.window = 40;
    c.soft_cap = 6;
    c.sink_logits = c.alibi = true;
    expect_right(c);
    c.calibration = {true, true, false};
    expect_right(c);
    c.dim = 96;
    c.dtype = DType::BF16;
    expect_right(c);
  }
}

TEST(Decode, RandomCombinations) {
  TQ4_REQUIRE_DEVICE();
  Random random(99);
  const auto pick = [&](const auto& values) { return values[random() % std::size(values)]; };
  const char* specs[] = {"tq4", "tq3", "tq2", "k4v3", "k8v4", "tq5", "tq4-2d", "vllm:4bit_nc", "vllm:k8v4", "fp8"};
  const int dims[] = {64, 128, 192, 256}, blocks[] = {16, 32, 64}, groups[] = {1, 2, 4, 7, 8}, kv[] = {1, 2, 4}, q_lens[] = {1, 1, 2, 5};
  for (unsigned i = 0; i < 60; ++i) {
    DecodeCase c;
    c.spec = pick(specs);
    c.dim = pick(dims);
    c.kind = c.spec.starts_with("vllm") && random() % 2 ? kVllm : kNative;
    c.swapped = c.kind == kVllm && random() % 2;
    c.block_size = pick(blocks);
    c.kv_heads = pick(kv);
    c.q_heads = c.kv_heads * pick(groups);
    c.q_len = pick(q_lens);
    c.dtype = random() % 2 ? DType::F16 : DType::BF16;
    c.lengths.clear();
    for (unsigned s = 0; s < 1 + random() % 4; ++s) c.lengths.push_back(static_cast<int>(random() % 600));
    if (random() % 3 == 0) c.window = 1 + static_cast<int>(random() % 300);
    if (random() % 3 == 0) c.soft_cap = 10;
    c.alibi = random() % 4 == 0;
    c.sink_logits = random() % 3 == 0;
    if (random() % 3 == 0) c.exact_sinks = static_cast<int>(random() % 8), c.exact_window = static_cast<int>(random() % 100);
    if (random() % 3 == 0) c.calibration = {random() % 2 == 0, random() % 2 == 0, random() % 4 == 0};
    expect_right(c, i);
  }
}

}  // namespace
}  // namespace tq4::gpu
