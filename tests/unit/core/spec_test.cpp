// Specs: the grammar of names and its inverse, JSON both ways, what validate refuses.
#include "tq4/spec.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tq4/error.h"

namespace tq4 {
namespace {

template <class Call>
Error error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::Runtime, "nothing was thrown");
}

TEST(SpecName, OwnCodecs) {
  const CodecSpec four = spec_from_name("tq4");
  EXPECT_EQ(four.k, SideSpec{});
  EXPECT_EQ(four.k, four.v);
  const CodecSpec mixed = spec_from_name("TQ2.5");
  EXPECT_EQ(mixed.k.kind, CodeKind::Mixed);
  EXPECT_EQ(mixed.k.bits, 2);
  const CodecSpec both = spec_from_name("k4v3.5");
  EXPECT_EQ(both.k.bits, 4);
  EXPECT_EQ(both.v.kind, CodeKind::Mixed);
  EXPECT_EQ(both.v.bits, 3);
  const CodecSpec fp8_keys = spec_from_name("k8v4");
  EXPECT_EQ(fp8_keys.k.kind, CodeKind::Fp8);
  EXPECT_EQ(fp8_keys.k.rotation, RotationKind::None);
  EXPECT_EQ(fp8_keys.v, four.v);
  EXPECT_EQ(spec_from_name("tq8").k.kind, CodeKind::Mse);
  EXPECT_EQ(spec_from_name("fp16").v.kind, CodeKind::Fp16);
  EXPECT_EQ(spec_from_name("k16v4").k.kind, CodeKind::Fp16);
}

TEST(SpecName, Suffixes) {
  const CodecSpec prod = spec_from_name("tq4-prod");
  EXPECT_EQ(prod.k.kind, CodeKind::Prod);
  EXPECT_EQ(prod.k.bits, 4);
  EXPECT_EQ(prod.v.kind, CodeKind::Mse);
  const CodecSpec pair = spec_from_name("k8v3-2d-norm");
  EXPECT_FALSE(pair.k.pair_codebook);
  EXPECT_TRUE(pair.v.pair_codebook);
  EXPECT_EQ(pair.v.scale_rule, ScaleRule::Norm);
  EXPECT_EQ(pair.k.scale_rule, ScaleRule::LeastSquares);
  for (const char* wrong : {"tq5-2d", "tq1-prod", "tq6-prod", "fp8-2d", "k8v8-2d", "fp16-norm", "tq4-", "tq4--2d", "tq4-2d-"}) {
    EXPECT_THROW(spec_from_name(wrong), Error) << wrong;
  }
}

TEST(SpecName, Peers) {
  const CodecSpec plugin = spec_from_name("turboquant-vllm-k3v4");
  EXPECT_EQ(plugin.k.bits, 3);
  EXPECT_EQ(plugin.v.bits, 4);
  EXPECT_EQ(plugin.k.rotation, RotationKind::HaarTorch);
  EXPECT_EQ(plugin.k.seed, 42u);
  EXPECT_EQ(plugin.k.codebook, CodebookKind::TurboquantVllm);
  EXPECT_EQ(plugin.k.scale_rule, ScaleRule::Norm);
  EXPECT_EQ(plugin.k.scale_dtype, ScaleDType::F32);
  EXPECT_EQ(spec_from_name("turboquant-vllm"), spec_from_name("turboquant-vllm-k4v4"));
  const CodecSpec vllm = spec_from_name("vllm:k3v4_nc");
  EXPECT_EQ(vllm.k.bits, 3);
  EXPECT_EQ(vllm.k.rotation, RotationKind::Hadamard);
  EXPECT_EQ(vllm.k.codebook, CodebookKind::Vllm);
  EXPECT_TRUE(vllm.k.norm_correction);
  EXPECT_EQ(vllm.v.kind, CodeKind::Uniform);
  EXPECT_EQ(vllm.v.bits, 4);
  EXPECT_EQ(vllm.v.rotation, RotationKind::None);
  EXPECT_EQ(spec_from_name("vllm:3bit_nc").v.bits, 3);
  EXPECT_EQ(spec_from_name("vllm:4bit_nc").k.bits, 4);
  EXPECT_EQ(spec_from_name("VLLM:K8V4").k.kind, CodeKind::Fp8);
}

TEST(SpecName, NamesComeBack) {
  for (const char* name : {"tq1",
                           "tq4",
                           "tq8",
                           "tq2.5",
                           "tq3.5",
                           "k4v3",
                           "k2.5v3.5",
                           "fp8",
                           "fp16",
                           "k8v4",
                           "tq4-prod",
                           "tq3-2d",
                           "tq4-2d-norm",
                           "k4v3-norm",
                           "k16v2",
                           "vllm:k8v4",
                           "k3v16",
                           "tq5-norm",
                           "k7v8",
                           "vllm:4bit_nc",
                           "vllm:3bit_nc",
                           "turboquant-vllm",
                           "turboquant-vllm-k2v4",
                           "vllm:k3v4_nc"}) {
    EXPECT_EQ(spec_name(spec_from_name(name)), name);
  }
  EXPECT_EQ(spec_name(spec_from_name("k4v4")), "tq4");
  CodecSpec other = spec_from_name("tq4");
  other.sinks = 4;
  other.window = 128;
  EXPECT_EQ(spec_name(other), "tq4 sinks 4 window 128");
  other.k.seed = 7;
  EXPECT_NE(spec_name(other).find("seed 7"), std::string::npos);
}

TEST(SpecName, MistypedNamesGetASuggestion) {
  const std::pair<const char*, const char*> cases[] = {{"turbquant-vllm", "\"turboquant-vllm\""},
                                                       {"k4w3", "\"k4v3\""},
                                                       {"vllm:4bit", "\"vllm:4bit_nc\""},
                                                       {"fp-16", "\"fp16\""},
                                                       {"tq4-3d", "\"tq4-2d\""}};
  for (const auto& [wrong, suggestion] : cases) {
    const Error error = error_of([name = wrong] { spec_from_name(name); });
    EXPECT_EQ(error.code(), ErrorCode::Usage);
    EXPECT_NE(std::string(error.what()).find(std::string("did you mean ") + suggestion), std::string::npos) << error.what();
  }
  for (const std::string& wrong : {std::string(), std::string("tq9"), std::string("tq0"), std::string("kv"), std::string("k4v"),
                                   std::string("tq16"), std::string(100000, 'x'), std::string("turboquant-vllm-k5v4")}) {
    EXPECT_EQ(error_of([&] { spec_from_name(wrong); }).code(), ErrorCode::Usage);
  }
}

TEST(SpecJson, RoundTrip) {
  CodecSpec spec = spec_from_name("vllm:4bit_nc");
  spec.sinks = 4;
  spec.window = 64;
  spec.v.seed = ~std::uint64_t{0};
  spec.v.fp8 = Fp8Kind::E4B15;
  spec.v.scale_rule = ScaleRule::Unbiased;
  EXPECT_EQ(spec_from_json(spec_to_json(spec)), spec);
  for (const char* name : {"tq4", "tq2.5", "tq3-prod", "tq4-2d", "turboquant-vllm", "fp8", "fp16"}) {
    EXPECT_EQ(spec_from_json(spec_to_json(spec_from_name(name))), spec_from_name(name));
  }
  spec.k.rotation = RotationKind::HadamardSigned;
  spec.k.codebook = CodebookKind::Gaussian;
  EXPECT_EQ(spec_from_json(spec_to_json(spec)), spec);
}

TEST(SpecJson, EveryFieldIsSpelledOut) {
  const std::string json = spec_to_json(CodecSpec{});
  for (const char* field : {"kind", "bits", "codebook", "rotation", "seed", "scale_rule", "scale_dtype", "fp8", "pair_codebook",
                            "norm_correction", "sinks", "window"}) {
    EXPECT_NE(json.find('"' + std::string(field) + '"'), std::string::npos) << field;
  }
}

TEST(SpecJson, RefusesWhatItDoesNotKnow) {
  const std::string good = spec_to_json(spec_from_name("tq4"));
  auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  const std::vector<std::string> bad = {
      "",
      "[]",
      "{",
      "null",
      "{}",
      with("\"bits\":4", "\"bits\":4.5"),
      with("\"bits\":4", "\"bits\":\"4\""),
      with("\"bits\":4", "\"bits\":18446744073709551615"),
      with("\"bits\":4", "\"bits\":-1"),
      with("\"bits\":4", "\"bitz\":4"),
      with("\"bits\":4", "\"bits\":4,\"extra\":1"),
      with("\"kind\":\"mse\"", "\"kind\":\"magic\""),
      with("\"kind\":\"mse\"", "\"kind\":0"),
      with("\"seed\":42", "\"seed\":-42"),
      with("\"pair_codebook\":false", "\"pair_codebook\":0"),
      with("\"sinks\":0", "\"sinks\":-1"),
  };
  for (const std::string& text : bad) EXPECT_EQ(error_of([&] { spec_from_json(text); }).code(), ErrorCode::BadInput) << text;
}

TEST(SpecValidate, HeadDims) {
  for (const int dim : {32, 40, 64, 80, 96, 128, 192, 256, 504, 512}) EXPECT_NO_THROW(validate(SideSpec{}, dim)) << dim;
  for (const int dim : {0, -8, 24, 31, 33, 100, 520, 1024}) {
    EXPECT_EQ(error_of([&] { validate(SideSpec{}, dim); }).code(), ErrorCode::Unsupported) << dim;
  }
}

TEST(SpecValidate, BitsOfEveryKind) {
  struct Range {
    CodeKind kind;
    int lowest, highest;
  };
  for (const Range& range :
       {Range{CodeKind::Mse, 1, 8}, Range{CodeKind::Prod, 2, 5}, Range{CodeKind::Mixed, 1, 7}, Range{CodeKind::Uniform, 2, 8}}) {
    SideSpec side;
    side.kind = range.kind;
    for (int bits = -1; bits <= 9; ++bits) {
      side.bits = bits;
      const bool fits = bits >= range.lowest && bits <= range.highest;
      EXPECT_EQ(error_of([&] { validate(side, 128); }).code() == ErrorCode::Usage, !fits) << bits;
    }
  }
}

TEST(SpecValidate, Combinations) {
  SideSpec pair;
  pair.pair_codebook = true;
  EXPECT_NO_THROW(validate(pair, 128));
  pair.bits = 5;
  EXPECT_EQ(error_of([&] { validate(pair, 128); }).code(), ErrorCode::Usage);
  pair.bits = 4;
  pair.codebook = CodebookKind::Vllm;
  EXPECT_EQ(error_of([&] { validate(pair, 128); }).code(), ErrorCode::Usage);
  SideSpec corrected;
  corrected.norm_correction = true;
  EXPECT_EQ(error_of([&] { validate(corrected, 128); }).code(), ErrorCode::Usage);
  corrected.scale_rule = ScaleRule::Norm;
  EXPECT_NO_THROW(validate(corrected, 128));
  corrected.kind = CodeKind::Uniform;
  EXPECT_EQ(error_of([&] { validate(corrected, 128); }).code(), ErrorCode::Usage);
}

TEST(SpecValidate, MixedOutlierChannels) {
  EXPECT_EQ(mixed_outlier_channels(128), 32);
  EXPECT_EQ(mixed_outlier_channels(32), 8);
  EXPECT_EQ(mixed_outlier_channels(80), 24);
  EXPECT_EQ(mixed_outlier_channels(96), 24);
  EXPECT_EQ(mixed_outlier_channels(512), 128);
}

}  // namespace
}  // namespace tq4
