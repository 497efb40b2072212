// Calibration on dumps made up for the purpose: gains on other draws of the same distribution, independence of threads, and what it does with
// constant keys, rank-deficient keys, too few tokens, missing queries, and dumps that do not belong together.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/linalg.h"
#include "tq4/calibration.h"
#include "tq4/codec.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

constexpr int kDim = 64;

/// Two kv heads of fp32 rows with unequal variances and a mean, four query heads.
class MemoryDump final : public Dump {
 public:
  MemoryDump(std::int64_t tokens, unsigned seed, bool queries = true) {
    info_.path = "memory";
    info_.model = "test";
    info_.rope_applied = true;
    info_.rope_theta = 10000;
    LayerInfo layer;
    layer.num_kv_heads = 2;
    layer.num_q_heads = 4;
    layer.head_dim = kDim;
    layer.tokens = tokens;
    layer.q_tokens = queries ? tokens : 0;
    layer.k_dtype = layer.v_dtype = layer.q_dtype = DType::F32;
    info_.layers.push_back(layer);
    std::mt19937 gen(seed);
    std::normal_distribution<float> normal;
    for (int t = 0; t < 3; ++t) {
      const int heads = t == 2 ? 4 : 2;
      for (std::int64_t i = 0; i < heads * tokens; ++i) {
        for (int j = 0; j < kDim; ++j) {
          const float sigma = t == 2 ? std::exp(-0.02f * static_cast<float>(kDim - j)) : std::exp(-0.06f * static_cast<float>(j));
          data_[t].push_back(sigma * normal(gen) + (t != 2 && j == 3 ? 5.0f : 0.0f));
        }
      }
    }
  }
  const DumpInfo& info() const override { return info_; }
  void read(std::size_t, Tensor tensor, int head, std::int64_t begin, std::int64_t count, void* out) override {
    std::memcpy(out, rows(tensor, head) + begin * kDim, static_cast<std::size_t>(count * kDim) * sizeof(float));
  }
  std::vector<float> read_o_gram(std::size_t) override { throw Error(ErrorCode::BadInput, "none"); }
  float* rows(Tensor tensor, int head) { return data_[static_cast<int>(tensor)].data() + head * info_.layers[0].tokens * kDim; }
  DumpInfo info_;

 private:
  std::vector<float> data_[3];
};

CalibrateOptions options(CalibrationMethod method = CalibrationMethod::Feedback) {
  CalibrateOptions o;
  o.spec = spec_from_name("tq4-2d");
  o.method = method;
  return o;
}

/// Mean of (q . e)^2 over the dump's first head of keys: what softmax sees.
double logit_error(MemoryDump& dump, const Calibration* calibration, const SideSpec& spec) {
  const std::int64_t n = dump.info_.layers[0].tokens;
  const Codec codec(spec, kDim);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(n) * codec.code_bytes());
  std::vector<float> scale(static_cast<std::size_t>(n)), decoded(static_cast<std::size_t>(n) * kDim);
  const HeadTransform transform = head_transform(calibration != nullptr ? calibration->find(0) : nullptr, Side::K, 0);
  EncodedOut out;
  out.codes = codes.data();
  out.scale = scale.data();
  codec.encode(dump.rows(Tensor::K, 0), DType::F32, n, out, transform);
  EncodedIn in;
  in.codes = codes.data();
  in.scale = scale.data();
  codec.decode(in, n, decoded.data(), transform);
  double sum = 0;
  for (std::int64_t t = 0; t < n; ++t) {
    double dot = 0;
    for (int j = 0; j < kDim; ++j) {
      dot += static_cast<double>(dump.rows(Tensor::Q, 0)[((t * 7) % n) * kDim + j]) *
             (decoded[static_cast<std::size_t>(t * kDim + j)] - dump.rows(Tensor::K, 0)[t * kDim + j]);
    }
    sum += dot * dot;
  }
  return sum / static_cast<double>(n);
}

TEST(Calibrate, EachStepLowersTheLogitErrorOnOtherTokens) {
  MemoryDump learn(2000, 1), more(2000, 2), test(2000, 3);
  const SideSpec pairs = spec_from_name("tq4-2d").k;
  const double plain = logit_error(test, nullptr, pairs);
  std::vector<double> errors;
  for (const auto method : {CalibrationMethod::Centre, CalibrationMethod::Transform, CalibrationMethod::Feedback}) {
    CalibrateReport report;
    const Calibration c = calibrate({&learn, &more}, options(method), &report);
    EXPECT_EQ(c.tokens, 4000);
    EXPECT_NO_THROW(check_calibration(c, test.info_));
    errors.push_back(logit_error(test, &c, pairs));
  }
  EXPECT_LT(errors[0], 0.8 * plain);
  EXPECT_LT(errors[1], 0.95 * errors[0]);
  EXPECT_LT(errors[2], 0.7 * errors[1]);
}

TEST(Calibrate, StepsCanBeTakenApart) {
  MemoryDump learn(2000, 1), test(2000, 3);
  CalibrateOptions values_only = options();
  values_only.method_k = CalibrationMethod::None;
  CalibrateReport report;
  const Calibration v = calibrate({&learn}, values_only, &report);
  EXPECT_TRUE(v.layers[0].k.centre.empty() && v.layers[0].k.forward.empty() && v.layers[0].k.feedback.empty());
  EXPECT_FALSE(v.layers[0].v.centre.empty() || v.layers[0].v.feedback.empty());
  ASSERT_EQ(report.heads.size(), 2u) << "one line a head and calibrated side";
  for (const HeadCalibrationReport& head : report.heads) EXPECT_EQ(head.side, Side::V);

  CalibrateOptions about_zero = options();
  about_zero.centre = false;
  const Calibration z = calibrate({&learn}, about_zero), c = calibrate({&learn}, options());
  EXPECT_TRUE(z.layers[0].k.centre.empty() && z.layers[0].v.centre.empty());
  EXPECT_FALSE(z.layers[0].k.forward.empty());
  const SideSpec pairs = spec_from_name("tq4-2d").k;
  EXPECT_LT(logit_error(test, &z, pairs), logit_error(test, nullptr, pairs));
  EXPECT_LT(logit_error(test, &c, pairs), logit_error(test, &z, pairs));

  about_zero.rope = true;
  EXPECT_THROW(calibrate({&learn}, about_zero), Error);
  values_only.rope = true;
  EXPECT_THROW(calibrate({&learn}, values_only), Error);
  CalibrateOptions nothing = options();
  nothing.spec = spec_from_name("fp8");
  EXPECT_THROW(calibrate({&learn}, nothing), Error);
  nothing.spec = spec_from_name("k8v4");  // keys in FP8: no line for them
  calibrate({&learn}, nothing, &report);
  for (const HeadCalibrationReport& head : report.heads) EXPECT_EQ(head.side, Side::V);
}

TEST(Calibrate, DoesNotDependOnThreads) {
  MemoryDump dump(600, 4);
  CalibrateOptions one = options(), four = options();
  four.threads = 4;
  const Calibration a = calibrate({&dump}, one), b = calibrate({&dump}, four);
  for (const auto side : {&LayerCalibration::k, &LayerCalibration::v}) {
    EXPECT_EQ((a.layers[0].*side).forward, (b.layers[0].*side).forward);
    EXPECT_EQ((a.layers[0].*side).inverse, (b.layers[0].*side).inverse);
    EXPECT_EQ((a.layers[0].*side).feedback, (b.layers[0].*side).feedback);
  }
}

TEST(Calibrate, CentresBeforeRope) {
  MemoryDump dump(500, 5);
  CalibrateOptions o = options();
  o.rope = true;
  const Calibration c = calibrate({&dump}, o);
  EXPECT_EQ(c.layers[0].k.rope_mu.size(), 2u * kDim);
  EXPECT_TRUE(c.layers[0].k.centre.empty());
  EXPECT_FALSE(c.layers[0].v.centre.empty());
  dump.info_.rope_applied = false;
  EXPECT_THROW(calibrate({&dump}, o), Error);
}

TEST(Calibrate, SurvivesDegenerateHeads) {
  MemoryDump dump(300, 6);
  for (std::int64_t i = 0; i < 300 * kDim; ++i) dump.rows(Tensor::K, 0)[i] = 2.5f;  // constant
  for (std::int64_t t = 0; t < 300; ++t) {                                          // rank one
    for (int j = 0; j < kDim; ++j) dump.rows(Tensor::V, 1)[t * kDim + j] = static_cast<float>(t % 17) * (j + 1);
  }
  CalibrateReport report;
  const Calibration c = calibrate({&dump}, options(), &report);
  bool constant = false;
  for (const std::string& w : report.warnings) constant = constant || w.find("keys are constant") != std::string::npos;
  EXPECT_TRUE(constant);
  for (const auto* table :
       {&c.layers[0].k.forward, &c.layers[0].k.inverse, &c.layers[0].v.forward, &c.layers[0].v.inverse, &c.layers[0].v.feedback}) {
    for (const float x : *table) ASSERT_TRUE(std::isfinite(x));
  }
  EXPECT_LT(logit_error(dump, &c, spec_from_name("tq4-2d").k), 1e-9);
}

TEST(Calibrate, WarnsOfFewTokensAndMissingQueries) {
  MemoryDump dump(40, 7, false);
  CalibrateReport report;
  const Calibration c = calibrate({&dump}, options(), &report);
  bool few = false, queries = false;
  for (const std::string& w : report.warnings) {
    few = few || w.find("tokens are few") != std::string::npos;
    queries = queries || w.find("no queries") != std::string::npos;
  }
  EXPECT_TRUE(few);
  EXPECT_TRUE(queries);
  for (const float x : c.layers[0].k.inverse) ASSERT_TRUE(std::isfinite(x));
}

TEST(Calibrate, RefusesDumpsOfDifferentModels) {
  MemoryDump a(100, 8), b(100, 9);
  b.info_.model = "another";
  EXPECT_THROW(calibrate({&a, &b}, options()), Error);
  EXPECT_THROW(check_calibration(calibrate({&a}, options()), b.info_), Error);
  EXPECT_THROW(calibrate({}, options()), Error);
  a.rows(Tensor::K, 1)[5] = std::nanf("");
  EXPECT_THROW(calibrate({&a}, options()), Error);
}

TEST(Linalg, EqualPivotsFactorsWithPairsApart) {
  std::vector<double> values;
  for (int k = 0; k < 64; ++k) values.push_back(std::exp(-0.1 * k));
  const core::EqualPivots p = core::equal_pivots(values);
  for (std::size_t i = 0; i < 64; ++i) {
    for (std::size_t j = 0; j < 64; ++j) {
      double left = 0, right = 0, unit = 0;
      for (std::size_t k = 0; k < 64; ++k) {
        left += p.basis[k * 64 + i] * values[k] * p.basis[k * 64 + j];
        right += p.pivot * p.factor[i * 64 + k] * p.factor[j * 64 + k];
        unit += p.basis[k * 64 + i] * p.basis[k * 64 + j];
      }
      EXPECT_NEAR(left, right, 2e-2 * p.pivot);
      EXPECT_NEAR(unit, i == j ? 1 : 0, 1e-12);
    }
  }
  for (std::size_t i = 1; i < 64; i += 2) EXPECT_EQ(p.factor[i * 64 + i - 1], 0);
}

TEST(Linalg, GeometricMeanSolvesItsEquation) {
  std::mt19937 gen(3);
  std::normal_distribution<double> normal;
  constexpr int n = 12;
  const auto spd = [&] {
    core::Matrix a(n * n);
    for (double& x : a) x = normal(gen);
    core::Matrix s = core::multiply(a, core::transpose(a, n), n);
    for (int i = 0; i < n; ++i) s[static_cast<std::size_t>(i * n + i)] += 0.1;
    return s;
  };
  const core::Matrix a = spd(), b = spd(), m = core::geometric_mean(a, b, n);
  const core::Matrix back = core::multiply(core::multiply(m, core::inverse(a, n), n), m, n);  // M a^-1 M = b
  for (std::size_t i = 0; i < b.size(); ++i) EXPECT_NEAR(back[i], b[i], 1e-9 * core::trace(b, n));
}

}  // namespace
}  // namespace tq4
