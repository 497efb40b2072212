// Vectors in host memory encoded and decoded on the device (tq4/device_rows.h: what --device cuda of the program does) against the CPU's codec: the
// same planes but for coordinates next to a boundary (flips.h), the same vectors; calibrated heads, tables of a file, several threads.
#include "tq4/device_rows.h"

#include <cmath>
#include <thread>

#include "gpu/flips.h"
#include "gpu/gpu_test.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

struct Planes {
  Planes(const Codec& codec, std::size_t n)
      : codes(n * codec.code_bytes()),
        signs(codec.has_signs() ? n * static_cast<std::size_t>(codec.head_dim()) / 8 : 0),
        scale(n),
        zero(n),
        residual(n) {}
  EncodedOut out() { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }
  EncodedIn in() const { return {codes.data(), scale.data(), zero.data(), signs.data(), residual.data()}; }
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual;
};

/// Both sides of one head, tokens 40 and following, against `host` with the head's transform.
void check(const DeviceRows& rows, const LayerCalibration* layer, int head, std::size_t n, DType dtype, Random& random) {
  constexpr std::int64_t kPosition = 40;
  for (const Side side : {Side::K, Side::V}) {
    const Codec& host = rows.host(side);
    const auto dim = static_cast<std::size_t>(host.head_dim());
    const Values x = gaussian(n * dim, dtype, random);
    const HeadTransform transform = head_transform(layer, side, head, kPosition);
    Planes want(host, n), got(host, n);
    host.encode(x.bytes.data(), dtype, static_cast<std::int64_t>(n), want.out(), transform);
    rows.encode(side, head, x.bytes.data(), dtype, static_cast<std::int64_t>(n), kPosition, got.out());
    const Flips flips = count_flips(host, transform, x.floats.data(), n, want.in(), got.in(), transform.rope_mu ? 1e-4 : 1e-5);
    EXPECT_EQ(flips.wrong, 0u) << "side " << static_cast<int>(side) << ", farthest " << flips.farthest;
    EXPECT_LE(flips.codes, 2 + n * dim / 20000);
    std::vector<float> back(n * dim), expected(n * dim);
    rows.decode(side, head, got.in(), static_cast<std::int64_t>(n), kPosition, back.data());
    host.decode(got.in(), static_cast<std::int64_t>(n), expected.data(), transform);
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < back.size(); ++i) {
      error += std::pow(static_cast<double>(back[i]) - static_cast<double>(expected[i]), 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 1e-5);
  }
}

TEST(DeviceRows, AreTheCpus) {
  TQ4_REQUIRE_DEVICE();
  Random random(3);
  for (const char* name : {"tq4", "k4v3", "k8v4", "tq2.5", "k4v4-prod", "fp16", "vllm:k8v4"}) {
    SCOPED_TRACE(name);
    const DeviceRows rows(spec_from_name(name), 64, nullptr, 0);
    for (const std::size_t n : {1u, 90u}) check(rows, nullptr, 5, n, DType::F16, random);
    check(rows, nullptr, 0, 20, DType::F32, random);
  }
}

TEST(DeviceRows, CalibratedHeadsHaveTheirOwnTables) {
  TQ4_REQUIRE_DEVICE();
  Random random(4);
  const CodecSpec spec = spec_from_name("k4v3");
  for (const bool rope : {false, true}) {
    SCOPED_TRACE(rope ? "centred before RoPE" : "centred");
    const LayerCalibration layer = made_up_calibration(spec, 64, 3, {true, true, rope}, random);
    const DeviceRows rows(spec, 64, &layer, 0);
    for (const int head : {2, 0, 1}) check(rows, &layer, head, 50, DType::F16, random);
    std::uint16_t x[64] = {};
    Planes planes(rows.host(Side::K), 1);
    EXPECT_THROW(rows.encode(Side::K, 3, x, DType::F16, 1, 0, planes.out()), Error);
  }
  const LayerCalibration other = made_up_calibration(spec, 64, 1, {}, random);
  EXPECT_THROW(DeviceRows(spec, 128, &other, 0), Error);
}

TEST(DeviceRows, TakesTheTablesOfAFile) {
  TQ4_REQUIRE_DEVICE();
  Random random(5);
  for (const char* name : {"k4v3", "tq4-2d", "tq3.5", "k4v4-prod"}) {
    SCOPED_TRACE(name);
    const CodecSpec spec = spec_from_name(name);
    const DeviceRows rows(spec, Codec(spec.k, 64), Codec(spec.v, 64), 0);
    check(rows, nullptr, 1, 60, DType::F16, random);
  }
}

TEST(DeviceRows, ServesManyThreads) {
  TQ4_REQUIRE_DEVICE();
  const DeviceRows rows(spec_from_name("tq4"), 64, nullptr, 0);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      for (int i = 0; i < 3; ++i) check(rows, nullptr, 0, 10 + 7 * t, DType::F16, random);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace tq4::gpu
