// The JSON form of a spec, as containers store it: every field spelled out, so that a reader needs no defaults, and read strictly, so
// that a file written by a newer version is refused instead of misread.
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tq4/error.h"
#include "tq4/spec.h"

namespace tq4 {

NLOHMANN_JSON_SERIALIZE_ENUM(CodeKind, {{CodeKind::Mse, "mse"},
                                        {CodeKind::Prod, "prod"},
                                        {CodeKind::Mixed, "mixed"},
                                        {CodeKind::Fp8, "fp8"},
                                        {CodeKind::Uniform, "uniform"},
                                        {CodeKind::Fp16, "fp16"}})
NLOHMANN_JSON_SERIALIZE_ENUM(Fp8Kind, {{Fp8Kind::E4M3, "e4m3"}, {Fp8Kind::E4B15, "e4b15"}})
NLOHMANN_JSON_SERIALIZE_ENUM(CodebookKind, {{CodebookKind::Sphere, "sphere"},
                                            {CodebookKind::Gaussian, "gaussian"},
                                            {CodebookKind::TurboquantVllm, "turboquant-vllm"},
                                            {CodebookKind::Vllm, "vllm"}})
NLOHMANN_JSON_SERIALIZE_ENUM(RotationKind, {{RotationKind::None, "none"},
                                            {RotationKind::Haar, "haar"},
                                            {RotationKind::HaarTorch, "haar-torch"},
                                            {RotationKind::Hadamard, "hadamard"},
                                            {RotationKind::HadamardSigned, "hadamard-signed"}})
NLOHMANN_JSON_SERIALIZE_ENUM(ScaleRule,
                             {{ScaleRule::LeastSquares, "least-squares"}, {ScaleRule::Norm, "norm"}, {ScaleRule::Unbiased, "unbiased"}})
NLOHMANN_JSON_SERIALIZE_ENUM(ScaleDType, {{ScaleDType::F16, "float16"}, {ScaleDType::F32, "float32"}})

namespace {

using nlohmann::json;

[[noreturn]] void bad(const std::string& message) { throw Error(ErrorCode::BadInput, message, "codec spec"); }

json side_json(const SideSpec& side) {
  return {{"kind", side.kind},
          {"bits", side.bits},
          {"codebook", side.codebook},
          {"rotation", side.rotation},
          {"seed", side.seed},
          {"scale_rule", side.scale_rule},
          {"scale_dtype", side.scale_dtype},
          {"fp8", side.fp8},
          {"pair_codebook", side.pair_codebook},
          {"norm_correction", side.norm_correction}};
}

/// Reads the members of one JSON object; each must be asked for exactly once, and finish() refuses the rest.
class Members {
 public:
  Members(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) bad(where_ + " must be an object");
  }

  const json& member(const char* name) {
    const auto it = object_.find(name);
    if (it == object_.end()) bad(where_ + "." + name + " is missing");
    asked_.insert(name);
    return *it;
  }

  template <class Enum>
  Enum choice(const char* name) {
    const json& value = member(name);
    const Enum result = value.get<Enum>();
    // Unknown names fall back to the first enumerator, so compare with what it would be written as.
    if (!value.is_string() || json(result) != value) bad(where_ + "." + name + " has the unknown value " + value.dump());
    return result;
  }

  int integer(const char* name, int lowest, int highest) {
    const json& value = member(name);
    if (!value.is_number_integer()) bad(where_ + "." + name + " must be an integer");
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(highest))
      bad(where_ + "." + name + " is too large");
    const auto number = value.get<std::int64_t>();
    if (number < lowest || number > highest) bad(where_ + "." + name + " is out of range");
    return static_cast<int>(number);
  }

  std::uint64_t word(const char* name) {
    const json& value = member(name);
    if (!value.is_number_unsigned()) bad(where_ + "." + name + " must be an unsigned integer");
    return value.get<std::uint64_t>();
  }

  bool flag(const char* name) {
    const json& value = member(name);
    if (!value.is_boolean()) bad(where_ + "." + name + " must be true or false");
    return value.get<bool>();
  }

  void finish() const {
    for (const auto& item : object_.items()) {
      if (asked_.count(item.key()) == 0) bad(where_ + "." + item.key() + " is unknown; was it written by a newer version?");
    }
  }

 private:
  const json& object_;
  std::string where_;
  std::set<std::string> asked_;
};

SideSpec side_from(const json& object, const char* where) {
  Members members(object, where);
  SideSpec side;
  side.kind = members.choice<CodeKind>("kind");
  side.bits = members.integer("bits", 0, 16);
  side.codebook = members.choice<CodebookKind>("codebook");
  side.rotation = members.choice<RotationKind>("rotation");
  side.seed = members.word("seed");
  side.scale_rule = members.choice<ScaleRule>("scale_rule");
  side.scale_dtype = members.choice<ScaleDType>("scale_dtype");
  side.fp8 = members.choice<Fp8Kind>("fp8");
  side.pair_codebook = members.flag("pair_codebook");
  side.norm_correction = members.flag("norm_correction");
  members.finish();
  return side;
}

}  // namespace

std::string spec_to_json(const CodecSpec& spec) {
  return json{{"k", side_json(spec.k)}, {"v", side_json(spec.v)}, {"sinks", spec.sinks}, {"window", spec.window}}.dump();
}

CodecSpec spec_from_json(std::string_view text) {
  const json root = json::parse(text.begin(), text.end(), nullptr, false);
  if (root.is_discarded()) bad("not JSON");
  Members members(root, "spec");
  CodecSpec spec;
  spec.k = side_from(members.member("k"), "k");
  spec.v = side_from(members.member("v"), "v");
  spec.sinks = members.integer("sinks", 0, 1 << 30);
  spec.window = members.integer("window", 0, 1 << 30);
  members.finish();
  return spec;
}

}  // namespace tq4
