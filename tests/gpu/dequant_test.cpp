// dequant and dequant_pages against Codec::decode: the same floats bit for bit in rotated space and, where no sine is involved and `sequential` is
// set, in original space; fp16 and bf16 are those floats rounded. On the tensor cores: close to them.
#include <cmath>
#include <cstring>

#include "gpu/decode_harness.h"

namespace tq4::gpu {
namespace {

TEST(Dequant, PlanesGiveTheFloatsOfTheCpu) {
  TQ4_REQUIRE_DEVICE();
  Random random(21);
  struct Case {
    const char* spec;
    int dim;
    CalibrationOptions calibration;
    RotationKind rotation = RotationKind::None;  ///< None: the codec's own
  };
  constexpr int kHeads = 2;
  constexpr RotationKind kHadamard = RotationKind::Hadamard, kSigned = RotationKind::HadamardSigned;
  constexpr std::size_t kTokens = 301;  // more than the tensor cores' tiles of 64 rows, and no multiple of them
  for (const Case& c : {Case{"tq4", 128, {}},
                        Case{"tq3", 96, {}},
                        Case{"tq2", 64, {}},
                        Case{"tq1", 80, {}},
                        Case{"tq6", 256, {}},
                        Case{"tq8", 512, {}},
                        Case{"tq4-2d", 128, {}},
                        Case{"tq4-prod", 64, {}},
                        Case{"tq2.5", 128, {}},
                        Case{"k8v4", 128, {}},
                        Case{"fp16", 72, {}},
                        Case{"vllm:4bit_nc", 128, {}},
                        Case{"vllm:3bit_nc", 96, {}},
                        Case{"tq4", 128, {true, true, false}},
                        Case{"tq4", 128, {true, true, true}},
                        Case{"tq4", 128, {}, kHadamard},
                        Case{"tq3", 128, {}, kSigned},
                        Case{"tq2", 64, {}, kHadamard},
                        Case{"tq4", 64, {}, kSigned},
                        Case{"tq1", 128, {}, kHadamard},
                        Case{"tq4", 256, {}, kHadamard},
                        Case{"tq4", 256, {}},
                        Case{"tq3", 256, {true, true, false}},
                        Case{"tq1", 64, {}}}) {
    CodecSpec spec = spec_from_name(c.spec);
    if (c.rotation != RotationKind::None) spec.k.rotation = spec.v.rotation = c.rotation;
    const LayerCalibration calibration = made_up_calibration(spec, c.dim, kHeads, c.calibration, random);
    const DeviceCodec codec(spec, c.dim, kHeads, &calibration);
    const auto dim = static_cast<std::size_t>(c.dim);
    const std::size_t rows = kTokens * kHeads;
    const Values x = gaussian(rows * dim, DType::F16, random);
    std::vector<std::int64_t> positions(kTokens);
    for (std::size_t i = 0; i < kTokens; ++i) positions[i] = 50 + static_cast<std::int64_t>(i);
    const Device<std::uint8_t> device_x(x.bytes);
    const Device<std::int64_t> device_positions(positions);
    for (const Side side : {Side::K, Side::V}) {
      SCOPED_TRACE(std::string(c.spec) + " d" + std::to_string(c.dim) + (side == Side::K ? " K" : " V"));
      const Codec& host = codec.host(side);
      const Device<std::uint8_t> codes(rows * host.code_bytes()), signs(rows * dim / 8);
      const Device<float> scale(rows), zero(rows), residual(rows);
      EncodeParams e;
      e.x = device_x.get();
      e.n = kTokens;
      e.heads = kHeads;
      e.positions = device_positions.get();
      e.out = {codes.get(), scale.get(), zero.get(), signs.get(), residual.get()};
      encode(codec, side, e, nullptr);
      const auto h_codes = codes.host(), h_signs = signs.host();
      const auto h_scale = scale.host(), h_zero = zero.host(), h_residual = residual.host();
      for (const bool rotated : {true, false}) {
        std::vector<float> want(rows * dim);
        for (std::size_t h = 0; h < kHeads; ++h) {
          std::vector<std::uint8_t> hc, hs;
          std::vector<float> sc, ze, re, values(kTokens * dim);
          for (std::size_t t = 0; t < kTokens; ++t) {
            const std::size_t at = t * kHeads + h;
            hc.insert(hc.end(), h_codes.begin() + static_cast<std::ptrdiff_t>(at * host.code_bytes()),
                      h_codes.begin() + static_cast<std::ptrdiff_t>((at + 1) * host.code_bytes()));
            hs.insert(hs.end(), h_signs.begin() + static_cast<std::ptrdiff_t>(at * dim / 8),
                      h_signs.begin() + static_cast<std::ptrdiff_t>((at + 1) * dim / 8));
            sc.push_back(h_scale[at]), ze.push_back(h_zero[at]), re.push_back(h_residual[at]);
          }
          const EncodedIn in{hc.data(), sc.data(), ze.data(), hs.data(), re.data()};
          if (rotated) {
            host.decode_rotated(in, kTokens, values.data());
          } else {
            host.decode(in, kTokens, values.data(), head_transform(&calibration, side, static_cast<int>(h), 50));
          }
          for (std::size_t t = 0; t < kTokens; ++t) {
            std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(t * dim), dim,
                        want.begin() + static_cast<std::ptrdiff_t>((t * kHeads + h) * dim));
          }
        }
        for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
          const Device<std::uint8_t> out(rows * dim * dtype_size(dtype));
          DequantParams p;
          p.in = {codes.get(), scale.get(), zero.get(), signs.get(), residual.get()};
          p.n = kTokens;
          p.heads = kHeads;
          p.out = out.get();
          p.out_dtype = dtype;
          p.rotated = rotated;
          p.positions = device_positions.get();
          dequant(codec, side, p, nullptr);
          if (!rotated) {
            const std::vector<std::uint8_t> close = out.host();
            std::vector<float> values(rows * dim);
            to_float(close.data(), dtype, values.size(), values.data());
            const double limit = dtype == DType::F32 ? 2e-6 : dtype == DType::F16 ? 1e-3 : 4e-3;
            for (std::size_t r = 0; r < rows; ++r) {
              double error = 0, norm = 0;
              for (std::size_t j = 0; j < dim; ++j) {
                error += std::pow(static_cast<double>(values[r * dim + j]) - static_cast<double>(want[r * dim + j]), 2);
                norm += std::pow(static_cast<double>(want[r * dim + j]), 2);
              }
              ASSERT_LE(std::sqrt(error), limit * std::sqrt(norm) + (c.calibration.rope ? 1e-3 : 0.0)) << dtype_name(dtype) << " row " << r;
            }
            p.sequential = true;
            dequant(codec, side, p, nullptr);
          }
          const std::vector<std::uint8_t> got = out.host();
          if (c.calibration.rope && side == Side::K && !rotated) {
            std::vector<float> values(rows * dim);
            to_float(got.data(), dtype, values.size(), values.data());
            for (std::size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], want[i], dtype == DType::F32 ? 1e-5 : 0.05);
          } else {
            std::vector<std::uint8_t> bytes(got.size());
            from_float(want.data(), want.size(), dtype, bytes.data());
            EXPECT_TRUE(got == bytes) << dtype_name(dtype) << (rotated ? " rotated" : "");
          }
        }
      }
    }
  }
}

/// So many rows that every block goes round its ring of codes twice and more, and the last tile is not full: as the CPU sums.
TEST(Dequant, ManyRows) {
  TQ4_REQUIRE_DEVICE();
  Random random(22);
  for (const auto& [name, dim] : {std::pair{"tq4", 128}, std::pair{"tq3", 64}, std::pair{"tq2", 256}, std::pair{"vllm:3bit_nc", 128}}) {
    SCOPED_TRACE(name);
    CodecSpec spec = spec_from_name(name);
    spec.k.rotation = spec.v.rotation = RotationKind::HadamardSigned;
    const DeviceCodec codec(spec, dim, 1);
    const auto d = static_cast<std::size_t>(dim), rows = static_cast<std::size_t>(codec.device().sm_count) * 64 * 4 * 9 + 37;
    std::vector<std::uint8_t> bytes(rows * codec.host(Side::K).code_bytes());
    for (std::uint8_t& b : bytes) b = static_cast<std::uint8_t>(random());
    std::vector<float> scales(rows);
    for (float& s : scales) s = 0.5f + static_cast<float>(random() % 1024) / 512.0f;
    const Device<std::uint8_t> codes(bytes), fast(rows * d * 2), slow(rows * d * 2);
    const Device<float> scale(scales);
    DequantParams p;
    p.in = {codes.get(), scale.get(), nullptr, nullptr, nullptr};
    p.n = static_cast<std::int64_t>(rows);
    p.heads = 1;
    p.rotated = false;
    p.out_dtype = DType::F16;
    p.out = fast.get();
    dequant(codec, Side::K, p, nullptr);
    p.sequential = true;
    p.out = slow.get();
    dequant(codec, Side::K, p, nullptr);
    const std::vector<std::uint8_t> fast_bytes = fast.host(), slow_bytes = slow.host();
    std::vector<float> got(rows * d), want(rows * d);
    to_float(fast_bytes.data(), DType::F16, got.size(), got.data());
    to_float(slow_bytes.data(), DType::F16, want.size(), want.data());
    for (std::size_t r = 0; r < rows; ++r) {
      double error = 0, norm = 0;
      for (std::size_t j = r * d; j < (r + 1) * d; ++j) {
        error += std::pow(static_cast<double>(got[j]) - static_cast<double>(want[j]), 2);
        norm += static_cast<double>(want[j]) * static_cast<double>(want[j]);
      }
      ASSERT_LE(std::sqrt(error), 1e-3 * std::sqrt(norm)) << "row " << r;
    }
  }
}

TEST(Dequant, HighNibbleFirst) {
  TQ4_REQUIRE_DEVICE();
  Random random(5);
  for (const int dim : {64, 96, 128, 256}) {
    for (const char* name : {"turboquant-vllm", "turboquant-vllm-k3v2"}) {
      const DeviceCodec codec(spec_from_name(name), dim, 1);
      const Codec& host = codec.host(Side::K);
      constexpr std::size_t kRows = 40;
      const auto d = static_cast<std::size_t>(dim);
      const int bits = host.spec().bits;
      std::vector<std::uint8_t> nibbles(kRows * d / 2), packed(kRows * host.code_bytes());
      for (std::size_t i = 0; i < kRows * d; ++i) {
        const unsigned code = random() % (1u << bits);
        nibbles[i / 2] = static_cast<std::uint8_t>(i % 2 == 0 ? (nibbles[i / 2] & 0x0f) | code << 4 : (nibbles[i / 2] & 0xf0) | code);
        const std::size_t row = i / d, bit = i % d * static_cast<std::size_t>(bits);
        for (int b = 0; b < bits; ++b) {
          if (code >> b & 1)
            packed[row * host.code_bytes() + (bit + static_cast<std::size_t>(b)) / 8] |=
                static_cast<std::uint8_t>(1u << ((bit + static_cast<std::size_t>(b)) % 8));
        }
      }
      std::vector<float> scale(kRows, 1.5f), want(kRows * d);
      host.decode_rotated({packed.data(), scale.data(), nullptr, nullptr, nullptr}, kRows, want.data());
      const Device<std::uint8_t> codes(nibbles);
      const Device<float> device_scale(scale), out(kRows * d);
      DequantParams p;
      p.in = {codes.get(), device_scale.get(), nullptr, nullptr, nullptr};
      p.n = kRows;
      p.out = out.get();
      p.out_dtype = DType::F32;
      p.high_nibble_first = true;
      dequant(codec, Side::K, p, nullptr);
      EXPECT_EQ(out.host(), want) << name << " d" << dim;
    }
  }
}

TEST(DequantPages, GivesTheTokensOfABatch) {
  TQ4_REQUIRE_DEVICE();
  struct Case {
    const char* spec;
    LayoutKind kind;
    int dim;
    bool calibrated;
    enum Variant { Dense, Padded, Swapped } variant = Dense;
    int longest = 100;
  };
  constexpr LayoutKind kTqv = LayoutKind::TurboquantVllm, kVllm = LayoutKind::Vllm;
  for (const Case& c : {Case{"tq4", LayoutKind::Native, 128, false},
                        Case{"k4v3", LayoutKind::Native, 64, true},
                        Case{"tq4", LayoutKind::Native, 96, false},
                        Case{"fp16", LayoutKind::Native, 64, false},
                        Case{"turboquant-vllm", LayoutKind::TurboquantVllm, 128, false},
                        Case{"vllm:3bit_nc", LayoutKind::Vllm, 128, false},
                        Case{"vllm:k8v4", LayoutKind::Vllm, 64, false},
                        Case{"k4v3", LayoutKind::Native, 256, true},
                        Case{"turboquant-vllm", LayoutKind::TurboquantVllm, 256, false},
                        Case{"k8v4", LayoutKind::Native, 128, false},
                        Case{"tq3", LayoutKind::Native, 64, false},
                        Case{"vllm:3bit_nc", LayoutKind::Native, 128, false},
                        Case{"turboquant-vllm-k3v2", kTqv, 64, false, Case::Padded},
                        Case{"turboquant-vllm", kTqv, 128, false, Case::Padded},
                        Case{"vllm:4bit_nc", kVllm, 128, false, Case::Swapped},
                        Case{"vllm:4bit_nc", kVllm, 64, false},
                        Case{"vllm:k3v4_nc", kVllm, 64, false},
                        Case{"vllm:3bit_nc", kVllm, 256, false},
                        Case{"vllm:k8v4", kVllm, 256, false, Case::Swapped},
                        Case{"vllm:k3v4_nc", kVllm, 128, false, Case::Dense, 1500},
                        Case{"vllm:k8v4", kVllm, 128, false, Case::Dense, 1500},
                        Case{"k4v3", LayoutKind::Native, 128, false, Case::Dense, 1500}}) {
    SCOPED_TRACE(std::string(c.spec) + " d" + std::to_string(c.dim));
    DecodeCase d;
    d.spec = c.spec;
    d.kind = c.kind;
    d.dim = c.dim;
    d.lengths = {0, 5, c.longest, 33};
    d.padded = c.variant == Case::Padded, d.swapped = c.variant == Case::Swapped;
    d.calibration = {c.calibrated, c.calibrated, false};
    DecodeProblem problem(d, 6);
    const auto& params = problem.params();
    const std::int64_t max = c.longest + 28;
    const std::size_t count = d.lengths.size() * static_cast<std::size_t>(d.kv_heads * max * c.dim);
    const Device<std::uint8_t> k(count * 4), v(count * 4);
    struct Way {
      bool rotated, sequential;
      DType dtype;
    };
    for (const auto& [rotated, sequential, dtype] :
         {Way{true, false, DType::F32}, Way{false, true, DType::F32}, Way{false, false, DType::F32}, Way{false, false, DType::F16},
          Way{false, false, DType::BF16}}) {
      const std::size_t size = dtype_size(dtype);
      cuda_ok(cudaMemset(k.get(), 0xa5, k.size()));
      cuda_ok(cudaMemset(v.get(), 0xa5, v.size()));
      DequantPagesParams p;
      p.cache = params.cache;
      p.block_table = params.block_table;
      p.block_table_stride = params.block_table_stride;
      p.seq_lens = params.seq_lens;
      p.num_seqs = params.num_seqs;
      p.max_seq_len = max;
      p.k_out = k.get();
      p.v_out = v.get();
      p.out_dtype = dtype;
      p.rotated = rotated;
      p.sequential = sequential;
      dequant_pages(problem.codec(), p, nullptr);
      const std::vector<std::uint8_t> bytes[2] = {k.host(), v.host()};
      std::vector<float> got[2] = {std::vector<float>(count), std::vector<float>(count)};
      for (std::size_t side = 0; side < 2; ++side) to_float(bytes[side].data(), dtype, count, got[side].data());
      const double limit = dtype == DType::F32 ? 2e-6 : dtype == DType::F16 ? 1e-3 : 4e-3;
      for (std::size_t s = 0; s < d.lengths.size(); ++s) {
        const std::vector<float> want[2] = {problem.values(s, Side::K, rotated), problem.values(s, Side::V, rotated)};
        for (std::size_t side = 0; side < 2; ++side) {
          for (std::size_t h = 0; h < static_cast<std::size_t>(d.kv_heads); ++h) {
            const std::size_t n = static_cast<std::size_t>(d.lengths[s]) * static_cast<std::size_t>(c.dim);
            const float* from = got[side].data() + (s * static_cast<std::size_t>(d.kv_heads) + h) * static_cast<std::size_t>(max * c.dim);
            const float* expected = want[side].data() + h * n;
            if (rotated || sequential) {
              EXPECT_TRUE(std::equal(from, from + n, expected)) << "sequence " << s << " side " << side << " head " << h;
            } else {
              double error = 0, norm = 0;
              for (std::size_t i = 0; i < n; ++i) {
                error += std::pow(static_cast<double>(from[i]) - static_cast<double>(expected[i]), 2);
                norm += std::pow(static_cast<double>(expected[i]), 2);
              }
              EXPECT_LE(std::sqrt(error), limit * std::sqrt(norm))
                  << dtype_name(dtype) << " sequence " << s << " side " << side << " head " << h;
            }
            // Rows from the length on are left alone.
            const std::uint8_t* rest =
                bytes[side].data() + static_cast<std::size_t>(from - got[side].data() + static_cast<std::ptrdiff_t>(n)) * size;
            EXPECT_TRUE(std::all_of(rest, rest + 2 * size, [](std::uint8_t byte) { return byte == 0xa5; }));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace tq4::gpu
