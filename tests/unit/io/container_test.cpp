// Containers: what goes in comes out for every kind of codec, ranges decode alone, and no damage goes unnoticed.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <thread>

#include "container_maker.h"
#include "io/sealed_file.h"
#include "io_test.h"

namespace tq4 {
namespace {

using namespace test;

class EveryCodec : public ::testing::TestWithParam<const char*> {};

/// Reads planes and decoded tokens of every head back and compares them with the codec's own.
void expect_round_trip(const std::string& path, const CodecSpec& spec, const std::vector<StoredLayer>& layers,
                       const Calibration* calibration) {
  const auto container = open_container(path);
  EXPECT_EQ(container->info().spec, spec);
  ASSERT_EQ(container->info().layers.size(), layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerInfo& shape = layers[i].shape;
    const std::int64_t first = layers[i].passthrough ? shape.tokens : layers[i].exact_first,
                       encoded = shape.tokens - first - layers[i].exact_last;
    const auto dim = static_cast<std::size_t>(shape.head_dim), n = static_cast<std::size_t>(shape.tokens);
    const LayerCalibration* tables = calibration == nullptr || layers[i].passthrough ? nullptr : calibration->find(shape.layer);
    for (const Side side : {Side::K, Side::V}) {
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        const std::vector<float> rows = rows_of(shape.layer, side, head, shape.tokens, shape.head_dim);
        std::vector<float> expected = rows, decoded(rows.size());
        if (encoded > 0) {
          const Codec codec = codec_for(side == Side::K ? spec.k : spec.v, shape.head_dim,
                                        tables == nullptr ? nullptr
                                        : side == Side::K ? &tables->k
                                                          : &tables->v);
          const HeadTransform transform = head_transform(tables, side, head, first);
          Planes planes(codec, encoded), read(container->codec(i, side), encoded);
          codec.encode(rows.data() + static_cast<std::size_t>(first) * dim, DType::F32, encoded, planes.out(), transform);
          container->read(i, side, head, 0, encoded, read.out());
          EXPECT_EQ(planes, read) << "layer " << i << " head " << head;
          codec.decode(planes.in(), encoded, expected.data() + static_cast<std::size_t>(first) * dim, transform);
        }
        container->decode(i, side, head, 0, shape.tokens, decoded.data());
        EXPECT_EQ(decoded, expected) << "layer " << i << " head " << head;
        if (n > 20) {  // a range across the seams between exact and encoded tokens
          std::vector<float> part((n - 4) * dim);
          container->decode(i, side, head, 2, static_cast<std::int64_t>(n) - 4, part.data());
          EXPECT_EQ(0, std::memcmp(part.data(), expected.data() + 2 * dim, part.size() * sizeof(float)));
        }
      }
    }
  }
  container->verify();
}

TEST_P(EveryCodec, GoesInAndComesOut) {
  const TempFolder folder;
  CodecSpec spec = spec_from_name(GetParam());
  const std::vector<StoredLayer> layers{layer(0, 2, 100, 64), layer(3, 3, 70, 128, 4, 9), layer(4, 1, 30, 64, 0, 0, true),
                                        layer(5, 2, 0, 128)};
  write_container(folder / "x.tq4", spec, layers);
  expect_round_trip(folder / "x.tq4", spec, layers, nullptr);
}

INSTANTIATE_TEST_SUITE_P(Specs, EveryCodec,
                         ::testing::Values("tq1", "tq2", "tq3", "tq4", "tq8", "tq2.5", "tq3.5", "k4v3", "fp8", "fp16", "k8v4", "tq3-prod",
                                           "tq4-2d", "tq3-2d-norm", "turboquant-vllm", "vllm:k8v4", "vllm:4bit_nc", "vllm:3bit_nc"),
                         [](const auto& name) {
                           std::string text = name.param;
                           for (char& c : text) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return text;
                         });

TEST(Container, EveryRotationAndBothScaleWidths) {
  const TempFolder folder;
  int number = 0;
  for (const RotationKind rotation : {RotationKind::None, RotationKind::HaarTorch, RotationKind::Hadamard, RotationKind::HadamardSigned}) {
    for (const ScaleDType scale : {ScaleDType::F16, ScaleDType::F32}) {
      CodecSpec spec = spec_from_name("k4v3");
      spec.k.rotation = spec.v.rotation = rotation;
      spec.k.scale_dtype = spec.v.scale_dtype = scale;
      spec.v.kind = CodeKind::Uniform;
      const std::vector<StoredLayer> layers{layer(1, 2, 50, 96), layer(2, 1, 50, 80, 1, 1)};
      const std::string path = folder / (std::to_string(number++) + ".tq4");
      write_container(path, spec, layers);
      expect_round_trip(path, spec, layers, nullptr);
    }
  }
}

TEST(Container, CalibrationTravelsWithIt) {
  const TempFolder folder;
  for (const char* name : {"tq4-2d", "tq3"}) {
    const CodecSpec spec = spec_from_name(name);
    const std::vector<StoredLayer> layers{layer(0, 2, 60, 64, 4, 8), layer(1, 2, 60, 64), layer(2, 2, 20, 64, 0, 0, true)};
    Calibration calibration;
    calibration.spec = spec;
    calibration.model = "test model";
    calibration.fingerprint = 0x0123456789abcdefull;
    calibration.tokens = 4096;
    for (const StoredLayer& stored : layers) calibration.layers.push_back(calibrate(stored, spec.k.pair_codebook ? spec.k.bits : 0));
    calibration.layers[1].v = {};  // half a layer
    const std::string path = folder / (std::string(name) + ".tq4");
    write_container(path, spec, layers, &calibration);
    expect_round_trip(path, spec, layers, &calibration);
    const auto container = open_container(path);
    ASSERT_NE(container->calibration(), nullptr);
    EXPECT_TRUE(container->info().calibrated);
    EXPECT_EQ(container->calibration()->fingerprint, calibration.fingerprint);
    EXPECT_EQ(container->calibration()->layers.size(), 2u) << "the passthrough layer needs none";
    EXPECT_EQ(container->calibration()->layers[0].k.forward, calibration.layers[0].k.forward);

    write_calibration(folder / "c.tq4cal", calibration, true);
    const Calibration back = read_calibration(folder / "c.tq4cal");
    EXPECT_EQ(back.spec, calibration.spec);
    EXPECT_EQ(back.model, calibration.model);
    EXPECT_EQ(back.tokens, calibration.tokens);
    ASSERT_EQ(back.layers.size(), 3u);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(back.layers[i].k.rope_mu, calibration.layers[i].k.rope_mu);
      EXPECT_EQ(back.layers[i].v.inverse, calibration.layers[i].v.inverse);
      EXPECT_EQ(back.layers[i].v.pair_points, calibration.layers[i].v.pair_points);
      EXPECT_EQ(back.layers[i].rope_theta, 10000);
      EXPECT_EQ(back.layers[i].rope_dim, 32);
    }
    EXPECT_EQ(code_of([&] { write_calibration(folder / "c.tq4cal", calibration, false); }), ErrorCode::Usage);
    EXPECT_NE(message_of([&] { read_calibration(path); }).find("not a tq4 calibration"), std::string::npos);
    EXPECT_NE(message_of([&] { open_container(folder / "c.tq4cal"); }).find("not a tq4 container"), std::string::npos);
  }
}

TEST(Container, DescribesItself) {
  const TempFolder folder;
  const CodecSpec spec = spec_from_name("tq4");
  write_container(folder / "x.tq4", spec, {layer(3, 2, 100, 128, 4, 16), layer(7, 2, 10, 128, 0, 0, true)});
  const auto container = open_container(folder / "x.tq4");
  const ContainerInfo& info = container->info();
  EXPECT_EQ(info.format_version, 1);
  EXPECT_TRUE(info.producer.starts_with("tq4 "));
  EXPECT_EQ(info.dump.model, "test model");
  EXPECT_EQ(info.dump.path, "dump.h5");
  EXPECT_EQ(info.dump.sm_scale, 0.125);
  EXPECT_TRUE(info.dump.attributes.at("note").starts_with("quotes \" and \"xxh3\":"));
  EXPECT_EQ(info.layers[1].reason, "--skip-layers");
  // 80 encoded tokens of 64 code bytes and 2 of scale, 20 exact ones of 256 bytes, 2 heads.
  EXPECT_EQ(info.layers[0].k_bytes, 2u * (80 * 66 + 20 * 256));
  EXPECT_EQ(info.layers[1].v_bytes, 2u * 10 * 256);
  EXPECT_EQ(info.original_bytes, 2u * 110 * 128 * (2 + 4));
  EXPECT_EQ(info.file_bytes, std::filesystem::file_size(folder / "x.tq4"));
  EXPECT_EQ(code_of([&] { container->codec(1, Side::K); }), ErrorCode::Usage);
  EXPECT_EQ(container->codec(0, Side::K).head_dim(), 128);
  EXPECT_EQ(&container->codec(0, Side::K), &container->codec(0, Side::V)) << "equal specs share a table";
}

TEST(Container, BytesDoNotDependOnThePiecesTheyCameIn) {
  const TempFolder folder;
  const std::vector<StoredLayer> layers{layer(0, 2, 500, 64, 3, 5)};
  for (const std::int64_t step : {1, 64, 1000})
    write_container(folder / (std::to_string(step) + ".tq4"), spec_from_name("k4v3"), layers, nullptr, false, step);
  EXPECT_EQ(read_file(folder / "1.tq4"), read_file(folder / "64.tq4"));
  EXPECT_EQ(read_file(folder / "1.tq4"), read_file(folder / "1000.tq4"));
}

TEST(Container, ManyBlocks) {
  const TempFolder folder;
  constexpr std::int64_t kTokens = 20000;  // 5 MB of codes a side
  const CodecSpec spec = spec_from_name("tq4");
  const Codec codec(spec.k, 128);
  const auto planes_of = [&](Side side, int head) {
    std::mt19937 random(static_cast<unsigned>(head * 2 + (side == Side::K ? 0 : 1)));
    Planes planes(codec, kTokens);
    for (std::uint8_t& byte : planes.codes) byte = static_cast<std::uint8_t>(random());
    for (float& scale : planes.scale) scale = static_cast<float>(random() % 1024) / 64;
    return planes;
  };
  const auto writer = create_container(folder / "x.tq4", spec, {}, {layer(0, 4, kTokens, 128)}, nullptr, false);
  for (const Side side : {Side::K, Side::V}) {
    for (int head = 0; head < 4; ++head) writer->write(0, side, head, 0, kTokens, planes_of(side, head).in());
  }
  writer->commit();
  const auto whole = open_container(folder / "x.tq4");
  for (const Side side : {Side::K, Side::V}) {
    for (int head = 3; head >= 0; --head) {
      Planes read(codec, kTokens);
      whole->read(0, side, head, 0, kTokens, read.out());
      EXPECT_EQ(read, planes_of(side, head));
    }
  }
  whole->verify();
  std::string bytes = read_file(folder / "x.tq4");
  EXPECT_GT(bytes.size(), 10u << 20);
  // A flipped bit hurts the ranges of its block and no others.
  bytes[bytes.size() - 100] = static_cast<char>(bytes[bytes.size() - 100] ^ 4);
  write_file(folder / "bad.tq4", bytes);
  const auto container = open_container(folder / "bad.tq4");
  std::vector<float> x(100 * 128);
  container->decode(0, Side::K, 0, 0, 100, x.data());
  EXPECT_EQ(code_of([&] { container->decode(0, Side::V, 3, 19900, 100, x.data()); }), ErrorCode::BadInput);
  EXPECT_NE(message_of([&] { container->verify(); }).find("layer_000.v.codes: the checksum of block"), std::string::npos)
      << message_of([&] { container->verify(); });
}

TEST(Container, ThreadsMayWriteTogether) {
  const TempFolder folder;
  constexpr std::int64_t kTokens = 5000;
  constexpr int kHeads = 8;
  const CodecSpec spec = spec_from_name("k4v3");
  const auto write_heads = [&](ContainerWriter& writer, int from, int step) {
    for (int head = from; head < kHeads; head += step) {
      for (const Side side : {Side::K, Side::V}) {
        const Codec codec(side == Side::K ? spec.k : spec.v, 64);
        Planes planes(codec, kTokens);
        for (std::size_t i = 0; i < planes.codes.size(); ++i)
          planes.codes[i] = static_cast<std::uint8_t>(i * 31 + static_cast<std::size_t>(head));
        writer.write(0, side, head, 0, kTokens, planes.in());
      }
    }
  };
  const std::vector<StoredLayer> layers{layer(0, kHeads, kTokens, 64)};
  const auto alone = create_container(folder / "alone.tq4", spec, {}, layers, nullptr, false);
  write_heads(*alone, 0, 1);
  alone->commit();
  const auto together = create_container(folder / "together.tq4", spec, {}, layers, nullptr, false);
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&, t] { write_heads(*together, t, 4); });
  }
  together->commit();
  EXPECT_EQ(read_file(folder / "alone.tq4"), read_file(folder / "together.tq4"));
}

TEST(Container, NoFlippedBitGoesUnnoticed) {
  const TempFolder folder;
  write_container(folder / "x.tq4", spec_from_name("tq2"), {layer(0, 1, 9, 32, 1, 1)});
  const std::string good = read_file(folder / "x.tq4");
  std::map<std::string, int> messages;
  for (std::size_t at = 0; at < good.size(); at += at < 3000 ? 7 : 101) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    write_file(folder / "bad.tq4", bad);
    EXPECT_EQ(code_of([&] { open_container(folder / "bad.tq4")->verify(); }), ErrorCode::BadInput) << "byte " << at;
  }
}

TEST(Container, CutAnywhereItIsRefused) {
  const TempFolder folder;
  write_container(folder / "x.tq4", spec_from_name("tq2"), {layer(0, 1, 9, 32)});
  const std::string good = read_file(folder / "x.tq4");
  for (std::size_t keep = 0; keep < good.size(); keep += 41) {
    write_file(folder / "bad.tq4", good.substr(0, keep));
    EXPECT_EQ(code_of([&] { open_container(folder / "bad.tq4"); }), ErrorCode::BadInput) << keep;
  }
  write_file(folder / "bad.tq4", good + "x");
  EXPECT_EQ(code_of([&] { open_container(folder / "bad.tq4"); }), ErrorCode::BadInput);
}

TEST(Container, NewerVersionSaysSo) {
  const TempFolder folder;
  write_container(folder / "x.tq4", spec_from_name("tq2"), {layer(0, 1, 9, 32)});
  std::string bytes = read_file(folder / "x.tq4");
  const std::string field = "\"format_version\":\"1\"";
  bytes.replace(bytes.find(field), field.size(), "\"format_version\":\"2\"");
  write_file(folder / "x.tq4", bytes);
  EXPECT_NE(message_of([&] { open_container(folder / "x.tq4"); }).find("use a newer tq4"), std::string::npos);
}

TEST(Container, SafetensorsRulesHold) {
  const TempFolder folder;
  write_container(folder / "x.tq4", spec_from_name("k4v3"), {layer(0, 2, 33, 64, 1, 2)});
  const std::string bytes = read_file(folder / "x.tq4");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ((length + 8) % 64, 0u);
  const io::SafetensorsHeader header = io::parse_safetensors_header(std::string_view(bytes).substr(8, length), bytes.size(), "x");
  for (const io::SafetensorsEntry& entry : header.entries)
    EXPECT_EQ(entry.begin % io::safetensors_dtype_size(entry.dtype), 0u) << entry.name;
}

TEST(Container, WhatIsNotWrittenIsNotCommitted) {
  const TempFolder folder;
  const CodecSpec spec = spec_from_name("tq4");
  const std::vector<StoredLayer> layers{layer(0, 1, 8, 64)};
  const Codec codec(spec.k, 64);
  const std::vector<float> rows = rows_of(0, Side::K, 0, 8, 64);
  Planes planes(codec, 8);
  codec.encode(rows.data(), DType::F32, 8, planes.out());
  {
    const auto writer = create_container(folder / "x.tq4", spec, {}, layers, nullptr, false);
    writer->write(0, Side::K, 0, 0, 8, planes.in());
    EXPECT_NE(message_of([&] { writer->commit(); }).find("commit() before every part was written"), std::string::npos);
    writer->write(0, Side::V, 0, 0, 8, planes.in());
    EXPECT_NE(message_of([&] { writer->write(0, Side::V, 0, 4, 2, planes.in()); }).find("written twice"), std::string::npos);
    EXPECT_EQ(code_of([&] { writer->write(0, Side::V, 0, 4, 5, planes.in()); }), ErrorCode::Usage);
    EXPECT_EQ(code_of([&] { writer->write(0, Side::V, 1, 0, 1, planes.in()); }), ErrorCode::Usage);
    EXPECT_EQ(code_of([&] { writer->write(1, Side::V, 0, 0, 1, planes.in()); }), ErrorCode::Usage);
  }
  EXPECT_TRUE(folder.empty());
  EXPECT_EQ(code_of([&] {
              create_container(folder / "x.tq4", spec, {}, {layer(0, 1, 8, 64), layer(0, 1, 8, 64)}, nullptr, false);
            }),
            ErrorCode::Usage);
  EXPECT_EQ(code_of([&] { create_container(folder / "x.tq4", spec, {}, {layer(0, 1, 8, 64, 5, 4)}, nullptr, false); }), ErrorCode::Usage);
  EXPECT_TRUE(code_of([&] { create_container(folder / "x.tq4", spec, {}, {layer(0, 1, 8, 20)}, nullptr, false); }).has_value());
  EXPECT_TRUE(folder.empty());
}

TEST(Container, NeverOverwritesUnasked) {
  const TempFolder folder;
  write_file(folder / "x.tq4", "precious");
  EXPECT_EQ(code_of([&] { write_container(folder / "x.tq4", spec_from_name("tq2"), {layer(0, 1, 9, 32)}); }), ErrorCode::Usage);
  EXPECT_EQ(read_file(folder / "x.tq4"), "precious");
  write_container(folder / "x.tq4", spec_from_name("tq2"), {layer(0, 1, 9, 32)}, nullptr, true);
  open_container(folder / "x.tq4")->verify();
}

}  // namespace
}  // namespace tq4
