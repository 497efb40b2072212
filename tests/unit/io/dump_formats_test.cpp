// Dumps in safetensors, npy and npz: the committed files NumPy and safetensors wrote, hand-made ones, and refusals.
#include <gtest/gtest.h>

#include <cstring>

#include "io/dump_schema.h"
#include "io/npy_header.h"
#include "io/safetensors_file.h"
#include "io_test.h"
#include "tq4/dump.h"

namespace tq4 {
namespace {

using test::code_of;
using test::message_of;
using test::TempFolder;

const std::string kCorpus = std::string(TQ4_SOURCE_DIR) + "/tests/fuzz/corpus/";

/// Values 0, 1, 2, ... [2, 5, 8] in fp16: what make_corpus.py put into most files.
void expect_counting(Dump& dump, Tensor tensor) {
  for (int head = 0; head < 2; ++head) {
    std::vector<std::uint16_t> rows(3 * 8);
    dump.read(0, tensor, head, 2, 3, rows.data());
    for (std::size_t i = 0; i < rows.size(); ++i)
      EXPECT_EQ(half_to_float(rows[i]), static_cast<float>(head * 40 + 16) + static_cast<float>(i));
  }
}

TEST(TensorNames, InUse) {
  using io::parse_tensor_name;
  using io::Role;
  for (const char* name : {"/layer_003/k", "layer_3_key", "layer_3_keys", "K_layer3", "key_cache_3", "layer_3.k",
                           "layers.3.self_attn.key_states", "past_key_values.3.key", "LAYER-3/Key", "k3", "layer3_key_cache", "key_3"}) {
    const auto parsed = parse_tensor_name(name);
    ASSERT_TRUE(parsed.has_value()) << name;
    EXPECT_EQ(parsed->layer, 3) << name;
    EXPECT_EQ(parsed->role, Role::K) << name;
  }
  EXPECT_EQ(parse_tensor_name("/layer_010/query")->role, Role::Q);
  EXPECT_EQ(parse_tensor_name("V_layer0")->role, Role::V);
  EXPECT_EQ(parse_tensor_name("layer_7/o_gram")->role, Role::OGram);
  for (const char* name : {"", "layer_3", "k", "layer_3/k/scale", "layer_3_head_2_key", "layer_3.k.codes", "token_ids", "layer_3/kv",
                           "layer_1234567/k", "layer_3/k v", "layer_3/\xc3\xa9k"}) {
    EXPECT_FALSE(parse_tensor_name(name).has_value()) << name;
  }
}

TEST(SafetensorsDump, NamesAttributesQueriesAndGram) {
  const auto dump = open_dump(kCorpus + "safetensors/names.safetensors");
  EXPECT_EQ(dump->info().format, "safetensors");
  EXPECT_EQ(dump->info().sm_scale, 0.125);
  EXPECT_FALSE(dump->info().causal);
  ASSERT_EQ(dump->info().layers.size(), 1u);
  EXPECT_EQ(dump->info().layers[0].q_tokens, 2);
  EXPECT_EQ(dump->info().layers[0].q_start, 1);
  EXPECT_TRUE(dump->info().layers[0].has_o_gram);
  EXPECT_EQ(dump->read_o_gram(0).size(), 2u * 8 * 8);
  expect_counting(*dump, Tensor::K);
  expect_counting(*dump, Tensor::V);
}

TEST(SafetensorsDump, TokensFirstAndDoubles) {
  const TempFolder folder;
  std::vector<double> values(300 * 2 * 8);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i) + 0.1;
  const std::uint64_t bytes = values.size() * 8;
  const std::string header = io::render_safetensors_header(
      {}, {{"K_layer3", "F64", {1, 300, 2, 8}, 0, bytes}, {"V_layer3", "F64", {1, 300, 2, 8}, bytes, 2 * bytes}});
  const std::string data(reinterpret_cast<const char*>(values.data()), bytes);
  test::write_file(folder / "x.safetensors", header + data + data);
  const auto dump = open_dump(folder / "x.safetensors");
  EXPECT_EQ(dump->info().layers[0].num_kv_heads, 2);
  EXPECT_EQ(dump->info().layers[0].tokens, 300);
  EXPECT_EQ(dump->info().layers[0].k_dtype, DType::F32);
  std::vector<float> rows(2 * 8);
  dump->read(0, Tensor::V, 1, 298, 2, rows.data());
  EXPECT_EQ(rows[0], static_cast<float>((298 * 2 + 1) * 8 + 0.1));
  EXPECT_EQ(rows[8], static_cast<float>((299 * 2 + 1) * 8 + 0.1));
  EXPECT_EQ(open_dump(kCorpus + "safetensors/empty.safetensors")->info().layers[0].tokens, 0);
}

/// Header text, file with `data` bytes, expected part of the message.
struct BadHeader {
  std::string json;
  std::size_t data;
  std::string expected;
};

TEST(SafetensorsDump, RefusesWhatTheReferenceRefuses) {
  const TempFolder folder;
  const std::string k = R"("layer_0_k":{"dtype":"F16","shape":[1,1,8],"data_offsets":[0,16]})";
  const std::string v = R"("layer_0_v":{"dtype":"F16","shape":[1,1,8],"data_offsets":[16,32]})";
  test::write_file(folder / "good", {});
  const std::vector<BadHeader> cases{
      {"{" + k + "," + v, 32, "not valid JSON"},
      {"{" + k + "," + k + "," + v + "}", 32, "twice"},
      {R"({"layer_0_k":{"dtype":"F16","shape":[1,1,8],"data_offsets":[0,17]},)" + v + "}", 32, "its shape needs 16"},
      {R"({"layer_0_k":{"dtype":"F16","shape":[1,1,8],"data_offsets":[2,18]},)" + v + "}", 34, "instead of 0"},
      {R"({"layer_0_k":{"dtype":"F13","shape":[1,1,8],"data_offsets":[0,16]},)" + v + "}", 32, "is not known"},
      {R"({"layer_0_k":{"dtype":"F16","shape":[4611686018427387904,4,8],"data_offsets":[0,16]},)" + v + "}", 32, "impossible"},
      {R"({"layer_0_k":{"dtype":"F16","shape":[1,-1,8],"data_offsets":[0,16]},)" + v + "}", 32, "whole number"},
      {R"({"__metadata__":{"a":1},)" + k + "," + v + "}", 32, "is no string"},
      {"{" + k + "," + v + "}", 31, "cut short"},
      {"{" + k + "," + v + "}", 33, "bytes follow"},
      {R"({"layer_0_k":{"dtype":"U8","shape":[1,2,8],"data_offsets":[0,16]},)" + v + "}", 32, "use F16, BF16 or F32"},
      {R"({"__metadata__":{"format":"tq4"},)" + k + "," + v + "}", 32, "decompress it first"}};
  for (const BadHeader& bad : cases) {
    std::string file(8, '\0');
    const std::uint64_t length = bad.json.size();
    std::memcpy(file.data(), &length, 8);
    test::write_file(folder / "x", file + bad.json + std::string(bad.data, '\0'));
    EXPECT_EQ(code_of([&] { open_dump(folder / "x"); }), ErrorCode::BadInput) << bad.json;
    const std::string message = message_of([&] { open_dump(folder / "x"); });
    EXPECT_NE(message.find(bad.expected), std::string::npos) << message;
  }
  std::string good(8, '\0');
  const std::string json = "{" + k + "," + v + "}";
  const std::uint64_t length = json.size();
  std::memcpy(good.data(), &length, 8);
  test::write_file(folder / "x", good + json + std::string(32, '\0'));
  EXPECT_EQ(open_dump(folder / "x")->info().layers.size(), 1u) << "the case the others are damages of";
}

TEST(NpyDump, StackedArrays) {
  const auto dump = open_dump(kCorpus + "npy/stacked.npy");
  EXPECT_EQ(dump->info().format, "npy");
  expect_counting(*dump, Tensor::K);
  expect_counting(*dump, Tensor::V);
  const auto layers = open_dump(kCorpus + "npy/layers.npy");
  EXPECT_EQ(layers->info().layers.size(), 2u);
  EXPECT_EQ(layers->info().layers[1].k_dtype, DType::F32);
  EXPECT_NE(message_of([] { open_dump(kCorpus + "npy/fortran.npy"); }).find("ascontiguousarray"), std::string::npos);
}

TEST(NpyDump, ArchivesStoredAndDeflated) {
  const auto stored = open_dump(kCorpus + "npy/stored.npz");
  EXPECT_EQ(stored->info().format, "npz");
  EXPECT_EQ(stored->info().model, "m");
  EXPECT_EQ(stored->info().sm_scale, 0.1);
  EXPECT_FALSE(stored->info().causal);
  expect_counting(*stored, Tensor::V);
  const auto deflated = open_dump(kCorpus + "npy/deflated.npz");
  EXPECT_EQ(deflated->info().layers[0].layer, 1);
  expect_counting(*deflated, Tensor::Q);
  expect_counting(*deflated, Tensor::K);  // backwards within one stream as well: head 1, then head 0 again
  expect_counting(*deflated, Tensor::K);
  EXPECT_NE(message_of([] { open_dump(kCorpus + "npy/structured.npz"); }).find("structured"), std::string::npos);
}

TEST(NpyDump, DamagedArchives) {
  const TempFolder folder;
  for (const char* name : {"npy/stored.npz", "npy/deflated.npz", "npy/stacked.npy"}) {
    const std::string good = test::read_file(kCorpus + name);
    for (const std::size_t keep : {good.size() - 40, good.size() / 2, std::size_t{12}}) {
      test::write_file(folder / "x", good.substr(0, keep));
      EXPECT_EQ(code_of([&] { open_dump(folder / "x"); }), ErrorCode::BadInput) << name << " " << keep;
    }
  }
  // A damaged deflate stream is noticed when it is read to its end.
  std::string bad = test::read_file(kCorpus + "npy/deflated.npz");
  const std::size_t at = bad.find("layer_1.v.npy") + 13 + 110;
  bad[at] = static_cast<char>(bad[at] ^ 0x10);
  test::write_file(folder / "x", bad);
  EXPECT_EQ(code_of([&] {
              const auto dump = open_dump(folder / "x");
              std::vector<std::uint16_t> rows(5 * 8);
              dump->read(0, Tensor::V, 1, 0, 5, rows.data());
            }),
            ErrorCode::BadInput);
}

TEST(NpyHeader, Literals) {
  const auto parse = [](const std::string& literal) {
    std::string bytes("\x93NUMPY\x01", 7);
    bytes += '\0';
    bytes += static_cast<char>(literal.size());
    bytes += '\0';
    bytes += literal;
    return io::parse_npy_header(std::span(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()), "x");
  };
  const io::NpyHeader header = parse("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3,), }");
  EXPECT_EQ(header.dtype, DType::F16);
  EXPECT_EQ(header.shape, (std::vector<std::uint64_t>{2, 3}));
  EXPECT_EQ(parse("{'shape': (), \"descr\": '|V2', 'fortran_order': True}").dtype, DType::BF16);
  EXPECT_FALSE(parse("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}").dtype.has_value());
  for (const char* bad :
       {"", "{", "{'descr': '<f2'}", "{'descr': '<f2', 'fortran_order': False, 'shape': (2, -3)}",
        "{'descr': '<f2', 'fortran_order': Maybe, 'shape': ()}", "{'descr': '<f2', 'descr': '<f4', 'fortran_order': False, 'shape': ()}",
        "{'descr': [('a', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999999999999,)}"}) {
    EXPECT_EQ(code_of([&] { parse(bad); }), ErrorCode::BadInput) << bad;
  }
}

}  // namespace
}  // namespace tq4
