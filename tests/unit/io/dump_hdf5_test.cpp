// HDF5 dumps: the committed real dumps, everything the schema allows, and what must be refused with a line that names the dataset.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "io/hdf5_handle.h"
#include "io_test.h"
#include "tq4/dump.h"

namespace tq4 {
namespace {

using test::message_of;
using test::TempFolder;

const std::string kData = std::string(TQ4_SOURCE_DIR) + "/data/";

/// A file written through the C API, dataset by dataset.
class H5Maker {
 public:
  explicit H5Maker(const std::string& path) : file_(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT)) {}
  io::H5Dataset dataset(const std::string& path, const std::vector<hsize_t>& shape, hid_t file_type, hid_t memory_type, const void* data) {
    const io::H5Properties links(H5Pcreate(H5P_LINK_CREATE));
    H5Pset_create_intermediate_group(links.get(), 1);
    const io::H5Space space(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr));
    io::H5Dataset made(H5Dcreate2(file_.get(), path.c_str(), file_type, space.get(), links.get(), H5P_DEFAULT, H5P_DEFAULT));
    if (data != nullptr) H5Dwrite(made.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data);
    return made;
  }
  io::H5Dataset floats(const std::string& path, const std::vector<hsize_t>& shape, float first = 0) {
    std::size_t count = 1;
    for (const hsize_t extent : shape) count *= extent;
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = first + static_cast<float>(i);
    return dataset(path, shape, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, count > 0 ? values.data() : nullptr);
  }
  void attribute(hid_t object, const char* name, const char* text) {
    const io::H5Type type(H5Tcopy(H5T_C_S1));
    H5Tset_size(type.get(), std::strlen(text));
    const io::H5Space space(H5Screate(H5S_SCALAR));
    const io::H5Attribute made(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT));
    H5Awrite(made.get(), type.get(), text);
  }
  void attribute(hid_t object, const char* name, long long value) {
    const io::H5Space space(H5Screate(H5S_SCALAR));
    const io::H5Attribute made(H5Acreate2(object, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT));
    H5Awrite(made.get(), H5T_NATIVE_LLONG, &value);
  }
  hid_t file() const { return file_.get(); }

 private:
  io::H5File file_;
};

TEST(Hdf5Dump, ReadsTheCommittedLanguageModelDump) {
  const auto dump = open_dump(kData + "lm_a.h5");
  const DumpInfo& info = dump->info();
  EXPECT_EQ(info.format, "hdf5");
  EXPECT_TRUE(info.rope_applied);
  EXPECT_TRUE(info.causal);
  EXPECT_DOUBLE_EQ(info.rope_theta, 500000);
  EXPECT_DOUBLE_EQ(info.sm_scale, 0.08838834764831845);
  EXPECT_EQ(info.source, "held-out sympy/stats/rv.py");
  EXPECT_EQ(info.attributes.at("num_kv_heads"), "2");
  EXPECT_EQ(info.attributes.at("causal"), "true");
  ASSERT_EQ(info.layers.size(), 3u);
  EXPECT_EQ(info.layers[1].layer, 4);
  for (const LayerInfo& layer : info.layers) {
    EXPECT_EQ(layer.num_kv_heads, 2);
    EXPECT_EQ(layer.num_q_heads, 4);
    EXPECT_EQ(layer.head_dim, 128);
    EXPECT_EQ(layer.tokens, 1024);
    EXPECT_EQ(layer.q_tokens, 256);
    EXPECT_EQ(layer.q_start, 768);
    EXPECT_EQ(layer.k_dtype, DType::F16);
    EXPECT_TRUE(layer.has_o_gram);
  }
  // Symmetric and with a positive diagonal, as a Gram matrix is.
  const std::vector<float> gram = dump->read_o_gram(2);
  ASSERT_EQ(gram.size(), 2u * 128 * 128);
  for (std::size_t i = 0; i < 128; ++i) {
    EXPECT_GT(gram[i * 128 + i], 0);
    EXPECT_NEAR(gram[i * 128 + 5], gram[5 * 128 + i], 1e-4f * gram[5 * 128 + 5]);
  }
}

TEST(Hdf5Dump, RangesAreSlicesOfTheWhole) {
  const auto dump = open_dump(kData + "minilm_512.h5");
  EXPECT_FALSE(dump->info().causal);
  EXPECT_EQ(dump->info().layers[0].q_start, 0);
  for (const Tensor tensor : {Tensor::K, Tensor::V, Tensor::Q}) {
    std::vector<std::uint16_t> whole(512 * 32), part(100 * 32);
    dump->read(1, tensor, 7, 0, 512, whole.data());
    dump->read(1, tensor, 7, 333, 100, part.data());
    EXPECT_EQ(0, std::memcmp(part.data(), whole.data() + 333 * 32, part.size() * 2));
    EXPECT_NE(half_to_float(whole[0]), half_to_float(whole[40]));
  }
  std::vector<std::uint16_t> row(32);
  EXPECT_EQ(test::code_of([&] { dump->read(1, Tensor::K, 12, 0, 1, row.data()); }), ErrorCode::Usage);
  EXPECT_EQ(test::code_of([&] { dump->read(1, Tensor::K, 0, 512, 1, row.data()); }), ErrorCode::Usage);
}

TEST(Hdf5Dump, OtherNamesAxesAndHeadDimsByLayer) {
  const TempFolder folder;
  {
    H5Maker maker(folder / "a.h5");
    maker.floats("layer_3/key", {1, 2, 5, 8});  // [B, H, S, D]
    maker.floats("layer_3/value", {1, 2, 5, 8}, 1000);
    maker.floats("layer_3/query", {1, 4, 3, 8}, 2000);
    maker.floats("K_layer012", {2, 6, 16});
    maker.floats("V_layer012", {2, 6, 16});
    maker.floats("layer_012_unrelated", {3});
    const auto queries = maker.floats("layer_012/q", {2, 2, 16});
    maker.attribute(queries.get(), "q_start", 1);
  }
  const auto dump = open_dump(folder / "a.h5");
  ASSERT_EQ(dump->info().layers.size(), 2u);
  EXPECT_EQ(dump->info().layers[0].head_dim, 8);
  EXPECT_EQ(dump->info().layers[0].q_start, 2);
  EXPECT_EQ(dump->info().layers[1].head_dim, 16);
  EXPECT_EQ(dump->info().layers[1].q_start, 1);
  std::vector<float> rows(2 * 8);
  dump->read(0, Tensor::V, 1, 3, 2, rows.data());
  EXPECT_EQ(rows[0], 1000 + 40 + 24);
  EXPECT_EQ(rows[15], 1000 + 40 + 39);
}

TEST(Hdf5Dump, TokensFirst) {
  const TempFolder folder;
  {
    H5Maker maker(folder / "shd.h5");
    maker.floats("layer_0/k", {40, 20, 8});
    maker.floats("layer_0/v", {40, 20, 8});
  }
  EXPECT_NE(message_of([&] { open_dump(folder / "shd.h5"); }).find("--axes"), std::string::npos);
  const auto dump = open_dump(folder / "shd.h5", {.axes = "shd", .dataset_glob = ""});
  EXPECT_EQ(dump->info().layers[0].num_kv_heads, 20);
  EXPECT_EQ(dump->info().layers[0].tokens, 40);
  std::vector<float> rows(2 * 8);
  dump->read(0, Tensor::K, 3, 10, 2, rows.data());
  EXPECT_EQ(rows[0], (10 * 20 + 3) * 8);
  EXPECT_EQ(rows[8], (11 * 20 + 3) * 8);
  {
    H5Maker maker(folder / "hinted.h5");
    maker.floats("layer_0/k", {40, 20, 8});
    maker.floats("layer_0/v", {40, 20, 8});
    maker.attribute(maker.file(), "num_kv_heads", 20);
  }
  EXPECT_EQ(open_dump(folder / "hinted.h5")->info().layers[0].num_kv_heads, 20);
  EXPECT_EQ(test::code_of([&] { open_dump(folder / "shd.h5", {.axes = "sdh", .dataset_glob = ""}); }), ErrorCode::Usage);
}

TEST(Hdf5Dump, SixteenBitFloatsArriveAsTheirPatterns) {
  const TempFolder folder;
  const std::vector<std::uint16_t> bits{0x3f80, 0xc000, 0x7fc1, 0x0001, 0x8000, 0x7f80, 0x1234, 0xffff};
  {
    H5Maker maker(folder / "b.h5");
    const auto bf16 = io::hdf5_bfloat16(), half = io::hdf5_half();
    maker.dataset("layer_0/k", {1, 1, 8}, bf16.get(), bf16.get(), bits.data());
    const auto tagged = maker.dataset("layer_0/v", {1, 1, 8}, H5T_STD_U16LE, H5T_NATIVE_UINT16, bits.data());
    maker.attribute(tagged.get(), "dtype", "bfloat16");
    maker.dataset("layer_1/k", {1, 1, 8}, half.get(), half.get(), bits.data());
    const io::H5Type big(H5Tcopy(half.get()));
    H5Tset_order(big.get(), H5T_ORDER_BE);
    maker.dataset("layer_1/v", {1, 1, 8}, big.get(), half.get(), bits.data());
    const double numbers[8] = {0.1, 2, 3, 4, 5, 6, 7, 8};
    maker.dataset("layer_2/k", {1, 1, 8}, H5T_IEEE_F64BE, H5T_NATIVE_DOUBLE, numbers);
    maker.dataset("layer_2/v", {1, 1, 8}, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, numbers);
  }
  const auto dump = open_dump(folder / "b.h5");
  EXPECT_EQ(dump->info().layers[0].k_dtype, DType::BF16);
  EXPECT_EQ(dump->info().layers[0].v_dtype, DType::BF16);
  EXPECT_EQ(dump->info().layers[1].k_dtype, DType::F16);
  EXPECT_EQ(dump->info().layers[2].k_dtype, DType::F32);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    for (const Tensor tensor : {Tensor::K, Tensor::V}) {
      std::vector<std::uint16_t> read(8);
      dump->read(layer, tensor, 0, 0, 1, read.data());
      EXPECT_EQ(read, bits) << layer;
    }
  }
  std::vector<float> narrowed(8);
  dump->read(2, Tensor::K, 0, 0, 1, narrowed.data());
  EXPECT_EQ(narrowed[0], 0.1f);
}

TEST(Hdf5Dump, EveryStorageOfTheSameRowsReadsTheSame) {
  // Contiguous, contiguous behind a user block, contiguous big-endian, in chunks: the first two are read from their place in the file, the
  // others by HDF5. 2 heads of 3,000 tokens of 40: pieces above and below where reading past the page cache begins.
  const TempFolder folder;
  const std::vector<hsize_t> shape{2, 3000, 40};
  std::vector<float> values(2 * 3000 * 40);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) * 0.5f - 1000.0f;
  for (const std::string kind : {"plain", "user block", "big endian", "chunks"}) {
    const std::string path = folder / (kind + ".h5");
    {
      const io::H5Properties create(H5Pcreate(H5P_FILE_CREATE));
      if (kind == "user block") H5Pset_userblock(create.get(), 2048);
      const io::H5File file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, create.get(), H5P_DEFAULT));
      const io::H5Properties links(H5Pcreate(H5P_LINK_CREATE)), storage(H5Pcreate(H5P_DATASET_CREATE));
      H5Pset_create_intermediate_group(links.get(), 1);
      const std::vector<hsize_t> chunk{1, 700, 40};
      if (kind == "chunks") H5Pset_chunk(storage.get(), 3, chunk.data());
      const io::H5Space space(H5Screate_simple(3, shape.data(), nullptr));
      for (const char* name : {"layer_0/k", "layer_0/v"}) {
        const io::H5Dataset made(H5Dcreate2(file.get(), name, kind == "big endian" ? H5T_IEEE_F32BE : H5T_IEEE_F32LE, space.get(),
                                            links.get(), storage.get(), H5P_DEFAULT));
        ASSERT_GE(H5Dwrite(made.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
      }
    }
    for (const bool once : {false, true}) {
      DumpOptions options;
      options.read_once = once;
      const auto dump = open_dump(path, options);
      for (const auto& [begin, count] : {std::pair(0, 3000), std::pair(1, 2999), std::pair(17, 100)}) {
        std::vector<float> read(static_cast<std::size_t>(count) * 40, -1.0f);
        dump->read(0, Tensor::V, 1, begin, count, read.data());
        const auto from = values.begin() + (3000 + begin) * 40;
        EXPECT_TRUE(std::equal(read.begin(), read.end(), from)) << kind << " " << once << " " << begin;
      }
    }
  }
}

TEST(Hdf5Dump, EmptyTensorsOpen) {
  const TempFolder folder;
  {
    H5Maker maker(folder / "e.h5");
    maker.floats("layer_0/k", {2, 0, 64});
    maker.floats("layer_0/v", {2, 0, 64});
  }
  const auto dump = open_dump(folder / "e.h5");
  EXPECT_EQ(dump->info().layers[0].tokens, 0);
  dump->read(0, Tensor::K, 1, 0, 0, nullptr);
}

TEST(Hdf5Dump, GlobSelectsLayers) {
  EXPECT_EQ(open_dump(kData + "lm_a.h5", {.axes = "", .dataset_glob = "layer_00[47]/*"})->info().layers.size(), 2u);
  EXPECT_NE(message_of([] { open_dump(kData + "lm_a.h5", {.axes = "", .dataset_glob = "x*"}); }).find("x*"), std::string::npos);
}

struct BadCase {
  const char* what;
  void (*make)(H5Maker&);
  const char* expected;  ///< part of the message
};

class Hdf5Refuses : public ::testing::TestWithParam<BadCase> {};

TEST_P(Hdf5Refuses, WithAClearLine) {
  const TempFolder folder;
  const std::string path = folder / "bad.h5";
  {
    H5Maker maker(path);
    GetParam().make(maker);
  }
  EXPECT_EQ(test::code_of([&] { open_dump(path); }), ErrorCode::BadInput);
  const std::string message = message_of([&] { open_dump(path); });
  EXPECT_NE(message.find(GetParam().expected), std::string::npos) << message;
  EXPECT_NE(message.find("bad.h5"), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(Bad, Hdf5Refuses,
                         ::testing::Values(BadCase{"Misnamed",
                                                   [](H5Maker& m) {
                                                     m.floats("model/weights", {3, 4, 8});
                                                   },
                                                   "found /model/weights [3, 4, 8]"},
                                           BadCase{"NoValues",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {1, 2, 8});
                                                   },
                                                   "layer 0 has /layer_0/k but no values"},
                                           BadCase{"NoKeys",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/v", {1, 2, 8});
                                                   },
                                                   "but no keys"},
                                           BadCase{"Rank",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {2, 8});
                                                     m.floats("layer_0/v", {2, 8});
                                                   },
                                                   "/layer_0/k: has shape [2, 8]"},
                                           BadCase{"Shapes",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {1, 2, 8});
                                                     m.floats("layer_0/v", {1, 3, 8});
                                                   },
                                                   "differ in shape"},
                                           BadCase{"Batch",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {2, 1, 2, 8});
                                                     m.floats("layer_0/v", {2, 1, 2, 8});
                                                   },
                                                   "holds 2 sequences"},
                                           BadCase{"Integers",
                                                   [](H5Maker& m) {
                                                     const std::uint16_t zero[16] = {};
                                                     m.dataset("layer_0/k", {1, 2, 8}, H5T_STD_U16LE, H5T_NATIVE_UINT16, zero);
                                                     m.dataset("layer_0/v", {1, 2, 8}, H5T_STD_U16LE, H5T_NATIVE_UINT16, zero);
                                                   },
                                                   "attribute dtype = \"bfloat16\""},
                                           BadCase{"Twice",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {1, 2, 8});
                                                     m.floats("layer_00/key", {1, 2, 8});
                                                     m.floats("layer_0/v", {1, 2, 8});
                                                   },
                                                   "both the same tensor of layer 0"},
                                           BadCase{"QueryHeads",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {2, 2, 8});
                                                     m.floats("layer_0/v", {2, 2, 8});
                                                     m.floats("layer_0/q", {3, 2, 8});
                                                   },
                                                   "no multiple"},
                                           BadCase{"QueryStart",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {2, 2, 8});
                                                     m.floats("layer_0/v", {2, 2, 8});
                                                     const auto q = m.floats("layer_0/q", {2, 2, 8});
                                                     m.attribute(q.get(), "q_start", 1);
                                                   },
                                                   "mend the attribute q_start"},
                                           BadCase{"ZeroHeads",
                                                   [](H5Maker& m) {
                                                     m.floats("layer_0/k", {0, 0, 8});
                                                     m.floats("layer_0/v", {0, 0, 8});
                                                   },
                                                   "has 0 heads"}),
                         [](const auto& bad) { return bad.param.what; });

TEST(Hdf5Dump, CutShortAndForeignFiles) {
  const TempFolder folder;
  std::ifstream in(kData + "minilm_512.h5", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  for (const std::size_t keep : {bytes.size() - 1, bytes.size() / 2, std::size_t{600}, std::size_t{60}}) {
    test::write_file(folder / "cut.h5", bytes.substr(0, keep));
    EXPECT_EQ(test::code_of([&] { open_dump(folder / "cut.h5"); }), ErrorCode::BadInput) << keep;
    EXPECT_NE(message_of([&] { open_dump(folder / "cut.h5"); }).find("cut.h5"), std::string::npos);
  }
  test::write_file(folder / "text.h5", "these are not tensors\n");
  EXPECT_NE(message_of([&] { open_dump(folder / "text.h5"); }).find("not an HDF5, safetensors, npy or npz file"), std::string::npos);
  test::write_file(folder / "empty.h5", "");
  EXPECT_NE(message_of([&] { open_dump(folder / "empty.h5"); }).find("empty"), std::string::npos);
  EXPECT_EQ(test::code_of([&] { open_dump(folder / "missing.h5"); }), ErrorCode::BadInput);
  EXPECT_EQ(test::code_of([&] { open_dump(folder.path()); }), ErrorCode::BadInput);
}

TEST(Hdf5DumpWriter, WhatItWritesReadsBack) {
  const TempFolder folder;
  const auto source = open_dump(kData + "minilm_512.h5");
  for (const DType dtype : {DType::F16, DType::BF16, DType::F32}) {
    const std::string path = folder / (std::string(dtype_name(dtype)) + ".h5");
    const auto writer = create_dump(path, source->info(), dtype, false);
    std::vector<std::uint16_t> rows(512 * 32);
    std::vector<float> wide(rows.size());
    std::vector<std::uint8_t> out(rows.size() * dtype_size(dtype));
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (const Tensor tensor : {Tensor::K, Tensor::V, Tensor::Q}) {
        for (int head = 0; head < 12; ++head) {
          source->read(layer, tensor, head, 0, 512, rows.data());
          to_float(rows.data(), DType::F16, rows.size(), wide.data());
          from_float(wide.data(), wide.size(), dtype, out.data());
          const std::size_t row = 32 * dtype_size(dtype);
          writer->write(layer, tensor, head, 0, 200, out.data());
          writer->write(layer, tensor, head, 200, 312, out.data() + 200 * row);
        }
      }
    }
    EXPECT_EQ(test::code_of([&] { open_dump(path); }), ErrorCode::BadInput) << "visible before commit";
    writer->commit();
    const auto back = open_dump(path);
    EXPECT_EQ(back->info().attributes.at("tokenizer"), source->info().attributes.at("tokenizer"));
    EXPECT_EQ(back->info().attributes.at("dtype"), dtype_name(dtype));
    EXPECT_EQ(back->info().sm_scale, source->info().sm_scale);
    EXPECT_EQ(back->info().causal, false);
    ASSERT_EQ(back->info().layers.size(), 2u);
    EXPECT_EQ(back->info().layers[1].layer, 5);
    EXPECT_EQ(back->info().layers[1].k_dtype, dtype);
    EXPECT_EQ(back->info().layers[1].q_tokens, 512);
    std::vector<std::uint8_t> read(out.size());
    back->read(1, Tensor::Q, 11, 0, 512, read.data());
    EXPECT_EQ(read, out);
  }
}

TEST(Hdf5DumpWriter, LeavesNothingWithoutCommit) {
  const TempFolder folder;
  const auto source = open_dump(kData + "minilm_512.h5");
  create_dump(folder / "x.h5", source->info(), DType::F16, false).reset();
  EXPECT_TRUE(folder.empty());
  test::write_file(folder / "x.h5", "precious");
  EXPECT_EQ(test::code_of([&] { create_dump(folder / "x.h5", source->info(), DType::F16, false); }), ErrorCode::Usage);
  EXPECT_EQ(test::read_file(folder / "x.h5"), "precious");
}

}  // namespace
}  // namespace tq4
