// What goes in: dtypes, zero vectors, NaN and infinity, empty calls, wrong arguments; and the tables a codec can be built from.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "tq4/error.h"
#include "vectors.h"

namespace tq4 {
namespace {

using test::Planes;

const char* const kNames[] = {"tq1",   "tq2",   "tq3",       "tq4",       "tq5",       "tq6",    "tq7", "tq8",
                              "tq2.5", "tq3.5", "k2v2-prod", "k3v3-prod", "k5v5-prod", "tq3-2d", "fp8", "fp16"};

SideSpec side_of(const char* name) { return spec_from_name(name).k; }

template <class Fn>
Error thrown_by(const Fn& fn) {
  try {
    fn();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(ErrorCode::Runtime, "");
}

TEST(CodecInput, EveryCodecTakesEveryMultipleOf8) {
  for (const char* name : kNames) {
    for (const int dim : {32, 40, 56, 72, 104, 136, 200, 264, 504, 512}) {
      SideSpec spec = side_of(name);
      if (spec.rotation == RotationKind::Haar) spec.rotation = RotationKind::HadamardSigned;
      const Codec codec(spec, dim);
      const double limit = spec.kind == CodeKind::Prod   ? 1.12 * codec.theoretical_mse()
                           : spec.kind == CodeKind::Fp8  ? 1e-3
                           : spec.kind == CodeKind::Fp16 ? 1e-7
                                                         : 1.12 * codec.theoretical_mse();
      const double error = test::round_trip_error(codec, test::gaussian_vectors(64, dim, 3));
      EXPECT_LT(error, limit) << name << " at " << dim;
      EXPECT_GT(error, 0) << name << " at " << dim;
    }
  }
  EXPECT_THROW(Codec(side_of("tq4"), 100), Error);
  EXPECT_THROW(Codec(side_of("tq4"), 24), Error);
  EXPECT_THROW(Codec(side_of("tq4"), 520), Error);
}

TEST(CodecInput, ZeroVectorsDecodeToZeroAndNoVectorsNeedNothing) {
  for (const char* name : kNames) {
    const Codec codec(side_of(name), 64);
    std::vector<float> x = test::gaussian_vectors(3, 64, 9);
    std::fill(x.begin() + 64, x.begin() + 128, 0.0f);
    x[70] = -0.0f;
    const Planes planes = test::encode(codec, x);
    if (codec.has_scale()) {
      EXPECT_EQ(planes.scale[1], 0.0f) << name;
    }
    const std::vector<float> back = test::decode(codec, planes, 3);
    for (std::size_t j = 64; j < 128; ++j) EXPECT_EQ(back[j], 0.0f) << name;
    EXPECT_NE(back[0], 0.0f);
    codec.encode(nullptr, DType::F16, 0, {});
    codec.decode({}, 0, nullptr);
    codec.decode_rotated({}, 0, nullptr);
  }
  const Codec uniform(spec_from_name("vllm:4bit_nc").v, 64);
  const std::vector<float> constant(64, 0.75f);
  const Planes planes = test::encode(uniform, constant);
  EXPECT_EQ(planes.scale[0], 0.0f);
  EXPECT_EQ(test::decode(uniform, planes, 1), constant);
}

TEST(CodecInput, NanAndInfinityAreRefusedWithTheirPosition) {
  for (const char* name : {"tq4", "fp8", "fp16", "tq2.5"}) {
    const Codec codec(side_of(name), 32);
    const std::int64_t n = 1300;  // more than one block of rows
    std::vector<float> x = test::gaussian_vectors(n, 32, 4);
    x[1200 * 32 + 7] = std::numeric_limits<float>::quiet_NaN();
    x[1250 * 32 + 1] = -std::numeric_limits<float>::infinity();
    Error error = thrown_by([&] { test::encode(codec, x); });
    EXPECT_EQ(error.code(), ErrorCode::BadInput);
    EXPECT_NE(error.message().find("NaN at vector 1200, coordinate 7"), std::string::npos) << error.message();
    x[3 * 32 + 31] = std::numeric_limits<float>::infinity();
    error = thrown_by([&] { test::encode(codec, x); });
    EXPECT_NE(error.message().find("infinity at vector 3, coordinate 31"), std::string::npos) << error.message();

    Exec zero;
    zero.nonfinite = NonFinite::Zero;
    const Planes replaced = test::encode(codec, x, {}, zero);
    for (float& v : x) v = std::isfinite(v) ? v : 0.0f;
    EXPECT_TRUE(replaced == test::encode(codec, x)) << name;
  }
  // The check is on what was given, in its own dtype.
  const Codec codec(side_of("tq4"), 32);
  std::vector<std::uint16_t> halves(32, 0x3c00);
  halves[5] = 0x7c00;
  Planes planes(codec, 1);
  EXPECT_NE(
      thrown_by([&] { codec.encode(halves.data(), DType::F16, 1, planes.out()); }).message().find("infinity at vector 0, coordinate 5"),
      std::string::npos);
}

TEST(CodecInput, VectorsWhoseSquaredNormOverflowsAreRefused) {
  const Codec codec(side_of("tq4"), 32);
  std::vector<float> x = test::gaussian_vectors(40, 32, 4);
  x[35 * 32] = 1e30f;
  const Error error = thrown_by([&] { test::encode(codec, x); });
  EXPECT_EQ(error.code(), ErrorCode::BadInput);
  EXPECT_NE(error.message().find("vector 35"), std::string::npos) << error.message();
}

TEST(CodecInput, HalfAndBrainFloatsAreConvertedFirst) {
  const Codec codec(side_of("tq4"), 64);
  const std::vector<float> x = test::gaussian_vectors(20, 64, 8);
  for (const DType dtype : {DType::F16, DType::BF16}) {
    std::vector<std::uint16_t> narrow(x.size());
    from_float(x.data(), x.size(), dtype, narrow.data());
    std::vector<float> rounded(x.size());
    to_float(narrow.data(), dtype, x.size(), rounded.data());
    Planes planes(codec, 20);
    codec.encode(narrow.data(), dtype, 20, planes.out());
    EXPECT_TRUE(planes == test::encode(codec, rounded));
  }
  Planes planes(codec, 1);
  EXPECT_EQ(thrown_by([&] { codec.encode(x.data(), DType::F64, 1, planes.out()); }).code(), ErrorCode::Usage);
  EXPECT_EQ(thrown_by([&] { codec.encode(x.data(), DType::F32, -1, planes.out()); }).code(), ErrorCode::Usage);
  EncodedOut without_scale = planes.out();
  without_scale.scale = nullptr;
  EXPECT_EQ(thrown_by([&] { codec.encode(x.data(), DType::F32, 1, without_scale); }).code(), ErrorCode::Usage);
}

TEST(CodecInput, BytesDoNotDependOnHowTheRowsAreCutOrWhoRunsThem) {
  for (const char* name : kNames) {
    const Codec codec(side_of(name), 64);
    const std::int64_t n = 700;
    const std::vector<float> x = test::gaussian_vectors(n, 64, 21);
    const Planes whole = test::encode(codec, x);
    Exec threads, scalar;
    threads.threads = 3;
    scalar.scalar = true;
    EXPECT_TRUE(whole == test::encode(codec, x, {}, threads)) << name;
    EXPECT_TRUE(whole == test::encode(codec, x, {}, scalar)) << name;
    for (const std::int64_t i : {0, 1, 255, 256, 257, 699}) {
      const Planes one = test::encode(codec, std::vector<float>(x.begin() + i * 64, x.begin() + (i + 1) * 64));
      EXPECT_TRUE(std::equal(one.codes.begin(), one.codes.end(), whole.codes.begin() + i * static_cast<std::int64_t>(codec.code_bytes())))
          << name << " " << i;
      if (codec.has_scale()) {
        EXPECT_EQ(one.scale[0], whole.scale[static_cast<std::size_t>(i)]) << name << " " << i;
      }
    }
    EXPECT_EQ(test::decode(codec, whole, n), test::decode(codec, whole, n, {}, threads)) << name;
    EXPECT_EQ(test::decode(codec, whole, n), test::decode(codec, whole, n, {}, scalar)) << name;
  }
}

TEST(CodecTables, ACodecBuiltFromStoredTablesGivesTheSameBytes) {
  for (const char* name : {"tq3", "tq2.5", "k3v3-prod", "tq4-2d", "vllm:3bit_nc", "fp8"}) {
    const Codec made(side_of(name), 64);
    const Codec stored(made.spec(), 64, made.codebook(), made.rotation(), made.pair_table().points.empty() ? nullptr : &made.pair_table(),
                       made.outlier_codebook().centroids.empty() ? nullptr : &made.outlier_codebook(),
                       made.qjl_matrix().empty() ? nullptr : &made.qjl_matrix());
    const std::vector<float> x = test::gaussian_vectors(30, 64, 2);
    EXPECT_TRUE(test::encode(made, x) == test::encode(stored, x)) << name;
  }
  // And it is the tables given that count, not ones derived again.
  const Codec made(side_of("tq3"), 64);
  Codebook wider = made.codebook();
  for (double& c : wider.centroids) c *= 2;
  const Codec other(made.spec(), 64, wider, made.rotation(), nullptr);
  const std::vector<float> x = test::gaussian_vectors(1, 64, 2);
  EXPECT_FLOAT_EQ(test::encode(other, x).scale[0], test::encode(made, x).scale[0] / 2);
  wider.centroids.pop_back();
  EXPECT_EQ(thrown_by([&] { Codec(made.spec(), 64, wider, made.rotation(), nullptr); }).code(), ErrorCode::BadInput);
  EXPECT_EQ(thrown_by([&] { Codec(made.spec(), 64, made.codebook(), make_rotation(RotationKind::Haar, 32, 1), nullptr); }).code(),
            ErrorCode::BadInput);
  PairTable short_table{3, 64, std::vector<float>(20)};
  EXPECT_EQ(thrown_by([&] { Codec(side_of("tq3-2d"), 64, made.codebook(), made.rotation(), &short_table); }).code(), ErrorCode::BadInput);
}

TEST(CodecTables, SizesOfAVector) {
  EXPECT_EQ(Codec(side_of("tq4"), 128).vector_bytes(), 66u);
  EXPECT_EQ(Codec(side_of("tq3"), 72).code_bytes(), 27u);
  EXPECT_EQ(Codec(spec_from_name("turboquant-vllm").k, 128).vector_bytes(), 68u);
  EXPECT_EQ(Codec(spec_from_name("vllm:k8v4").v, 128).vector_bytes(), 68u);
  EXPECT_EQ(Codec(side_of("tq2.5"), 128).code_bytes(), 36u);                 // 32 channels of 3 bits, 96 of 2
  EXPECT_EQ(Codec(side_of("k3v3-prod"), 128).vector_bytes(), 32u + 16 + 4);  // 2-bit codes, signs, scale and residual norm
  EXPECT_EQ(Codec(side_of("fp8"), 128).vector_bytes(), 128u);
  EXPECT_EQ(Codec(side_of("fp16"), 128).vector_bytes(), 256u);
}

}  // namespace
}  // namespace tq4
