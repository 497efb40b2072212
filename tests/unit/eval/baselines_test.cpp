// Baselines: true sizes, errors where theory or a hand computation gives them, exact tokens, names. KIVI is checked against a plain
// transcription of its definition in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "tq4/compressor.h"
#include "tq4/error.h"

namespace {

using tq4::Compressor;
using tq4::HeadVectors;
using tq4::make_compressor;
using tq4::Side;

std::vector<float> gaussian(std::int64_t n, unsigned seed = 1) {
  std::mt19937 gen(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = normal(gen);
  return x;
}

HeadVectors view(const std::vector<float>& x, int dim, Side side) {
  HeadVectors head;
  head.side = side;
  head.dim = dim;
  head.tokens = static_cast<std::int64_t>(x.size()) / dim;
  head.x = x.data();
  return head;
}

std::vector<float> reconstruct(const Compressor& c, const std::vector<float>& x, int dim, Side side) {
  std::vector<float> out(x.size());
  c.reconstruct(view(x, dim, side), out.data());
  return out;
}

double relative_mse(const std::string& name, const std::vector<float>& x, int dim, Side side) {
  const auto y = reconstruct(*make_compressor(name), x, dim, side);
  return tq4::vector_error(x.data(), y.data(), static_cast<std::int64_t>(x.size()) / dim, dim).relative_mse();
}

double bits(const std::string& name, std::int64_t tokens, int dim, Side side) {
  HeadVectors shape;
  shape.side = side, shape.tokens = tokens, shape.dim = dim;
  return make_compressor(name)->footprint(shape).total() / static_cast<double>(tokens * dim);
}

TEST(Baselines, TrueSizes) {
  struct Row {
    const char* name;
    double k, v;
  };
  // 4,096 tokens of 128 values.
  const std::vector<Row> rows{
      {"fp16", 16, 16},
      {"fp8", 8, 8},
      {"int8", 8.125, 8.125},
      {"int4", 4.25, 4.25},
      {"int4-g32", 5, 5},
      {"int4-g128-rot", 4.25, 4.25},
      {"q8_0", 8.5, 8.5},
      {"q4_0", 4.5, 4.5},
      {"q4_0-rot", 4.5, 4.5},
      {"kivi4", 5, 5},
      {"kivi4-g128", 4.25, 4.25},
      {"kivi2", 3, 3},
      {"kivi2-g128", 2.25, 2.25},
      {"nvfp4", 4.5 + 32.0 / (4096 * 128), 4.5 + 32.0 / (4096 * 128)},
      {"mxfp4", 4.25, 4.25},
      {"kvquant4", 4 + 32.0 / 4096 + 256.0 / (4096 * 128), 4.25 + 256.0 / (4096 * 128)},
      {"kvquant4-1%", 4 + 32.0 * 40 / 4096 + 32.0 / 4096 + 256.0 / (4096 * 128), 4.25 + 0.5 + 256.0 / (4096 * 128)},
      {"tq4", 4.125, 4.125},
      {"k3v2", 3.125, 2.125},
      {"turboquant-vllm", 4.25, 4.25},
      {"vllm:k8v4", 8, 4.25},
      {"vllm:4bit_nc", 4.125, 4.25},
      {"vllm:k3v4_nc", 3.125, 4.25},
      {"vllm:3bit_nc", 3.125, 3.25},
      {"tq4-prod", 4.25, 4.125},  // QJL on the keys: norm and residual norm
      // the last 4,096 mod 128 = 0 keys and 128 values in fp16
      {"kivi4-r128", 5, (5.0 * 3968 + 16 * 128) / 4096},
      {"tq4+w64+s4", (4.125 * 4028 + 16 * 68) / 4096, (4.125 * 4028 + 16 * 68) / 4096},
      {"q4_0+w64", (4.5 * 4032 + 16 * 64) / 4096, (4.5 * 4032 + 16 * 64) / 4096},
  };
  for (const Row& row : rows) {
    EXPECT_NEAR(bits(row.name, 4096, 128, Side::K), row.k, 1e-9) << row.name << " K";
    EXPECT_NEAR(bits(row.name, 4096, 128, Side::V), row.v, 1e-9) << row.name << " V";
  }
  // 100 keys past the last whole residual, none compressed yet in the last group.
  EXPECT_NEAR(bits("kivi4-r128", 228, 128, Side::K), (5.0 * 128 + 16 * 100) / 228, 1e-9);
  // Shorter than the window: everything exact.
  EXPECT_NEAR(bits("tq4+w64", 40, 128, Side::V), 16, 1e-9);
}

TEST(Baselines, ErrorsOnGaussianDataAreWhatTheoryGives) {
  const auto x = gaussian(2048 * 128);
  for (const Side side : {Side::K, Side::V}) {
    // b-bit uniform levels over the range of n samples of N(0, 1): (n - 2) / n step^2 / 12 (the extremes are exact), E(range^2) (n - 2) / n
    // being 27 (n = 128) and 16.5 (n = 32).
    EXPECT_NEAR(relative_mse("int4", x, 128, side), 27.0 / 225 / 12, 0.04 * 27.0 / 225 / 12);
    EXPECT_NEAR(relative_mse("int4-g128-rot", x, 128, side), 27.0 / 225 / 12, 0.04 * 27.0 / 225 / 12);
    EXPECT_NEAR(relative_mse("kivi4", x, 128, side), 16.5 / 225 / 12, 0.04 * 16.5 / 225 / 12);
    EXPECT_NEAR(relative_mse("kivi4-g128", x, 128, side), 27.0 / 225 / 12, 0.04 * 27.0 / 225 / 12);
    EXPECT_NEAR(relative_mse("tq4", x, 128, side), 0.0091, 0.02 * 0.0091);
    EXPECT_NEAR(relative_mse("tq2-norm", x, 128, side), 0.116, 0.02 * 0.116);
    // Lloyd-Max levels for N(0, 1) give 0.0095; ranges stored a token (32 bits more) help a little, ranges of 2,048 samples a channel do not.
    EXPECT_GT(relative_mse("kvquant4", x, 128, side), 0.0075);
    EXPECT_LT(relative_mse("kvquant4", x, 128, side), 0.0135);
    EXPECT_LT(relative_mse("kvquant4-1%", x, 128, side), relative_mse("kvquant4", x, 128, side));
    EXPECT_LT(relative_mse("nvfp4", x, 128, side), relative_mse("mxfp4", x, 128, side));
    EXPECT_NEAR(relative_mse("nvfp4", x, 128, side), 0.009, 0.0015);
    EXPECT_LT(relative_mse("q8_0", x, 128, side), 5e-5);
    EXPECT_LT(relative_mse("int8", x, 128, side), 5e-5);
    EXPECT_NEAR(relative_mse("fp8", x, 128, side), 6.8e-4, 1e-4);
    EXPECT_EQ(relative_mse("fp16", gaussian(8 * 32), 32, side), relative_mse("fp16", gaussian(8 * 32), 32, side));
  }
}

TEST(Baselines, EveryNameWorksOnOddShapesAndKeepsConstants) {
  std::vector<std::string> names = tq4::baseline_names();
  for (const char* name : {"int4-g64", "int2-g32-rot", "kivi3-g64-r64", "q8_0-rot", "tq3-2d", "k2v4+w16+s4"}) names.emplace_back(name);
  for (const std::string& name : names) {
    const auto c = make_compressor(name);
    EXPECT_EQ(c->name(), name);
    EXPECT_FALSE(c->description().empty());
    EXPECT_FALSE(c->source().empty());
    for (const int dim : {32, 96, 128}) {
      for (const Side side : {Side::K, Side::V}) {
        const auto x = gaussian(45 * dim, 3);
        const auto y = reconstruct(*c, x, dim, side);
        const double error = tq4::vector_error(x.data(), y.data(), 45, dim).relative_mse();
        EXPECT_GT(error, 0) << name << " " << dim;
        EXPECT_LT(error, 0.35) << name << " " << dim;
        const std::vector<float> zeros(static_cast<std::size_t>(3 * dim), 0.0f);
        EXPECT_EQ(reconstruct(*c, zeros, dim, side), zeros) << name << " keeps zeros";
        const std::vector<float> constant(static_cast<std::size_t>(8 * dim), 2.0f);
        for (const float value : reconstruct(*c, constant, dim, side)) ASSERT_TRUE(std::isfinite(value)) << name << " on constant input";
      }
    }
  }
}

/// KIVI as its paper says, with the fp16 rounding of scale and zero left out.
double kivi_value(const std::vector<float>& x, int dim, std::int64_t tokens, std::int64_t t, int c, Side side, int bits, int group) {
  double lo = 1e30, hi = -1e30;
  if (side == Side::K) {
    const std::int64_t begin = t / group * group;
    for (std::int64_t j = begin; j < std::min<std::int64_t>(tokens, begin + group); ++j) {
      lo = std::min<double>(lo, x[static_cast<std::size_t>(j * dim + c)]),
      hi = std::max<double>(hi, x[static_cast<std::size_t>(j * dim + c)]);
    }
  } else {
    const int begin = c / group * group;
    for (int j = begin; j < std::min(dim, begin + group); ++j) {
      lo = std::min<double>(lo, x[static_cast<std::size_t>(t * dim + j)]),
      hi = std::max<double>(hi, x[static_cast<std::size_t>(t * dim + j)]);
    }
  }
  const double scale = (hi - lo) / ((1 << bits) - 1);
  return lo + scale * std::round((x[static_cast<std::size_t>(t * dim + c)] - lo) / scale);
}

TEST(Baselines, KiviEqualsItsDefinition) {
  const int dim = 96;
  const std::int64_t tokens = 150;  // neither a multiple of the group
  const auto x = gaussian(tokens * dim, 9);
  for (const Side side : {Side::K, Side::V}) {
    for (const auto& [name, bits, group] : {std::tuple{"kivi4", 4, 32}, {"kivi2-g128", 2, 128}, {"kivi4-r32", 4, 32}}) {
      const auto y = reconstruct(*make_compressor(name), x, dim, side);
      int far = 0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (int c = 0; c < dim; ++c) {
          // fp16 moves scale and zero by 2^-11; an index may tip over where a value lies between two levels.
          far += std::fabs(y[static_cast<std::size_t>(t * dim + c)] - kivi_value(x, dim, tokens, t, c, side, bits, group)) > 6e-3 ? 1 : 0;
        }
      }
      EXPECT_LT(far, tokens * dim / 100) << name;
    }
  }
}

TEST(Baselines, KiviResidual) {
  const auto c = make_compressor("kivi4-g128-r128");
  EXPECT_EQ(c->exact(Side::K), (tq4::ExactTokens{0, 0, 128}));
  EXPECT_EQ(c->exact(Side::V), (tq4::ExactTokens{0, 128, 0}));
  EXPECT_EQ(c->exact(Side::K).exact_from(299), 256);  // 300 tokens: 256 compressed
  EXPECT_EQ(c->exact(Side::V).exact_from(299), 172);
}

TEST(Baselines, LlamaBlocksByHand) {
  std::vector<float> x(32, 0.0f);
  x[0] = -8, x[1] = 7, x[2] = 0.49f, x[3] = 0.51f, x[4] = -0.6f, x[5] = 8;
  const auto y = reconstruct(*make_compressor("q4_0"), x, 32, Side::K);
  // The first of equal magnitudes decides the sign of d = -8 / -8 = 1; codes run from -8 to 7, so 8 saturates.
  EXPECT_EQ(y[0], -8);
  EXPECT_EQ(y[1], 7);
  EXPECT_EQ(y[2], 0);
  EXPECT_EQ(y[3], 1);
  EXPECT_EQ(y[4], -1);
  EXPECT_EQ(y[5], 7);
  const auto z = reconstruct(*make_compressor("q8_0"), x, 32, Side::K);
  EXPECT_NEAR(z[0], -8, 1e-2);
  EXPECT_NEAR(z[2], 8.0 / 127 * 8, 1e-3);
  EXPECT_THROW(make_compressor("q4_0")->check(80), tq4::Error);
}

TEST(Baselines, Fp4ByHand) {
  std::vector<float> x(32, 0.0f);
  x[0] = 6, x[1] = 2.5f, x[2] = 3.5f, x[3] = -5, x[4] = 0.2f, x[5] = 0.25f, x[6] = 0.75f;
  const auto y = reconstruct(*make_compressor("mxfp4"), x, 32, Side::K);  // amax 6: scale 2^(2 - 2) = 1
  EXPECT_EQ((std::vector<float>(y.begin(), y.begin() + 7)), (std::vector<float>{6, 2, 4, -4, 0, 0, 1}));
  x[0] = 7.9f;  // the scale stays 1 (floor of the logarithm), so 7.9 saturates at 6
  EXPECT_EQ(reconstruct(*make_compressor("mxfp4"), x, 32, Side::K)[0], 6);
  EXPECT_NEAR(reconstruct(*make_compressor("nvfp4"), x, 32, Side::K)[0], 7.9, 0.05);
}

TEST(Baselines, RotationHelpsOutlierChannelsAndOutliersHelpKvQuant) {
  auto x = gaussian(1024 * 128, 4);
  for (std::size_t t = 0; t < 1024; ++t) x[t * 128 + 5] = x[t * 128 + 5] * 3 + 30;
  EXPECT_LT(relative_mse("int4-g128-rot", x, 128, Side::V), 0.5 * relative_mse("int4", x, 128, Side::V));
  // A channel with an offset costs per-channel keys nothing; per-token levels have to span it.
  EXPECT_LT(relative_mse("kivi4", x, 128, Side::K), 0.1 * relative_mse("int4", x, 128, Side::K));
  EXPECT_LT(relative_mse("kvquant4-1%", x, 128, Side::V), 0.7 * relative_mse("kvquant4", x, 128, Side::V));
}

TEST(Baselines, CalibratedCodecCountsCentresAndRefusesOtherShapes) {
  tq4::Calibration calibration;
  calibration.tokens = 100;
  tq4::LayerCalibration layer;
  layer.layer = 2, layer.num_kv_heads = 1, layer.head_dim = 32;
  layer.k.centre.assign(32, 10.0f);
  calibration.layers.push_back(layer);
  const auto c = tq4::codec_compressor("tq4+cal", tq4::spec_from_name("tq4"), &calibration);
  EXPECT_EQ(c->calibration(), &calibration);
  EXPECT_TRUE(std::isnan(c->theoretical_mse(Side::K, 32)));
  auto x = gaussian(200 * 32, 6);
  for (float& value : x) value += 10;
  HeadVectors head = view(x, 32, Side::K);
  head.layer = 2;
  std::vector<float> y(x.size());
  c->reconstruct(head, y.data());
  const double centred = tq4::vector_error(x.data(), y.data(), 200, 32).error;
  const auto plain = reconstruct(*make_compressor("tq4"), x, 32, Side::K);
  EXPECT_LT(centred, 0.05 * tq4::vector_error(x.data(), plain.data(), 200, 32).error);
  EXPECT_EQ(c->encoded(head).constant_bits, 32 * 32);
  head.layer = 3;
  EXPECT_THROW(c->reconstruct(head, y.data()), tq4::Error);
}

TEST(Baselines, DeviceCodecEqualsTheCpus) {
  std::unique_ptr<Compressor> device;
  const tq4::CodecSpec spec = tq4::spec_from_name("k4v3");
  tq4::Calibration calibration;
  tq4::LayerCalibration layer;
  layer.num_kv_heads = 2, layer.head_dim = 64;
  layer.k.centre.assign(64, 0.0f);
  layer.k.centre.resize(128, 3.0f);
  calibration.layers.push_back(layer);
  tq4::Calibration predictive = calibration;  // codes with feedback are made on the CPU, decoded on the device
  tq4::SideCalibration& k = predictive.layers[0].k;
  k.forward.assign(2 * 64 * 64, 0.0f);
  k.feedback.assign(2 * 64 * 64, 0.0f);
  for (std::size_t i = 0; i < 128; ++i) k.forward[i * 64 + i % 64] = 1;
  k.inverse = k.forward;
  for (const std::size_t at : {2 * 64 + 0, 64 * 64 + 9 * 64 + 4}) k.feedback[at] = k.inverse[at] = 0.5f;
  k.feedback_gain.assign(2, 1.0f);
  for (const tq4::Calibration* tables : {static_cast<const tq4::Calibration*>(nullptr), static_cast<const tq4::Calibration*>(&calibration),
                                         static_cast<const tq4::Calibration*>(&predictive)}) {
    try {
      device = tq4::device_codec_compressor("k4v3", spec, tables, 0);
    } catch (const tq4::Error& e) {
      ASSERT_EQ(e.code(), tq4::ErrorCode::NoDevice);
      GTEST_SKIP() << "no CUDA device is visible: the GPU's codec is not compared";
    }
    const auto host = tq4::codec_compressor("k4v3", spec, tables);
    const auto x = gaussian(300 * 64, 8);
    for (const Side side : {Side::K, Side::V}) {
      HeadVectors head = view(x, 64, side);
      head.head = 1;
      std::vector<float> a(x.size()), b(x.size());
      host->reconstruct(head, a.data());
      device->reconstruct(head, b.data());
      double error = 0, norm = 0;  // the GPU may flip a coordinate that lies next to a boundary
      for (std::size_t i = 0; i < a.size(); ++i) {
        error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
        norm += static_cast<double>(a[i]) * a[i];
      }
      EXPECT_LE(error, 1e-5 * norm);
    }
  }
}

TEST(Baselines, NamesThatAreNotOnes) {
  for (const char* name : {"", "int", "int9", "int4-g", "int4-g32-", "kivi", "kivi4-g128-r100", "kvquant4-2%", "q4_1", "nvfp5", "tq9",
                           "tq4+x", "tq4+w", "int4-g999999999999"}) {
    try {
      make_compressor(name);
      ADD_FAILURE() << name;
    } catch (const tq4::Error& e) {
      EXPECT_EQ(e.code(), tq4::ErrorCode::Usage) << name;
    }
  }
}

}  // namespace
