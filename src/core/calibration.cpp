// Look-ups in a calibration: which layer, the slice of its tables that one head needs, and whether it belongs to a dump at all.
#include "tq4/calibration.h"

#include <cstddef>
#include <string>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tq4/dump.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

/// Head `head` of a [heads, stride] table; null when the table is empty. Throws BadInput when its size is not heads * stride.
const float* slice(const std::vector<float>& table, int heads, int head, std::size_t stride, const char* what) {
  if (table.empty()) return nullptr;
  if (table.size() != static_cast<std::size_t>(heads) * stride) {
    throw Error(ErrorCode::BadInput, std::string("calibration table ") + what + " has " + std::to_string(table.size()) + " numbers where " +
                                         std::to_string(static_cast<std::size_t>(heads) * stride) + " are needed");
  }
  return table.data() + static_cast<std::size_t>(head) * stride;
}

}  // namespace

const LayerCalibration* Calibration::find(int layer) const {
  for (const LayerCalibration& candidate : layers) {
    if (candidate.layer == layer) return &candidate;
  }
  return nullptr;
}

std::uint64_t calibration_fingerprint(std::string_view model, const std::vector<LayerCalibration>& layers) {
  std::string text(model);
  for (const LayerCalibration& layer : layers) {
    text += '\n' + std::to_string(layer.layer) + ' ' + std::to_string(layer.num_kv_heads) + ' ' + std::to_string(layer.head_dim);
  }
  return XXH3_64bits(text.data(), text.size());
}

void check_calibration(const Calibration& calibration, const DumpInfo& dump) {
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::BadInput, "the calibration does not fit this dump: " + why + "; calibrate on a dump of the same model",
                dump.path);
  };
  if (calibration_fingerprint(dump.model, calibration.layers) != calibration.fingerprint) {
    refuse("it was made for model \"" + calibration.model + "\", the dump is of \"" + dump.model + "\" (fingerprints differ)");
  }
  for (const LayerInfo& layer : dump.layers) {
    const LayerCalibration* tables = calibration.find(layer.layer);
    if (tables == nullptr) {
      refuse("it has no layer " + std::to_string(layer.layer));
    } else if (tables->num_kv_heads != layer.num_kv_heads || tables->head_dim != layer.head_dim) {
      refuse("layer " + std::to_string(layer.layer) + " has " + std::to_string(layer.num_kv_heads) + " kv heads of " +
             std::to_string(layer.head_dim) + ", the calibration " + std::to_string(tables->num_kv_heads) + " of " +
             std::to_string(tables->head_dim));
    }
  }
}

HeadTransform head_transform(const LayerCalibration* layer, Side side, int head, std::int64_t position0) {
  HeadTransform transform;
  transform.position0 = position0;
  if (layer == nullptr) return transform;
  if (head < 0 || head >= layer->num_kv_heads) {
    throw Error(ErrorCode::Usage,
                "head " + std::to_string(head) + " of a layer calibrated for " + std::to_string(layer->num_kv_heads) + " kv heads");
  }
  const SideCalibration& tables = side == Side::K ? layer->k : layer->v;
  const auto dim = static_cast<std::size_t>(layer->head_dim);
  transform.forward = slice(tables.forward, layer->num_kv_heads, head, dim * dim, "forward");
  transform.inverse = slice(tables.inverse, layer->num_kv_heads, head, dim * dim, "inverse");
  transform.centre = slice(tables.centre, layer->num_kv_heads, head, dim, "centre");
  transform.feedback = slice(tables.feedback, layer->num_kv_heads, head, dim * dim, "feedback");
  if (const float* gain = slice(tables.feedback_gain, layer->num_kv_heads, head, 1, "feedback_gain")) transform.feedback_gain = *gain;
  if (side == Side::K) {
    transform.rope_mu = slice(tables.rope_mu, layer->num_kv_heads, head, dim, "rope_mu");
    transform.rope_theta = layer->rope_theta;
    transform.rope_dim = layer->rope_dim;
  }
  return transform;
}

}  // namespace tq4
