// The profiler itself, on small shapes: every operation gives a time and, where it compares with the CPU, a small error; data from outside, made-up
// calibrations and launch choices do what they say.
#include "tq4/profile.h"

#include <gtest/gtest.h>

#include "gpu/gpu_test.h"
#include "tq4/error.h"
#include "tq4/prefill.h"
#include "tq4/tune.h"

namespace tq4::gpu {
namespace {

ProfileShape small(ProfileOp op) {
  ProfileShape s;
  s.op = op;
  s.spec = spec_from_name("tq4");
  s.num_q_heads = 4;
  s.num_kv_heads = 2;
  s.head_dim = 64;
  s.ctx = 70;
  return s;
}

ProfileOptions quick() {
  ProfileOptions o;
  o.samples = 1;
  o.baselines = false;
  o.cold = false;
  return o;
}

void expect_timed(const ProfileResult& r) {
  EXPECT_EQ(r.skipped, "");
  EXPECT_GT(r.time.median, 0);
  EXPECT_GT(r.bytes, 0);
  EXPECT_GT(r.caches, 0);
}

TEST(Profile, EveryOperation) {
  TQ4_REQUIRE_DEVICE();
  for (const ProfileOp op : {ProfileOp::Decode, ProfileOp::Store, ProfileOp::Encode, ProfileOp::Dequant, ProfileOp::Prefill}) {
    ProfileShape s = small(op);
    if (op == ProfileOp::Prefill) s.batch = 2, s.ctx = 33;
    const ProfileResult r = profile(s, quick());
    expect_timed(r);
    if (op == ProfileOp::Decode || op == ProfileOp::Prefill) {
      EXPECT_GE(r.relative_error, 0);
      EXPECT_LT(r.relative_error, 2e-3) << static_cast<int>(op);
    }
    EXPECT_EQ(r.flops, op == ProfileOp::Prefill ? 2 * 2.0 * 33 * 34 * 4 * 64 : 0.0);
  }
}

TEST(Profile, PathsAreThoseOfTheCalls) {
  TQ4_REQUIRE_DEVICE();
  ProfileShape s = small(ProfileOp::Prefill);
  EXPECT_EQ(profile(s, quick()).path, prefill_path(DeviceCodec(s.spec, s.head_dim, s.num_kv_heads), {}));
  for (const ProfileOp op : {ProfileOp::Prefill, ProfileOp::Decode}) {
    s = small(op);
    s.general_path = true;
    EXPECT_EQ(profile(s, quick()).path, "general");
  }
}

TEST(Profile, CalibratedPointsHoldTheErrorBound) {
  TQ4_REQUIRE_DEVICE();
  // Long enough that values about 0 would average to an output far smaller than the centre: their rounding, not the kernel's error, would show.
  ProfileShape s = small(ProfileOp::Decode);
  s.calibrated = true;
  s.ctx = 2000;
  for (const bool general : {false, true}) {
    s.general_path = general;
    const ProfileResult r = profile(s, quick());
    expect_timed(r);
    EXPECT_LT(r.relative_error, 2e-3) << r.path;
  }
}

TEST(Profile, GivenDataIsWhatIsTimed) {
  TQ4_REQUIRE_DEVICE();
  ProfileShape s = small(ProfileOp::Decode);
  ProfileData data;
  data.tokens = 5;
  data.q_tokens = 2;
  const std::size_t row = 2 * 64;
  for (std::size_t i = 0; i < 5 * row; ++i) {
    data.k.push_back(float_to_half(static_cast<float>(i % 7) - 3.0f));
    data.v.push_back(float_to_half(static_cast<float>(i % 11) * 0.25f));
  }
  for (std::size_t i = 0; i < 2 * 4 * 64; ++i) data.q.push_back(float_to_half(static_cast<float>(i % 5) * 0.1f));
  ProfileOptions o = quick();
  o.data = &data;
  for (const ProfileOp op : {ProfileOp::Decode, ProfileOp::Store, ProfileOp::Encode, ProfileOp::Dequant, ProfileOp::Prefill}) {
    s.op = op;
    const ProfileResult r = profile(s, o);
    expect_timed(r);
    EXPECT_LT(r.relative_error, 2e-3);  // -1 where nothing is compared
  }
  data.k.pop_back();
  EXPECT_THROW(profile(s, o), Error);
}

TEST(Profile, TooLargeIsSkippedWithALine) {
  TQ4_REQUIRE_DEVICE();
  ProfileShape s = small(ProfileOp::Decode);
  s.batch = 1 << 20;
  s.ctx = 1 << 20;
  EXPECT_NE(profile(s, quick()).skipped.find("MiB of device memory"), std::string::npos);
}

TEST(Profile, TuningTriesWhatTheGeneralPathCanChoose) {
  TQ4_REQUIRE_DEVICE();
  ProfileShape s = small(ProfileOp::Decode);
  s.ctx = 400;
  s.general_path = true;
  const TuneResult r = tune(s, quick());
  EXPECT_EQ(r.path, "general");
  ASSERT_EQ(r.tried.size(), 3u);  // 1, 2, 3 parts of at least 128 tokens
  EXPECT_GT(r.rule_seconds, 0);
  EXPECT_LE(r.best_seconds, r.rule_seconds);
  // Every choice gives the same attention.
  for (const auto& [choice, seconds] : r.tried) {
    s.splits = choice.splits;
    EXPECT_LT(profile(s, quick()).relative_error, 2e-3) << choice.splits;
  }
  s.op = ProfileOp::Store;
  EXPECT_TRUE(tune(s, quick()).tried.empty());
}

}  // namespace
}  // namespace tq4::gpu
