// Compressors by name: the grammar in tq4/compressor.h, and the list the report compares by default.
#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>
#include <string>
#include <utility>

#include "eval/baselines.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

/// A name being read from the front.
struct Reader {
  std::string_view rest;
  bool take(std::string_view word) {
    if (!rest.starts_with(word)) return false;
    rest.remove_prefix(word.size());
    return true;
  }
  std::optional<int> number() {
    int value = 0;
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (error != std::errc{} || value < 0) return std::nullopt;
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
    return value;
  }
  bool done() const { return rest.empty(); }
};

std::unique_ptr<Compressor> integer(Reader in) {
  const auto bits = in.number();
  if (!bits || *bits < 2 || *bits > 8) return nullptr;
  if (in.done()) return *bits == 8 || *bits == 4 ? eval::make_int_per_token(*bits) : eval::make_int_groups(*bits, 0, false);
  if (!in.take("-g")) return nullptr;
  const auto group = in.number();
  if (!group || *group < 8) return nullptr;
  const bool rotated = in.take("-rot");
  return in.done() ? eval::make_int_groups(*bits, *group, rotated) : nullptr;
}

std::unique_ptr<Compressor> kivi(Reader in) {
  const auto bits = in.number();
  if (!bits || *bits < 1 || *bits > 8) return nullptr;
  int group = 32, residual = 0;
  if (in.take("-g")) {
    const auto n = in.number();
    if (!n || *n < 8) return nullptr;
    group = *n;
  }
  if (in.take("-r")) {
    const auto n = in.number();
    if (!n || *n < 1 || *n % group != 0) return nullptr;
    residual = *n;
  }
  return in.done() ? eval::make_kivi(*bits, group, residual) : nullptr;
}

std::unique_ptr<Compressor> kvquant(Reader in) {
  const auto bits = in.number();
  if (!bits || *bits < 1 || *bits > 8) return nullptr;
  const bool outliers = in.take("-1%");
  return in.done() ? eval::make_kvquant(*bits, outliers) : nullptr;
}

std::unique_ptr<Compressor> baseline(std::string_view name) {
  Reader in{name};
  if (in.take("int")) return integer(in);
  if (in.take("kivi")) return kivi(in);
  if (in.take("kvquant")) return kvquant(in);
  if (name == "q4_0" || name == "q4_0-rot") return eval::make_llama_block(4, name != "q4_0");
  if (name == "q8_0" || name == "q8_0-rot") return eval::make_llama_block(8, name != "q8_0");
  if (name == "nvfp4" || name == "mxfp4") return eval::make_fp4(name == "nvfp4");
  return nullptr;
}

/// A baseline with sinks and a window kept exact, as tq4's codecs have them.
class WithExact final : public Compressor {
 public:
  WithExact(std::unique_ptr<Compressor> inner, std::string name, int sinks, int window)
      : inner_(std::move(inner)), name_(std::move(name)), sinks_(sinks), window_(window) {}
  std::string name() const override { return name_; }
  std::string description() const override {
    std::string text = inner_->description();
    if (sinks_ > 0) text += "; first " + std::to_string(sinks_) + " tokens in fp16";
    if (window_ > 0) text += "; newest " + std::to_string(window_) + " tokens in fp16";
    return text;
  }
  std::string source() const override { return inner_->source(); }
  void reconstruct(const HeadVectors& head, float* out) const override { inner_->reconstruct(head, out); }
  Footprint encoded(const HeadVectors& shape) const override { return inner_->encoded(shape); }
  ExactTokens exact(Side side) const override {
    ExactTokens tokens = inner_->exact(side);
    tokens.sinks = std::max(tokens.sinks, sinks_);
    tokens.window = std::max(tokens.window, window_);
    return tokens;
  }
  double theoretical_mse(Side side, int dim) const override { return inner_->theoretical_mse(side, dim); }
  void check(int dim) const override { inner_->check(dim); }

 private:
  std::unique_ptr<Compressor> inner_;
  std::string name_;
  int sinks_, window_;
};

}  // namespace

std::unique_ptr<Compressor> make_compressor(std::string_view name) {
  std::string low(name);
  for (char& c : low) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const std::string_view base = std::string_view(low).substr(0, low.find('+'));
  Reader in{std::string_view(low).substr(base.size())};
  int sinks = 0, window = 0;
  while (!in.done()) {
    int* target = in.take("+w") ? &window : in.take("+s") ? &sinks : nullptr;
    const auto n = target != nullptr ? in.number() : std::nullopt;
    if (!n) throw Error(ErrorCode::Usage, "suffixes are +wN (window) and +sN (sinks), as in k4v4+w64+s4", low);
    *target = *n;
  }
  if (auto found = baseline(base)) {
    if (sinks == 0 && window == 0) return found;
    return std::make_unique<WithExact>(std::move(found), low, sinks, window);
  }
  CodecSpec spec;
  try {
    spec = spec_from_name(base);
  } catch (const Error& error) {
    throw Error(error.code(), error.message() +
                                  "; baselines: int8, int4, intB-gN[-rot], q8_0, q4_0, q4_0-rot, kiviB[-gN][-rN], "
                                  "kvquantB[-1%], nvfp4, mxfp4; suffixes +wN and +sN");
  }
  if (sinks > 0) spec.sinks = sinks;
  if (window > 0) spec.window = window;
  return codec_compressor(low, spec);
}

const std::vector<std::string>& baseline_names() {
  static const std::vector<std::string> names{"fp8",
                                              "int8",
                                              "q8_0",
                                              "int4",
                                              "q4_0",
                                              "q4_0-rot",
                                              "int4-g32",
                                              "int4-g128-rot",
                                              "kivi4",
                                              "kivi4-g128",
                                              "kivi4-r128",
                                              "kivi4-g128-r128",
                                              "kivi2",
                                              "kivi2-g128",
                                              "kivi2-r128",
                                              "kivi2-g128-r128",
                                              "kvquant4",
                                              "kvquant4-1%",
                                              "kvquant3",
                                              "kvquant3-1%",
                                              "nvfp4",
                                              "mxfp4",
                                              "vllm:k8v4",
                                              "vllm:4bit_nc",
                                              "vllm:k3v4_nc",
                                              "vllm:3bit_nc",
                                              "turboquant-vllm",
                                              "tq4-norm",
                                              "tq3-norm",
                                              "tq2-norm",
                                              "tq4-prod",
                                              "tq3-prod",
                                              "tq2.5",
                                              "tq3.5"};
  return names;
}

const std::vector<std::string>& codec_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all{"tq4", "tq3", "tq2", "k4v3", "k4v2", "k3v2", "k8v4", "tq4-2d", "tq3-2d"};
    all.insert(all.end(), baseline_names().begin(), baseline_names().end());
    return all;
  }();
  return names;
}

}  // namespace tq4
