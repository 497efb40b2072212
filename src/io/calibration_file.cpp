// .tq4cal files, and the part of them that containers share. Tensors are named calibration.layer_003.k.forward and so on; a table that is
// empty in memory is absent in the file.
#include <array>
#include <cmath>
#include <set>

#include "io/calibration_tensors.h"
#include "io/container_plan.h"
#include "io/json_fields.h"
#include "tq4/container.h"

namespace tq4 {
namespace io {
namespace {

struct Part {
  const char* name;
  std::vector<float> SideCalibration::*table;
};
constexpr Part kForward{"forward", &SideCalibration::forward}, kInverse{"inverse", &SideCalibration::inverse},
    kCentre{"centre", &SideCalibration::centre}, kRopeMu{"rope_mu", &SideCalibration::rope_mu},
    kPairs{"pair_points", &SideCalibration::pair_points}, kFeedback{"feedback", &SideCalibration::feedback},
    kFeedbackGain{"feedback_gain", &SideCalibration::feedback_gain};
constexpr std::array<Part, 7> kParts{kForward, kInverse, kCentre, kRopeMu, kPairs, kFeedback, kFeedbackGain};

std::vector<std::uint64_t> part_shape(const Part& part, const LayerCalibration& layer, std::uint64_t points) {
  const auto heads = static_cast<std::uint64_t>(layer.num_kv_heads), dim = static_cast<std::uint64_t>(layer.head_dim);
  if (part.table == kForward.table || part.table == kInverse.table || part.table == kFeedback.table) return {heads, dim, dim};
  if (part.table == kFeedbackGain.table) return {heads};
  if (part.table == kPairs.table) return {points, 2};
  return {heads, dim};
}

std::string part_name(const LayerCalibration& layer, Side side, const Part& part) {
  return "calibration." + layer_prefix(layer.layer, side) + part.name;
}

bool is_point_count(std::uint64_t points) { return points == 16 || points == 64 || points == 256; }  // 4^2, 4^3, 4^4

}  // namespace

CalibrationTensors calibration_tensors(const Calibration& calibration) {
  CalibrationTensors out;
  for (const LayerCalibration& layer : calibration.layers) {
    for (const Side side : {Side::K, Side::V}) {
      const SideCalibration& tables = side == Side::K ? layer.k : layer.v;
      for (const Part& part : kParts) {
        const std::vector<float>& values = tables.*part.table;
        if (values.empty()) continue;
        PlannedTensor tensor{part_name(layer, side, part), DType::F32, part_shape(part, layer, values.size() / 2)};
        const bool fits =
            tensor.bytes() == values.size() * sizeof(float) && (part.table != kPairs.table || is_point_count(values.size() / 2));
        if (!fits)
          throw Error(ErrorCode::Usage, "has " + std::to_string(values.size()) + " numbers, which do not fit the layer", tensor.name);
        out.tensors.push_back(std::move(tensor));
        out.data.push_back(values.data());
      }
    }
  }
  return out;
}

std::string calibration_to_json(const Calibration& calibration) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerCalibration& layer : calibration.layers) {
    layers.push_back({{"layer", layer.layer},
                      {"num_kv_heads", layer.num_kv_heads},
                      {"head_dim", layer.head_dim},
                      {"rope_theta", layer.rope_theta},
                      {"rope_dim", layer.rope_dim}});
  }
  return dump_json({{"model", calibration.model},
                    {"fingerprint", hex16(calibration.fingerprint)},
                    {"tokens", calibration.tokens},
                    {"spec", spec_to_json(calibration.spec)},
                    {"layers", layers}});
}

Calibration read_calibration_tensors(SealedFile& file) {
  const std::string where = file.path() + ": calibration";
  const nlohmann::json json = parse_metadata(file.metadata("calibration"), where);
  Fields fields(json, where);
  Calibration calibration;
  calibration.model = fields.text("model");
  calibration.fingerprint = parse_hex16(fields.text("fingerprint"), where);
  calibration.tokens = fields.integer("tokens", 0, std::int64_t{1} << 50);
  calibration.spec = spec_from_json(fields.text("spec"));
  const nlohmann::json& layers = fields.at("layers");
  fields.finish();
  if (!layers.is_array()) bad_input(where, "its layers are no JSON array");
  std::set<int> seen;
  for (const nlohmann::json& entry : layers) {
    Fields of_layer(entry, where);
    LayerCalibration& layer = calibration.layers.emplace_back();
    layer.layer = of_layer.small("layer", 0, 999999);
    layer.num_kv_heads = of_layer.small("num_kv_heads", 1, 65536);
    layer.head_dim = of_layer.small("head_dim", 1, 65536);
    layer.rope_theta = of_layer.number("rope_theta");
    layer.rope_dim = of_layer.small("rope_dim", 0, layer.head_dim);
    of_layer.finish();
    if (!seen.insert(layer.layer).second) bad_input(where, "names layer " + std::to_string(layer.layer) + " twice");
    for (const Side side : {Side::K, Side::V}) {
      SideCalibration& tables = side == Side::K ? layer.k : layer.v;
      for (const Part& part : kParts) {
        const std::string name = part_name(layer, side, part);
        if (!file.has(name)) continue;
        const auto& shape = file.entry(name).shape;
        const std::uint64_t points = shape.empty() ? 0 : shape[0];
        if (part.table == kPairs.table && !is_point_count(points))
          bad_input(file.path() + ": " + name, "has " + std::to_string(points) + " points");
        tables.*part.table = file.read_vector<float>(name, DType::F32, part_shape(part, layer, points));
        for (const float value : tables.*part.table) {
          if (!std::isfinite(value)) bad_input(file.path() + ": " + name, "holds a number that is not finite");
        }
      }
    }
    if (!layer.k.rope_mu.empty() && (layer.rope_dim % 2 != 0 || !(layer.rope_theta > 0) || !std::isfinite(layer.rope_theta))) {
      bad_input(where, "layer " + std::to_string(layer.layer) + " has rope_mu without a usable rope_theta and rope_dim");
    }
  }
  return calibration;
}

}  // namespace io

void write_calibration(const std::string& path, const Calibration& calibration, bool overwrite) {
  const io::CalibrationTensors parts = io::calibration_tensors(calibration);
  io::SealedWriter writer(path, overwrite, "tq4cal", {{"calibration", io::calibration_to_json(calibration)}}, parts.tensors);
  for (std::size_t i = 0; i < parts.tensors.size(); ++i) writer.write(i, 0, parts.data[i], parts.tensors[i].bytes());
  writer.commit();
}

Calibration read_calibration(const std::string& path) {
  io::SealedFile file(path, "tq4cal");
  Calibration calibration = io::read_calibration_tensors(file);
  file.refuse_others();
  return calibration;
}

}  // namespace tq4
