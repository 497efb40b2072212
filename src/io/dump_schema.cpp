// See dump_schema.h. Nothing here touches a file; every rule about names, axes and attributes of dumps is in this one place.
#include "io/dump_schema.h"

#include <fnmatch.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <set>

#include "io/file.h"

namespace tq4::io {
namespace {

/// Lower-case words and numbers of a name: "K_layer03" -> k, layer, 03.
std::vector<std::string> words_of(std::string_view path) {
  std::vector<std::string> words;
  char previous = 0;  // 'a' letter, '0' digit, 0 separator
  for (const char c : path) {
    const auto byte = static_cast<unsigned char>(c);
    const char kind = std::isalpha(byte)                                            ? 'a'
                      : std::isdigit(byte)                                          ? '0'
                      : std::string_view("./_- ").find(c) != std::string_view::npos ? 0
                                                                                    : '?';
    if (kind == '?') return {};
    if (kind != 0) {
      if (kind != previous) words.emplace_back();
      words.back() += static_cast<char>(std::tolower(byte));
    }
    previous = kind;
  }
  return words;
}

std::optional<Role> role_of(const std::string& word) {
  if (word == "k" || word == "key" || word == "keys") return Role::K;
  if (word == "v" || word == "value" || word == "values") return Role::V;
  if (word == "q" || word == "query" || word == "queries") return Role::Q;
  return std::nullopt;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

std::string listing(const std::vector<SourceTensor>& sources) {
  std::string text;
  for (std::size_t i = 0; i < sources.size() && i < 8; ++i) text += (i ? ", " : "") + sources[i].path + " " + shape_text(sources[i].shape);
  if (sources.size() > 8) text += " and " + std::to_string(sources.size() - 8) + " more";
  return text.empty() ? "nothing" : text;
}

std::optional<double> number(const Attributes& attributes, const std::string& name) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return std::nullopt;
  const std::string& text = found->second;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value != value) return std::nullopt;
  return value;
}

/// An integer attribute; values outside [0, limit] count as absent.
std::optional<std::int64_t> integer(const Attributes& attributes, const std::string& name, double limit = 1e15) {
  const auto value = number(attributes, name);
  if (!value || *value < 0 || *value > limit || *value != static_cast<double>(static_cast<std::int64_t>(*value))) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

bool boolean(const Attributes& attributes, const std::string& name, bool fallback) {
  const auto found = attributes.find(name);
  if (found == attributes.end()) return fallback;
  const std::string& text = found->second;
  if (text == "true" || text == "True" || text == "TRUE" || text == "1") return true;
  if (text == "false" || text == "False" || text == "FALSE" || text == "0") return false;
  return fallback;
}

std::string text_or(const Attributes& attributes, const std::string& name) {
  const auto found = attributes.find(name);
  return found == attributes.end() ? std::string() : found->second;
}

/// True when the axes before head_dim are [heads, tokens], false for [tokens, heads], nullopt when the shape cannot tell.
/// A known number of heads decides; otherwise few rows first are heads (the schema's own order), very many rows first are tokens.
std::optional<bool> heads_first(std::uint64_t a, std::uint64_t b, std::optional<std::int64_t> heads) {
  if (heads) {
    const auto h = static_cast<std::uint64_t>(*heads);
    if (a == h && b != h) return true;
    if (b == h && a != h) return false;
    if (a == h) return true;
  }
  if (a == 0 && b > 0) return false;
  if (a <= 16 || (a <= 128 && a <= b)) return true;
  if (a > 128 && b <= 128) return false;
  return std::nullopt;
}

void name_axes(PlacedTensor& tensor, const std::string& file, const std::string& axes, std::optional<std::int64_t> heads) {
  const auto& shape = tensor.source.shape;
  const std::string where = file + ": " + tensor.source.path;
  if (!tensor.source.dtype) bad_input(where, tensor.source.problem);
  if (shape.size() != 3 && shape.size() != 4) {
    bad_input(where, "has shape " + shape_text(shape) + "; keys and values need [heads, tokens, head_dim] or [1, heads, tokens, head_dim]");
  }
  const int lead = static_cast<int>(shape.size()) - 3;
  if (!axes.empty()) {
    if (axes.size() != shape.size()) bad_input(where, "has shape " + shape_text(shape) + ", which the axes \"" + axes + "\" do not fit");
    tensor.head_axis = static_cast<int>(axes.find('h'));
    tensor.token_axis = static_cast<int>(axes.find('s'));
  } else {
    const auto first = static_cast<std::size_t>(lead);
    const auto order = heads_first(shape[first], shape[first + 1], heads);
    if (!order)
      bad_input(where, "has shape " + shape_text(shape) +
                           ", from which heads and tokens cannot be told apart; give the axes (--axes hsd or --axes shd)");
    tensor.head_axis = lead + (*order ? 0 : 1);
    tensor.token_axis = lead + (*order ? 1 : 0);
  }
  if (lead == 1) {
    tensor.batch_axis = 0;
    if (shape[0] != 1)
      bad_input(where,
                "holds " + std::to_string(shape[0]) + " sequences " + shape_text(shape) + "; a dump holds one, write one file a sequence");
  }
  if (tensor.heads() == 0 || tensor.heads() > 65536)
    bad_input(where, "has " + std::to_string(tensor.heads()) + " heads " + shape_text(shape));
  if (tensor.head_dim() == 0 || tensor.head_dim() > 65536)
    bad_input(where, "has head_dim " + std::to_string(tensor.head_dim()) + " " + shape_text(shape));
  if (tensor.tokens() > (std::uint64_t{1} << 40))
    bad_input(where, "has " + std::to_string(tensor.tokens()) + " tokens, which is impossible");
}

void check_axes_option(const std::string& axes) {
  if (!axes.empty() && axes != "hsd" && axes != "shd" && axes != "bhsd" && axes != "bshd") {
    throw Error(ErrorCode::Usage,
                "unknown order of axes \"" + axes + "\"; use hsd, shd, bhsd or bshd (h heads, s tokens, d head_dim, b batch of 1)",
                "--axes");
  }
}

bool matches(const std::string& path, const std::string& glob) {
  const std::string bare = path.starts_with('/') ? path.substr(1) : path;
  return glob.empty() || ::fnmatch(glob.c_str(), bare.c_str(), 0) == 0 || ::fnmatch(glob.c_str(), ("/" + bare).c_str(), 0) == 0;
}

using ByRole = std::map<Role, const SourceTensor*>;

LayerInfo describe(PlacedLayer& placed, int layer, const std::string& file, const Attributes& root, const std::string& axes) {
  LayerInfo info;
  info.layer = layer;
  const Attributes& own = placed.k.source.attributes;
  auto heads_hint = integer(own, "num_kv_heads", 65536);
  if (!heads_hint) heads_hint = integer(root, "num_kv_heads", 65536);
  name_axes(placed.k, file, axes, heads_hint);
  if (placed.v.source.shape != placed.k.source.shape) {
    bad_input(file + ": layer " + std::to_string(layer), "keys " + placed.k.source.path + " " + shape_text(placed.k.source.shape) +
                                                             " and values " + placed.v.source.path + " " +
                                                             shape_text(placed.v.source.shape) + " differ in shape; they must be equal");
  }
  // Values have the shape of the keys, so what was found out about the keys' axes is true of them.
  name_axes(
      placed.v, file,
      axes.empty() ? std::string(placed.k.head_axis < placed.k.token_axis ? "bhsd" : "bshd").substr(placed.k.batch_axis < 0 ? 1 : 0) : axes,
      {});
  info.num_kv_heads = static_cast<int>(placed.k.heads());
  info.head_dim = static_cast<int>(placed.k.head_dim());
  info.tokens = static_cast<std::int64_t>(placed.k.tokens());
  info.k_dtype = delivered_dtype(*placed.k.source.dtype);
  info.v_dtype = delivered_dtype(*placed.v.source.dtype);
  info.sliding_window = static_cast<int>(integer(own, "sliding_window", 2e9).value_or(integer(root, "sliding_window", 2e9).value_or(0)));
  if (placed.q) {
    const std::string where = file + ": " + placed.q->source.path;
    auto q_hint = integer(placed.q->source.attributes, "num_q_heads", 65536);
    if (!q_hint) q_hint = integer(root, "num_q_heads", 65536);
    const bool same_rank = placed.q->source.shape.size() == placed.k.source.shape.size();
    const std::string like_k =
        std::string(placed.k.head_axis < placed.k.token_axis ? "bhsd" : "bshd").substr(placed.k.batch_axis < 0 ? 1 : 0);
    name_axes(*placed.q, file, !axes.empty() ? axes : same_rank ? like_k : std::string(), q_hint);
    if (placed.q->head_dim() != placed.k.head_dim()) {
      bad_input(where,
                "queries " + shape_text(placed.q->source.shape) + " have another head_dim than keys " + shape_text(placed.k.source.shape));
    }
    if (placed.q->heads() % placed.k.heads() != 0) {
      bad_input(where,
                std::to_string(placed.q->heads()) + " query heads are no multiple of " + std::to_string(placed.k.heads()) + " key heads");
    }
    info.num_q_heads = static_cast<int>(placed.q->heads());
    info.q_tokens = static_cast<std::int64_t>(placed.q->tokens());
    info.q_dtype = delivered_dtype(*placed.q->source.dtype);
    auto start = integer(placed.q->source.attributes, "q_start");
    if (!start) start = integer(root, "q_start");
    info.q_start = start.value_or(std::max<std::int64_t>(0, info.tokens - info.q_tokens));
    if (info.q_start + info.q_tokens > info.tokens) {
      bad_input(where, "queries of positions " + std::to_string(info.q_start) + " to " + std::to_string(info.q_start + info.q_tokens) +
                           " lie past the " + std::to_string(info.tokens) + " tokens of the keys; mend the attribute q_start");
    }
  }
  if (placed.o_gram) {
    const std::vector<std::uint64_t> expected{placed.k.heads(), placed.k.head_dim(), placed.k.head_dim()};
    const std::string where = file + ": " + placed.o_gram->path;
    if (!placed.o_gram->dtype) bad_input(where, placed.o_gram->problem);
    if (placed.o_gram->shape != expected)
      bad_input(where, "has shape " + shape_text(placed.o_gram->shape) + " instead of " + shape_text(expected));
    info.has_o_gram = true;
  }
  return info;
}

}  // namespace

std::optional<TensorName> parse_tensor_name(std::string_view path) {
  static const std::set<std::string> filler{"layer",     "layers", "cache",  "past",  "model",  "self",   "attn",
                                            "attention", "kv",     "states", "state", "tensor", "tensors"};
  std::vector<std::string> words = words_of(path);
  // Hugging Face's container is itself called past_key_values.
  if (words.size() > 3 && words[0] == "past" && words[1] == "key" && words[2] == "values") words.erase(words.begin(), words.begin() + 3);
  std::optional<Role> role;
  int layer = -1;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (std::isdigit(static_cast<unsigned char>(word[0]))) {
      if (layer >= 0 || word.size() > 6) return std::nullopt;
      layer = std::atoi(word.c_str());
    } else if (word == "o" && i + 1 < words.size() && words[i + 1] == "gram") {
      if (role) return std::nullopt;
      role = Role::OGram;
      ++i;
    } else if (const auto found = role_of(word)) {
      if (role) return std::nullopt;
      role = found;
    } else if (!filler.contains(word)) {
      return std::nullopt;
    }
  }
  if (!role || layer < 0) return std::nullopt;
  return TensorName{layer, *role};
}

const PlacedTensor& Schema::tensor(std::size_t layer_index, Tensor which) const {
  if (layer_index >= layers.size())
    throw Error(ErrorCode::Usage, "layer index " + std::to_string(layer_index) + " of " + std::to_string(layers.size()), info.path);
  const PlacedLayer& layer = layers[layer_index];
  if (which == Tensor::K) return layer.k;
  if (which == Tensor::V) return layer.v;
  if (!layer.q) throw Error(ErrorCode::Usage, "layer " + std::to_string(info.layers[layer_index].layer) + " has no queries", info.path);
  return *layer.q;
}

Schema assemble(const std::string& path, const std::string& format, const std::vector<SourceTensor>& sources, const Attributes& attributes,
                const DumpOptions& options) {
  check_axes_option(options.axes);
  Schema schema;
  DumpInfo& info = schema.info;
  info.path = path;
  info.format = format;
  info.model = text_or(attributes, "model");
  info.source = text_or(attributes, "source");
  info.sm_scale = number(attributes, "sm_scale").value_or(0);
  info.rope_theta = number(attributes, "rope_theta").value_or(0);
  info.rope_applied = boolean(attributes, "rope_applied", false);
  info.causal = boolean(attributes, "causal", true);
  info.attributes = attributes;

  std::map<int, ByRole> by_layer;
  for (const SourceTensor& source : sources) {
    const auto name = parse_tensor_name(source.path);
    if (!name) continue;
    const auto [place, fresh] = by_layer[name->layer].try_emplace(name->role, &source);
    if (!fresh)
      bad_input(path, source.path + " and " + place->second->path + " are both the same tensor of layer " + std::to_string(name->layer) +
                          "; remove or rename one");
  }
  std::erase_if(by_layer, [](const auto& layer) { return !layer.second.contains(Role::K) && !layer.second.contains(Role::V); });
  if (by_layer.empty()) {
    const auto is_pages = [](const SourceTensor& source) { return source.path.ends_with("/block_table"); };
    if (std::any_of(sources.begin(), sources.end(), is_pages))
      bad_input(path, "holds pages (cache, block_table), not keys and values; tq4 convert makes a container of them");
    bad_input(path,
              "no keys and values found; expected datasets named /layer_{i}/k and /layer_{i}/v (or key/value, layer_{i}_key, K_layer{i}, "
              "key_cache_{i}), found " +
                  listing(sources));
  }
  for (const auto& [layer, roles] : by_layer) {
    const bool has_k = roles.contains(Role::K), has_v = roles.contains(Role::V);
    if (!matches(roles.at(has_k ? Role::K : Role::V)->path, options.dataset_glob) &&
        !(has_v && matches(roles.at(Role::V)->path, options.dataset_glob)))
      continue;
    if (!has_k || !has_v) {
      bad_input(path, "layer " + std::to_string(layer) + " has " + roles.at(has_k ? Role::K : Role::V)->path + " but no " +
                          (has_k ? "values" : "keys") + "; found " + listing(sources));
    }
    PlacedLayer placed;
    placed.k.source = *roles.at(Role::K);
    placed.v.source = *roles.at(Role::V);
    if (const auto q = roles.find(Role::Q); q != roles.end()) placed.q.emplace().source = *q->second;
    if (const auto gram = roles.find(Role::OGram); gram != roles.end()) placed.o_gram = *gram->second;
    info.layers.push_back(describe(placed, layer, path, attributes, options.axes));
    schema.layers.push_back(std::move(placed));
  }
  if (info.layers.empty()) bad_input(path, "no layer matches \"" + options.dataset_glob + "\"; found " + listing(sources));
  return schema;
}

void check_range(const PlacedTensor& tensor, const std::string& file, int head, std::int64_t token_begin, std::int64_t count) {
  const auto tokens = static_cast<std::int64_t>(tensor.tokens());
  if (head < 0 || static_cast<std::uint64_t>(head) >= tensor.heads() || token_begin < 0 || count < 0 || token_begin > tokens ||
      count > tokens - token_begin) {
    throw Error(ErrorCode::Usage,
                "head " + std::to_string(head) + ", tokens " + std::to_string(token_begin) + " + " + std::to_string(count) +
                    " asked of shape " + shape_text(tensor.source.shape),
                file + ": " + tensor.source.path);
  }
}

DType delivered_dtype(DType stored) { return stored == DType::F64 ? DType::F32 : stored; }

}  // namespace tq4::io
