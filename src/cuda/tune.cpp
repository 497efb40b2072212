// See tq4/tune.h: the candidates and the file of winners. Plain host code, the same in builds without CUDA.
#include "tq4/tune.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cuda/decode_attention/splits.h"
#include "tq4/error.h"

namespace tq4::gpu {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

std::string number(std::int64_t n) { return std::to_string(n); }
std::int64_t up_to_power(std::int64_t n) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(n, 1))));
}

/// Tabs and line ends separate fields.
std::string field(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\t' || c == '\n' || c == '\r'; }, ' ');
  return text;
}

}  // namespace

std::vector<LaunchChoice> tune_candidates(const ProfileShape& shape, const std::string& path) {
  std::vector<LaunchChoice> choices;
  if (shape.op != ProfileOp::Decode || path != "general") return choices;
  const int most = most_splits(shape.ctx);
  for (const int splits : {1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, kMaxSplits}) {
    if (splits <= most) choices.push_back({splits});
  }
  return choices;
}

std::string tune_device_key(const DeviceInfo& device) {
  return field(device.name) + ", " + number(device.sm_count) + " SMs, CUDA driver " + number(device.driver_version / 1000) + "." +
         number(device.driver_version % 1000 / 10);
}

std::string tune_shape_key(const ProfileShape& s) {
  static constexpr const char* kOps[] = {"decode", "store", "encode", "dequant", "prefill"};
  std::string key = std::string(kOps[static_cast<std::size_t>(s.op)]) + " " + spec_name(s.spec) + " " + std::string(layout_name(s.layout));
  if (s.padded) key += " padded";
  key += " heads " + number(s.num_q_heads) + "/" + number(s.num_kv_heads) + " dim " + number(s.head_dim) + " block " +
         number(s.block_size) + " q " + number(s.q_len) + " batch " + number(up_to_power(s.batch)) + " ctx " + number(up_to_power(s.ctx));
  if (s.ragged) key += " ragged";
  if (s.spec.sinks + s.spec.window > 0) key += " exact " + number(s.spec.sinks) + "+" + number(s.spec.window);
  return field(key);
}

std::string TuneCache::default_path() {
  const std::string cache = environment("XDG_CACHE_HOME"), home = environment("HOME");
  if (!cache.empty() && cache.front() == '/') return cache + "/tq4/tune.tsv";
  return home.empty() ? std::string() : home + "/.cache/tq4/tune.tsv";
}

TuneCache TuneCache::load(const std::string& path) {
  TuneCache cache;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find('\t'), second = first == std::string::npos ? first : line.find('\t', first + 1);
    if (second == std::string::npos) continue;
    constexpr std::string_view kSplits = "splits ";
    const std::string_view choice = std::string_view(line).substr(second + 1);
    int splits = -1;
    if (!choice.starts_with(kSplits)) continue;
    const char *begin = choice.data() + kSplits.size(), *end = choice.data() + choice.size();
    const auto [stopped, error] = std::from_chars(begin, end, splits);
    if (error != std::errc() || stopped != end || splits < 0 || splits > 1024) continue;
    cache.choices_[{line.substr(0, first), line.substr(first + 1, second - first - 1)}] = {splits};
  }
  return cache;
}

std::optional<LaunchChoice> TuneCache::find(const DeviceInfo& device, const ProfileShape& shape) const {
  const auto found = choices_.find({tune_device_key(device), tune_shape_key(shape)});
  return found == choices_.end() ? std::nullopt : std::optional(found->second);
}

void TuneCache::put(const DeviceInfo& device, const ProfileShape& shape, const LaunchChoice& choice) {
  choices_[{tune_device_key(device), tune_shape_key(shape)}] = choice;
}

void TuneCache::save(const std::string& path) const {
  std::ostringstream text;
  for (const auto& [key, choice] : choices_) text << key.first << '\t' << key.second << "\tsplits " << choice.splits << '\n';
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  const std::string temporary = path + "." + std::to_string(::getpid()) + ".tmp";
  bool written = false;
  {
    std::ofstream out(temporary, std::ios::trunc);
    out << text.str();
    out.close();
    written = !out.fail();
  }
  if (written) std::filesystem::rename(temporary, path, error);
  if (!written || error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw Error(ErrorCode::Runtime, "cannot write the cache of launch choices", path);
  }
}

}  // namespace tq4::gpu
