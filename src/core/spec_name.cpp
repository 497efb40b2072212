// Names of specs: the grammar of spec.h, its inverse, and the suggestion a mistyped name gets.
#include <algorithm>
#include <cctype>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "tq4/error.h"
#include "tq4/spec.h"

namespace tq4 {
namespace {

SideSpec mse_side(int bits) {
  SideSpec side;
  side.bits = bits;
  return side;
}

SideSpec unrotated(CodeKind kind, int bits) {
  SideSpec side;
  side.kind = kind;
  side.bits = bits;
  side.rotation = RotationKind::None;
  return side;
}

/// "4", "2.5": one side of tqB and kAvB. 16 means pass-through; 8 on the key side of kAvB means fp8 (`eight_is_fp8`).
std::optional<SideSpec> side_from_bits(std::string_view text, bool eight_is_fp8) {
  if (text == "16") return unrotated(CodeKind::Fp16, 16);
  if (text == "8" && eight_is_fp8) return unrotated(CodeKind::Fp8, 8);
  if (text == "2.5" || text == "3.5") {
    SideSpec side = mse_side(text[0] - '0');
    side.kind = CodeKind::Mixed;
    return side;
  }
  if (text.size() == 1 && text[0] >= '1' && text[0] <= '8') return mse_side(text[0] - '0');
  return std::nullopt;
}

/// "kAvB" split into A and B.
std::optional<std::pair<std::string_view, std::string_view>> split_kv(std::string_view text) {
  const std::size_t v = text.find('v');
  if (text.size() < 4 || text[0] != 'k' || v == std::string_view::npos) return std::nullopt;
  return std::pair{text.substr(1, v - 1), text.substr(v + 1)};
}

SideSpec turboquant_vllm_side(int bits) {
  SideSpec side = mse_side(bits);
  side.codebook = CodebookKind::TurboquantVllm;
  side.rotation = RotationKind::HaarTorch;
  side.scale_rule = ScaleRule::Norm;
  side.scale_dtype = ScaleDType::F32;
  return side;
}

SideSpec vllm_key(int bits) {
  SideSpec side = mse_side(bits);
  side.codebook = CodebookKind::Vllm;
  side.rotation = RotationKind::Hadamard;
  side.scale_rule = ScaleRule::Norm;
  side.norm_correction = true;
  return side;
}

std::optional<CodecSpec> peer(std::string_view text) {
  constexpr std::string_view kPlugin = "turboquant-vllm";
  if (text.starts_with(kPlugin)) {
    text.remove_prefix(kPlugin.size());
    if (text.empty()) return CodecSpec{turboquant_vllm_side(4), turboquant_vllm_side(4)};
    if (text.size() == 5 && text[0] == '-' && text[1] == 'k' && text[3] == 'v' && text[2] >= '2' && text[2] <= '4' && text[4] >= '2' &&
        text[4] <= '4') {
      return CodecSpec{turboquant_vllm_side(text[2] - '0'), turboquant_vllm_side(text[4] - '0')};
    }
    return std::nullopt;
  }
  if (text == "vllm:k8v4") return CodecSpec{unrotated(CodeKind::Fp8, 8), unrotated(CodeKind::Uniform, 4)};
  if (text == "vllm:4bit_nc") return CodecSpec{vllm_key(4), unrotated(CodeKind::Uniform, 4)};
  if (text == "vllm:k3v4_nc") return CodecSpec{vllm_key(3), unrotated(CodeKind::Uniform, 4)};
  if (text == "vllm:3bit_nc") return CodecSpec{vllm_key(3), unrotated(CodeKind::Uniform, 3)};
  return std::nullopt;
}

std::optional<CodecSpec> parse(std::string_view text) {
  if (auto found = peer(text)) return found;
  if (text == "fp8") return CodecSpec{unrotated(CodeKind::Fp8, 8), unrotated(CodeKind::Fp8, 8)};
  if (text == "fp16") return CodecSpec{unrotated(CodeKind::Fp16, 16), unrotated(CodeKind::Fp16, 16)};
  const std::string_view base = text.substr(0, text.find('-'));
  std::optional<SideSpec> k, v;
  if (base.starts_with("tq")) {
    k = v = side_from_bits(base.substr(2), false);
    if (k && k->kind == CodeKind::Fp16) return std::nullopt;
  } else if (const auto sides = split_kv(base)) {
    k = side_from_bits(sides->first, true);
    v = side_from_bits(sides->second, false);
  }
  if (!k || !v) return std::nullopt;
  std::string_view rest = text.substr(base.size());
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::string_view suffix = rest.substr(0, rest.find('-'));
    rest.remove_prefix(suffix.size());
    if (suffix == "prod") {  // for keys: values are summed, not multiplied with a query, and mse is better for them (paper, section 4.2)
      if (k->kind != CodeKind::Mse || k->bits < 2 || k->bits > 5) return std::nullopt;
      k->kind = CodeKind::Prod;
    } else if (suffix == "2d") {
      bool any = false;
      for (SideSpec* side : {&*k, &*v}) {
        if (side->kind != CodeKind::Mse) continue;
        if (side->bits < 2 || side->bits > 4) return std::nullopt;
        side->pair_codebook = any = true;
      }
      if (!any) return std::nullopt;
    } else if (suffix == "norm") {
      bool any = false;
      for (SideSpec* side : {&*k, &*v}) {
        if (side->rotation == RotationKind::None) continue;
        side->scale_rule = ScaleRule::Norm;
        any = true;
      }
      if (!any) return std::nullopt;
    } else {
      return std::nullopt;
    }
  }
  return CodecSpec{*k, *v};
}

/// Every name of the grammar, shortest and commonest first: what suggestions and spec_name choose from.
const std::vector<std::string>& all_names() {
  static const std::vector<std::string> names = [] {
    static constexpr const char* kBits[] = {"4", "3", "2", "1", "5", "6", "7", "8", "2.5", "3.5"};
    std::vector<std::string> bases;
    for (const char* bits : kBits) bases.push_back(std::string("tq") + bits);
    for (const char* k : {"8", "4", "3", "2", "1", "5", "6", "7", "2.5", "3.5", "16"}) {
      for (const char* v : {"4", "3", "2", "1", "5", "6", "7", "8", "2.5", "3.5", "16"}) bases.push_back(std::string("k") + k + "v" + v);
    }
    std::vector<std::string> all{"fp8", "fp16", "turboquant-vllm", "vllm:k8v4", "vllm:4bit_nc", "vllm:k3v4_nc", "vllm:3bit_nc"};
    for (const char* suffix : {"", "-2d", "-norm", "-prod", "-2d-norm", "-prod-2d", "-prod-norm", "-prod-2d-norm"}) {
      for (const std::string& base : bases) {
        if (parse(base + suffix)) all.push_back(base + suffix);
      }
    }
    for (const char k : {'4', '3', '2'}) {
      for (const char v : {'4', '3', '2'}) all.push_back(std::string("turboquant-vllm-k") + k + "v" + v);
    }
    return all;
  }();
  return names;
}

/// Levenshtein distance.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string describe(const SideSpec& side) {
  static constexpr const char* kKinds[] = {"mse", "prod", "mixed", "fp8-", "uniform", "fp16-"};
  static constexpr const char* kBooks[] = {"sphere", "gaussian", "turboquant-vllm", "vllm"};
  static constexpr const char* kRotations[] = {"none", "haar", "haar-torch", "hadamard", "hadamard-signed"};
  static constexpr const char* kRules[] = {"least-squares", "norm", "unbiased"};
  if (side.kind == CodeKind::Fp16) return "fp16";
  std::string text;
  if (side.kind == CodeKind::Fp8) {
    text = side.fp8 == Fp8Kind::E4M3 ? "fp8-e4m3" : "fp8-e4b15";
  } else {
    text = kKinds[static_cast<int>(side.kind)] + std::to_string(side.bits) + (side.pair_codebook ? "-2d" : "");
    if (side.kind != CodeKind::Uniform) {
      text += std::string(" ") + kBooks[static_cast<int>(side.codebook)] + " " + kRules[static_cast<int>(side.scale_rule)];
      if (side.norm_correction) text += " norm-correction";
    }
    text += side.scale_dtype == ScaleDType::F16 ? " f16" : " f32";
  }
  text += std::string(" ") + kRotations[static_cast<int>(side.rotation)];
  const bool seeded = side.rotation == RotationKind::Haar || side.rotation == RotationKind::HaarTorch ||
                      side.rotation == RotationKind::HadamardSigned || side.kind == CodeKind::Prod;
  return seeded ? text + " seed " + std::to_string(side.seed) : text;
}

}  // namespace

CodecSpec spec_from_name(std::string_view name) {
  std::string low(name);
  for (char& c : low) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (auto spec = parse(low)) return *spec;
  const std::string* nearest = nullptr;
  std::size_t best = std::string::npos;
  if (low.size() <= 64) {
    for (const std::string& known : all_names()) {
      const std::size_t distance = edit_distance(low, known);
      if (distance < best) {
        best = distance;
        nearest = &known;
      }
    }
  }
  const std::string hint =
      nearest != nullptr && best <= std::max<std::size_t>(2, low.size() / 2) ? "; did you mean \"" + *nearest + "\"?" : "";
  throw Error(ErrorCode::Usage, "unknown codec \"" + std::string(name.substr(0, 64)) + "\"" + hint +
                                    " (known: tq1..tq8, tq2.5, tq3.5, kAvB as in k4v3, fp8, fp16, with -2d, -norm, -prod; turboquant-vllm, "
                                    "turboquant-vllm-kAvB, vllm:k8v4, vllm:4bit_nc, vllm:k3v4_nc, vllm:3bit_nc)");
}

std::string spec_name(const CodecSpec& spec) {
  CodecSpec body = spec;
  body.sinks = body.window = 0;
  std::string text;
  for (const std::string& name : all_names()) {
    if ((text.empty() || name.size() < text.size()) && *parse(name) == body) text = name;
  }
  if (text.empty()) text = spec.k == spec.v ? "[" + describe(spec.k) + "]" : "k [" + describe(spec.k) + "] v [" + describe(spec.v) + "]";
  if (spec.sinks != 0) text += " sinks " + std::to_string(spec.sinks);
  if (spec.window != 0) text += " window " + std::to_string(spec.window);
  return text;
}

}  // namespace tq4
