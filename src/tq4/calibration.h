// Calibration: what was learned from one text about each layer and head, applied to all others. It changes only the tables around the
// decode kernel (per-head matrices, centres, pair tables), never the bytes per token. Stored as a .tq4cal file (safetensors).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tq4/codec.h"

namespace tq4 {

/// Tables of one side of one layer. Empty vectors mean "not calibrated": the codec's rotation, no centre, the codec's pair table.
struct SideCalibration {
  std::vector<float> forward;   ///< [Hk, D, D]: R A
  std::vector<float> inverse;   ///< [Hk, D, D]: A^-1 R^T
  std::vector<float> centre;    ///< [Hk, D]
  std::vector<float> rope_mu;   ///< [Hk, D] mean of keys before RoPE (K only)
  std::vector<float> pair_points;  ///< [4^bits, 2], shared by the heads of the layer
};
struct LayerCalibration {
  int layer = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  double rope_theta = 0;
  int rope_dim = 0;
  SideCalibration k, v;
};
struct Calibration {
  CodecSpec spec;                ///< the spec it was made for (rotation and seed are baked into `forward`)
  std::string model;             ///< the dump's model attribute
  std::uint64_t fingerprint = 0; ///< calibration_fingerprint(model, layers): refused on mismatch
  std::int64_t tokens = 0;       ///< tokens it was estimated from
  std::vector<LayerCalibration> layers;
  const LayerCalibration* find(int layer) const;  ///< null when the layer is not in it
};

struct DumpInfo;
/// XXH3-64 over the model's name and each layer's number, kv heads and head_dim: what a calibration is bound to.
std::uint64_t calibration_fingerprint(std::string_view model, const std::vector<LayerCalibration>& layers);
/// Throws BadInput when the calibration was made for another model (by its fingerprint) or lacks, or has in another shape, a layer of the
/// dump. A dump may hold fewer layers than the calibration.
void check_calibration(const Calibration& calibration, const DumpInfo& dump);

/// The transform of one head; position0 is the position of the first vector of the call.
HeadTransform head_transform(const LayerCalibration* layer, Side side, int head, std::int64_t position0 = 0);

}  // namespace tq4
