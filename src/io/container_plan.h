// What a container consists of, tensor by tensor, from its spec and its layers. Writer and reader derive the same list from the same
// metadata: one lays it out, the other demands it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "io/sealed_file.h"
#include "tq4/container.h"

namespace tq4::io {

/// Indices into the list of planned tensors; -1 where the codec or the layer has no such part.
struct SideTensors {
  int codes = -1, scale = -1, zero = -1, signs = -1, residual_norm = -1, exact = -1;
};

/// Encoded and exact tokens of a layer.
std::int64_t exact_tokens(const StoredLayer& layer);
std::int64_t encoded_tokens(const StoredLayer& layer);

const SideSpec& side_of(const CodecSpec& spec, Side side);
std::string layer_prefix(int layer, Side side);  ///< "layer_003.k."

/// Appends the tensors of one side of a layer to `tensors`.
SideTensors plan_side(const CodecSpec& spec, const StoredLayer& layer, Side side, std::vector<PlannedTensor>& tensors);

/// Usage when a layer cannot be stored: counts that contradict each other, a head_dim the spec does not serve, a number twice.
void check_layers(const CodecSpec& spec, const std::vector<StoredLayer>& layers);

/// The metadata entries "layers" and "dump" (JSON) and back. `tables` holds the number of the codec tables of K and V, -1 for none.
struct LayerTables {
  std::array<int, 2> of_side{-1, -1};
};
std::string layers_to_json(const std::vector<StoredLayer>& layers, const std::vector<LayerTables>& tables);
void layers_from_json(const std::string& text, const std::string& where, std::vector<StoredLayer>& layers,
                      std::vector<LayerTables>& tables);
std::string dump_to_json(const DumpInfo& dump);
DumpInfo dump_from_json(const std::string& text, const std::string& where);

}  // namespace tq4::io
