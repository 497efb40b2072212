// What makes a pile of named arrays a dump: which name is which tensor of which layer, which axis is heads and which tokens, and what the
// attributes say. Shared by the HDF5, safetensors and npy readers, which only list arrays and read ranges of them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/dump.h"

namespace tq4::io {

enum class Role : std::uint8_t { K, V, Q, OGram };

/// What a name means: "layer_003/k", "K_layer3", "key_cache_3", "past_key_values.3.key" are all {3, K}. Case and the separators
/// . / _ - do not matter; words other than those in use for caches make it nothing (nullopt).
struct TensorName {
  int layer;
  Role role;
};
std::optional<TensorName> parse_tensor_name(std::string_view path);

using Attributes = std::map<std::string, std::string>;

/// One array in a file, as its format sees it.
struct SourceTensor {
  std::string path;  ///< its name in the file, for messages and reading
  std::vector<std::uint64_t> shape;
  std::optional<DType> dtype;  ///< element type as stored (F64 is handed out as F32); empty: see `problem`
  std::string problem;         ///< why its elements cannot be read, and how to mend it
  Attributes attributes;       ///< its own attributes and, below them, those of its group
  std::size_t id = 0;          ///< the format's own index
};

/// A source tensor with its axes named. batch_axis is -1 for rank 3.
struct PlacedTensor {
  SourceTensor source;
  int head_axis = 0, token_axis = 1, batch_axis = -1;
  std::uint64_t heads() const { return source.shape[static_cast<std::size_t>(head_axis)]; }
  std::uint64_t tokens() const { return source.shape[static_cast<std::size_t>(token_axis)]; }
  std::uint64_t head_dim() const { return source.shape.back(); }
};

struct PlacedLayer {
  PlacedTensor k, v;
  std::optional<PlacedTensor> q;
  std::optional<SourceTensor> o_gram;
};

struct Schema {
  DumpInfo info;
  std::vector<PlacedLayer> layers;                                          ///< parallel to info.layers
  const PlacedTensor& tensor(std::size_t layer_index, Tensor which) const;  ///< Usage when there is none
};

/// Sorts `sources` into layers and checks them. `attributes` are the file's (the root's). Throws BadInput naming file, dataset, what is wrong
/// and how to mend it; Usage for a bad `options.axes`.
Schema assemble(const std::string& path, const std::string& format, const std::vector<SourceTensor>& sources, const Attributes& attributes,
                const DumpOptions& options);

/// Range check shared by the readers: Usage when head or tokens lie outside the tensor.
void check_range(const PlacedTensor& tensor, const std::string& file, int head, std::int64_t token_begin, std::int64_t count);

/// The element type handed to callers for a stored one (F64 -> F32).
DType delivered_dtype(DType stored);

}  // namespace tq4::io
