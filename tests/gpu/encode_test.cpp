// encode against Codec::encode. `sequential` repeats the reference's roundings one by one, so codes and scales must be equal bit for bit; only
// centring before RoPE (sines of another library) may move a coordinate that lies next to a boundary, and is counted. On the tensor cores a
// coordinate within rounding of a boundary may flip: flips are counted and their distance is checked (flips.h).
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "gpu/flips.h"
#include "gpu/gpu_test.h"

namespace tq4::gpu {
namespace {

struct Case {
  const char* spec;
  int dim;
  DType dtype;
  CalibrationOptions calibration;
};

class Encode : public testing::TestWithParam<Case> {};

TEST_P(Encode, GivesTheBytesOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  const Case& c = GetParam();
  constexpr int kHeads = 3;
  Random random(7);
  const CodecSpec spec = spec_from_name(c.spec);
  const LayerCalibration calibration = made_up_calibration(spec, c.dim, kHeads, c.calibration, random);
  const DeviceCodec codec(spec, c.dim, kHeads, &calibration);
  const int many = 64 * codec.device().sm_count / kHeads + 100;  // the kernels for many rows
  Flips flips;
  std::size_t coded = 0;
  for (const int n : {1, 37, many}) {
    if (n == many && c.dim > 256) continue;
    const std::size_t rows = static_cast<std::size_t>(n) * kHeads, dim = static_cast<std::size_t>(c.dim);
    const Values x = gaussian(rows * dim, c.dtype, random);
    std::vector<std::uint8_t> bytes = x.bytes;
    if (n == 37)
      std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(5 * dim * dtype_size(c.dtype)), dim * dtype_size(c.dtype),
                  std::uint8_t{0});  // a zero row
    const Device<std::uint8_t> device_x(bytes);
    std::vector<std::int64_t> positions(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = 1000 + static_cast<std::int64_t>(i);
    const Device<std::int64_t> device_positions(positions);
    for (const Side side : {Side::K, Side::V}) {
      const Codec& host = codec.host(side);
      Device<std::uint8_t> codes(rows * host.code_bytes()), signs(rows * dim / 8);
      Device<float> scale(rows), zero(rows), residual(rows);
      EncodeParams p;
      p.x = device_x.get();
      p.x_dtype = c.dtype;
      p.n = n;
      p.heads = kHeads;
      p.positions = device_positions.get();
      p.out = {codes.get(), scale.get(), zero.get(), signs.get(), residual.get()};
      encode(codec, side, p, nullptr);
      const std::vector<std::uint8_t> tensor_codes = codes.host();
      const std::vector<float> tensor_scale = scale.host(), tensor_zero = zero.host();
      p.sequential = true;
      codes.fill(0xa5), scale.fill(0xa5), zero.fill(0xa5);
      encode(codec, side, p, nullptr);
      const std::vector<std::uint8_t> got = codes.host(), got_signs = signs.host();
      const std::vector<float> got_scale = scale.host(), got_zero = zero.host(), got_residual = residual.host();

      std::size_t differing_rows = 0, other_sums = 0;
      for (int h = 0; h < kHeads; ++h) {
        std::vector<std::uint8_t> head_bytes(static_cast<std::size_t>(n) * dim * dtype_size(c.dtype));
        const std::size_t row_bytes = dim * dtype_size(c.dtype);
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
          std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>((i * kHeads + static_cast<std::size_t>(h)) * row_bytes), row_bytes,
                      head_bytes.begin() + static_cast<std::ptrdiff_t>(i * row_bytes));
        }
        const auto count = static_cast<std::size_t>(n);
        std::vector<std::uint8_t> want(count * host.code_bytes()), want_signs(count * dim / 8);
        std::vector<float> want_scale(count), want_zero(count), want_residual(count);
        host.encode(head_bytes.data(), c.dtype, n,
                    {want.data(), want_scale.data(), want_zero.data(), want_signs.data(), want_residual.data()},
                    head_transform(&calibration, side, h, 1000));
        if (!(c.calibration.rope && side == Side::K)) {
          std::vector<float> rows_x(count * dim);
          to_float(head_bytes.data(), c.dtype, rows_x.size(), rows_x.data());
          std::vector<std::uint8_t> head_codes(want.size());
          std::vector<float> head_scale(count), head_zero(count);
          for (std::size_t i = 0; i < count; ++i) {
            const std::size_t at = i * kHeads + static_cast<std::size_t>(h);
            std::copy_n(tensor_codes.begin() + static_cast<std::ptrdiff_t>(at * host.code_bytes()), host.code_bytes(),
                        head_codes.begin() + static_cast<std::ptrdiff_t>(i * host.code_bytes()));
            head_scale[i] = tensor_scale[at];
            head_zero[i] = tensor_zero[at];
          }
          flips += count_flips(host, head_transform(&calibration, side, h, 1000), rows_x.data(), count,
                               {want.data(), want_scale.data(), want_zero.data(), nullptr, nullptr},
                               {head_codes.data(), head_scale.data(), head_zero.data(), nullptr, nullptr});
          coded += count * dim;
        }
        for (std::size_t i = 0; i < count; ++i) {
          const std::size_t at = i * kHeads + static_cast<std::size_t>(h);
          const bool same = std::equal(want.begin() + static_cast<std::ptrdiff_t>(i * host.code_bytes()),
                                       want.begin() + static_cast<std::ptrdiff_t>((i + 1) * host.code_bytes()),
                                       got.begin() + static_cast<std::ptrdiff_t>(at * host.code_bytes()));
          differing_rows += same ? 0 : 1;
          if (host.has_scale()) other_sums += want_scale[i] == got_scale[at] ? 0 : 1;
          if (host.has_zero()) other_sums += want_zero[i] == got_zero[at] ? 0 : 1;
          if (host.has_signs()) {
            other_sums += want_residual[i] == got_residual[at] ? 0 : 1;
            for (std::size_t b = 0; b < dim / 8; ++b) other_sums += want_signs[i * dim / 8 + b] == got_signs[at * dim / 8 + b] ? 0 : 1;
          }
        }
      }
      const std::size_t allowed = c.calibration.rope && side == Side::K ? 1 + rows / 500 : 0;
      EXPECT_LE(differing_rows, allowed) << c.spec << " n " << n << (side == Side::K ? " K" : " V");
      EXPECT_LE(other_sums, allowed) << c.spec << " n " << n << (side == Side::K ? " K" : " V");
    }
  }
  EXPECT_EQ(flips.wrong, 0u) << "farthest " << flips.farthest;
  EXPECT_LE(flips.codes, 2 + coded / 20000);
  EXPECT_LE(flips.scales, 2 + coded / static_cast<std::size_t>(c.dim) / 200);
  std::printf("%zu of %zu codes flipped (at most %.1e from a boundary), %zu of %zu scales\n", flips.codes, coded, flips.farthest,
              flips.scales, coded / static_cast<std::size_t>(c.dim));
}

/// Codes and scales of fp16 rows of one head: as the device makes them, and as the CPU does (of `host_bytes`).
struct Encoded {
  std::vector<std::uint8_t> codes, want;
  std::vector<float> scale, want_scale;
};
Encoded encode_rows(const DeviceCodec& codec, const std::vector<std::uint8_t>& bytes, const std::vector<std::uint8_t>& host_bytes,
                    std::size_t rows, bool single_fp16_rotation = false) {
  const Codec& host = codec.host(Side::K);
  const Device<std::uint8_t> x(bytes), codes(rows * host.code_bytes());
  const Device<float> scale(rows);
  EncodeParams p;
  p.x = x.get();
  p.n = static_cast<std::int64_t>(rows);
  p.out = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
  p.single_fp16_rotation = single_fp16_rotation;
  encode(codec, Side::K, p, nullptr);
  Encoded e{codes.host(), std::vector<std::uint8_t>(codes.size()), scale.host(), std::vector<float>(rows)};
  host.encode(host_bytes.data(), DType::F16, p.n, {e.want.data(), e.want_scale.data(), nullptr, nullptr, nullptr});
  return e;
}

/// What single_fp16_rotation costs: flips are counted, none is far.
TEST(EncodeSingle, FlipsAreCounted) {
  TQ4_REQUIRE_DEVICE();
  Random random(17);
  const DeviceCodec codec(spec_from_name("tq4"), 128, 1);
  const Codec& host = codec.host(Side::K);
  for (const std::size_t rows : {std::size_t{50}, static_cast<std::size_t>(64 * codec.device().sm_count)}) {
    const Values x = gaussian(rows * 128, DType::F16, random);
    const Encoded e = encode_rows(codec, x.bytes, x.bytes, rows, true);
    const Flips flips = count_flips(host, {}, x.floats.data(), rows, {e.want.data(), e.want_scale.data(), nullptr, nullptr, nullptr},
                                    {e.codes.data(), e.scale.data(), nullptr, nullptr, nullptr}, 3e-4);
    std::printf("single fp16 product: %zu of %zu codes flipped (at most %.1e from a boundary), %zu of %zu scales\n", flips.codes,
                rows * 128, flips.farthest, flips.scales, rows);
    EXPECT_EQ(flips.wrong, 0u);
    EXPECT_LE(flips.codes, rows * 128 / 500);
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = std::string(info.param.spec) + "_d" + std::to_string(info.param.dim) + "_" +
                     std::string(dtype_name(info.param.dtype)) + (info.param.calibration.matrices ? "_matrices" : "") +
                     (info.param.calibration.centres ? "_centres" : "") + (info.param.calibration.rope ? "_rope" : "");
  for (char& ch : name) {
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Codecs, Encode,
    testing::Values(Case{"tq4", 128, DType::F16, {}}, Case{"tq4", 128, DType::BF16, {}}, Case{"tq4", 128, DType::F32, {}},
                    Case{"tq4", 64, DType::F16, {}}, Case{"tq3", 128, DType::F16, {}}, Case{"tq3", 96, DType::F16, {}},
                    Case{"tq2", 80, DType::F16, {}}, Case{"tq1", 72, DType::F16, {}}, Case{"tq5", 256, DType::F16, {}},
                    Case{"tq8", 512, DType::F16, {}}, Case{"k4v3", 32, DType::F16, {}}, Case{"tq6", 128, DType::F16, {}},
                    Case{"tq7", 40, DType::BF16, {}}, Case{"tq4-2d", 128, DType::F16, {}}, Case{"tq3-2d", 64, DType::F16, {}},
                    Case{"tq4-norm", 128, DType::F16, {}}, Case{"tq4-prod", 128, DType::F16, {}}, Case{"tq3-prod", 64, DType::F16, {}},
                    Case{"tq2.5", 128, DType::F16, {}}, Case{"tq3.5", 96, DType::F16, {}}, Case{"fp8", 128, DType::F16, {}},
                    Case{"fp16", 128, DType::BF16, {}}, Case{"k8v4", 128, DType::F16, {}}, Case{"vllm:k8v4", 128, DType::F16, {}},
                    Case{"vllm:4bit_nc", 128, DType::F16, {}}, Case{"vllm:k3v4_nc", 64, DType::F16, {}},
                    Case{"vllm:3bit_nc", 256, DType::F16, {}}, Case{"turboquant-vllm", 128, DType::F16, {}},
                    Case{"turboquant-vllm-k3v4", 96, DType::F16, {}}, Case{"turboquant-vllm-k3v4", 128, DType::BF16, {}},
                    Case{"turboquant-vllm", 64, DType::F16, {}}, Case{"turboquant-vllm", 64, DType::F32, {}},
                    Case{"turboquant-vllm", 64, DType::BF16, {}}, Case{"turboquant-vllm", 128, DType::F32, {}},
                    Case{"turboquant-vllm", 256, DType::F16, {}}, Case{"turboquant-vllm", 128, DType::BF16, {false, true, false}},
                    Case{"tq4", 128, DType::F16, {true, false, false}}, Case{"tq4", 128, DType::F16, {true, true, false}},
                    Case{"tq4-2d", 64, DType::BF16, {true, true, false}}, Case{"tq4", 128, DType::F16, {false, false, true}},
                    Case{"tq3", 64, DType::F16, {true, true, true}}, Case{"tq4", 256, DType::F16, {}}, Case{"k4v3", 256, DType::F16, {}}),
    case_name);

/// Hadamard rotations of sizes that are no power of two, with and without signs: blocks as on the CPU.
TEST(EncodeHadamard, BlocksAreThoseOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  Random random(3);
  for (const int dim : {32, 80, 96, 128, 192, 256, 512}) {
    for (const RotationKind kind : {RotationKind::Hadamard, RotationKind::HadamardSigned}) {
      CodecSpec spec = spec_from_name("tq4");
      spec.k.rotation = spec.v.rotation = kind;
      const DeviceCodec codec(spec, dim, 1);
      constexpr std::size_t kRows = 50;
      const Values x = gaussian(kRows * static_cast<std::size_t>(dim), DType::F16, random);
      const Device<std::uint8_t> device_x(x.bytes), codes(kRows * codec.host(Side::K).code_bytes());
      const Device<float> scale(kRows);
      EncodeParams p;
      p.x = device_x.get();
      p.n = kRows;
      p.out = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
      encode(codec, Side::K, p, nullptr);
      const auto tensor_codes = codes.host();
      const auto tensor_scale = scale.host();
      p.sequential = true;
      encode(codec, Side::K, p, nullptr);
      std::vector<std::uint8_t> want(codes.size());
      std::vector<float> want_scale(kRows);
      codec.host(Side::K).encode(x.bytes.data(), DType::F16, kRows, {want.data(), want_scale.data(), nullptr, nullptr, nullptr});
      EXPECT_EQ(codes.host(), want) << dim;
      EXPECT_EQ(scale.host(), want_scale) << dim;
      const Flips flips =
          count_flips(codec.host(Side::K), {}, x.floats.data(), kRows, {want.data(), want_scale.data(), nullptr, nullptr, nullptr},
                      {tensor_codes.data(), tensor_scale.data(), nullptr, nullptr, nullptr});
      EXPECT_EQ(flips.wrong, 0u) << dim;
      EXPECT_LE(flips.codes + flips.scales, 3u) << dim;
    }
  }
}

/// As many rows as the kernels for many take, dense and with heads far apart: flips are next to boundaries and few.
TEST(EncodeHadamard, ManyRowsAreThoseOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  Random random(13);
  struct Rows {
    const char* spec;
    int dim;
    RotationKind kind;
    DType dtype;
    bool strided;
    int times = 1;
  };
  constexpr RotationKind kPlain = RotationKind::Hadamard, kSigned = RotationKind::HadamardSigned;
  for (const Rows& c : {Rows{"tq4", 128, kPlain, DType::F16, false}, Rows{"tq4", 64, kPlain, DType::F16, false},
                        Rows{"tq4", 256, kPlain, DType::F16, false}, Rows{"tq3", 128, kSigned, DType::BF16, true},
                        Rows{"tq4", 64, kSigned, DType::F16, true}, Rows{"tq2", 64, kPlain, DType::F32, false},
                        Rows{"tq4", 256, kPlain, DType::BF16, false}, Rows{"tq3", 256, kSigned, DType::F32, true},
                        Rows{"tq4", 128, kSigned, DType::F32, true}, Rows{"tq4", 128, kPlain, DType::F16, false, 10},
                        Rows{"tq4", 256, kPlain, DType::F16, false, 10}}) {
    SCOPED_TRACE(std::string(c.spec) + " d" + std::to_string(c.dim) + " " + std::string(dtype_name(c.dtype)));
    CodecSpec spec = spec_from_name(c.spec);
    spec.k.rotation = spec.v.rotation = c.kind;
    constexpr int kHeads = 3;
    const DeviceCodec codec(spec, c.dim, kHeads);
    const Codec& host = codec.host(Side::K);
    const auto n = static_cast<std::size_t>(c.times * 64 * codec.device().sm_count / kHeads + 45), rows = n * kHeads,
               dim = static_cast<std::size_t>(c.dim);
    const Values x = gaussian(rows * dim, c.dtype, random);  // [n][heads][D], on the device [heads][n][D] where strided
    std::vector<std::uint8_t> there = x.bytes;
    const std::size_t row_bytes = dim * dtype_size(c.dtype);
    if (c.strided) {
      for (std::size_t i = 0; i < rows; ++i)
        std::copy_n(x.bytes.begin() + static_cast<std::ptrdiff_t>(i * row_bytes), row_bytes,
                    there.begin() + static_cast<std::ptrdiff_t>((i % kHeads * n + i / kHeads) * row_bytes));
    }
    const Device<std::uint8_t> device_x(there);
    Device<std::uint8_t> codes(rows * host.code_bytes());
    Device<float> scale(rows);
    codes.fill(0xa5), scale.fill(0xa5);
    EncodeParams p;
    p.x = device_x.get();
    p.x_dtype = c.dtype;
    p.n = static_cast<std::int64_t>(n);
    p.heads = kHeads;
    p.token_stride = c.strided ? c.dim : 0;
    p.head_stride = c.strided ? static_cast<std::int64_t>(n * dim) : 0;
    p.out = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
    encode(codec, Side::K, p, nullptr);
    std::vector<std::uint8_t> want(codes.size());
    std::vector<float> want_scale(rows);
    host.encode(x.bytes.data(), c.dtype, static_cast<std::int64_t>(rows), {want.data(), want_scale.data(), nullptr, nullptr, nullptr});
    const auto got = codes.host();
    const auto got_scale = scale.host();
    const Flips flips = count_flips(host, {}, x.floats.data(), rows, {want.data(), want_scale.data(), nullptr, nullptr, nullptr},
                                    {got.data(), got_scale.data(), nullptr, nullptr, nullptr});
    EXPECT_EQ(flips.wrong, 0u) << "farthest " << flips.farthest;
    EXPECT_LE(flips.codes, 2 + rows * dim / 100000);
    EXPECT_LE(flips.scales, 2 + rows / 500);
  }
}

/// Rows with a coordinate that is infinite or no number, which the CPU refuses, get codes 0 and a scale that is not finite; rows of zeros the CPU's,
/// and the others are left alone.
TEST(EncodeHadamard, RowsThatAreNotFinite) {
  TQ4_REQUIRE_DEVICE();
  Random random(29);
  for (const auto& [kind, dim] : {std::pair{RotationKind::Haar, 128}, std::pair{RotationKind::Hadamard, 128},
                                  std::pair{RotationKind::Haar, 256}, std::pair{RotationKind::Hadamard, 256}}) {
    SCOPED_TRACE(dim);
    CodecSpec spec = spec_from_name("tq4");
    spec.k.rotation = spec.v.rotation = kind;
    const DeviceCodec codec(spec, dim, 1);
    const auto rows = static_cast<std::size_t>(64 * codec.device().sm_count + 19), row_bytes = static_cast<std::size_t>(2 * dim),
               code_bytes = static_cast<std::size_t>(dim / 2);
    const auto at = [](auto&& bytes, std::size_t i) { return bytes.begin() + static_cast<std::ptrdiff_t>(i); };
    Values x = gaussian(rows * static_cast<std::size_t>(dim), DType::F16, random);
    for (std::size_t i = 0; i < rows; i += 37) std::fill_n(at(x.bytes, i * row_bytes), row_bytes, std::uint8_t{0});
    std::vector<std::uint8_t> bytes = x.bytes;
    for (std::size_t i = 0; i < rows; i += 37) {
      if (i % 3 != 2) bytes[i * row_bytes + i % static_cast<std::size_t>(dim) * 2 + 1] = i % 3 == 0 ? 0x7c : 0x7e;
    }
    const auto [got, want, got_scale, want_scale] = encode_rows(codec, bytes, x.bytes, rows);
    std::size_t differ = 0;
    for (std::size_t i = 0; i < rows; ++i) {
      const bool same = std::equal(at(want, code_bytes * i), at(want, code_bytes * (i + 1)), at(got, code_bytes * i));
      if (i % 37 == 0 && i % 3 != 2) {
        EXPECT_EQ(std::count(at(got, code_bytes * i), at(got, code_bytes * (i + 1)), 0), dim / 2) << i;
        EXPECT_FALSE(std::isfinite(got_scale[i])) << i;
      } else if (i % 37 == 0) {
        EXPECT_TRUE(same) << i;
        EXPECT_EQ(got_scale[i], 0.0f) << i;
      } else {
        differ += same ? 0 : 1;
      }
    }
    EXPECT_LE(differ, 2 + rows / 500);
  }
}

/// So many rows of a dense matrix that blocks do not share them alike (warp_tiles()), and at 256 coordinates more than one batch (hopper_wide.cu); the
/// last tile is not whole.
TEST(EncodeDense, ManyRoundsAreThoseOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  Random random(31);
  for (const auto& [name, dim] :
       {std::pair{"tq4", 256}, std::pair{"tq3-norm", 256}, std::pair{"tq4", 128}, std::pair{"turboquant-vllm", 64}}) {
    SCOPED_TRACE(std::string(name) + " d" + std::to_string(dim));
    const DeviceCodec codec(spec_from_name(name), dim, 1);
    const Codec& host = codec.host(Side::K);
    const auto rows = static_cast<std::size_t>(26 * 64 * codec.device().sm_count + 45), elements = rows * static_cast<std::size_t>(dim);
    const Values x = gaussian(elements, DType::F16, random);
    const Encoded e = encode_rows(codec, x.bytes, x.bytes, rows);
    const Flips flips = count_flips(host, {}, x.floats.data(), rows, {e.want.data(), e.want_scale.data(), nullptr, nullptr, nullptr},
                                    {e.codes.data(), e.scale.data(), nullptr, nullptr, nullptr});
    EXPECT_EQ(flips.wrong, 0u) << "farthest " << flips.farthest;
    EXPECT_LE(flips.codes, 2 + elements / 100000);
    EXPECT_LE(flips.scales, 2 + rows / 200);
  }
}

TEST(EncodeStrides, RowsMayLieAnywhere) {
  TQ4_REQUIRE_DEVICE();
  Random random(5);
  constexpr std::size_t kTokens = 20, kHeads = 2, kDim = 64;
  const DeviceCodec codec(spec_from_name("tq4"), kDim, kHeads);
  const Values x = gaussian(kTokens * kHeads * kDim, DType::F16, random);  // [heads][tokens][D]
  const Device<std::uint8_t> device_x(x.bytes), codes(kTokens * kHeads * kDim / 2);
  const Device<float> scale(kTokens * kHeads);
  EncodeParams p;
  p.x = device_x.get();
  p.n = kTokens;
  p.heads = kHeads;
  p.token_stride = kDim;
  p.head_stride = kTokens * kDim;
  p.out = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
  p.sequential = true;
  encode(codec, Side::V, p, nullptr);
  std::vector<std::uint8_t> want(codes.size());
  std::vector<float> want_scale(scale.size());
  codec.host(Side::V).encode(x.bytes.data(), DType::F16, kTokens * kHeads, {want.data(), want_scale.data(), nullptr, nullptr, nullptr});
  const std::vector<std::uint8_t> got = codes.host();
  for (std::size_t t = 0; t < kTokens; ++t) {
    for (std::size_t h = 0; h < kHeads; ++h) {
      for (std::size_t b = 0; b < kDim / 2; ++b) ASSERT_EQ(got[(t * kHeads + h) * kDim / 2 + b], want[(h * kTokens + t) * kDim / 2 + b]);
    }
  }
}

}  // namespace
}  // namespace tq4::gpu
