// Writing containers: plans every tensor from spec and shapes, stores the tables the codecs decode with, then takes planes in any order.
#include <map>
#include <optional>

#include "core/side.h"
#include "io/calibration_tensors.h"
#include "io/codec_tables.h"
#include "io/container_plan.h"
#include "io/json_fields.h"
#include "tq4/container.h"

namespace tq4 {
namespace {

using namespace io;

/// The codecs whose tables the file holds: one for every distinct side spec and head_dim.
class TableSet {
 public:
  int number_of(const SideSpec& spec, int head_dim) {
    for (std::size_t i = 0; i < codecs_.size(); ++i) {
      if (codecs_[i].spec() == spec && codecs_[i].head_dim() == head_dim) return static_cast<int>(i);
    }
    codecs_.emplace_back(spec, head_dim);
    return static_cast<int>(codecs_.size()) - 1;
  }
  std::string json() const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Codec& codec : codecs_) {
      list.push_back({{"head_dim", codec.head_dim()}, {"rotation_fingerprint", hex16(rotation_fingerprint(codec.rotation()))}});
    }
    return dump_json(list);
  }
  const std::vector<Codec>& codecs() const { return codecs_; }

 private:
  std::vector<Codec> codecs_;
};

/// The layers of a calibration that the container holds and encodes. Usage where shapes differ.
std::optional<Calibration> part_for(const Calibration* whole, const std::vector<StoredLayer>& layers) {
  if (whole == nullptr) return std::nullopt;
  Calibration part = *whole;
  part.layers.clear();
  for (const StoredLayer& layer : layers) {
    const LayerCalibration* found = layer.passthrough ? nullptr : whole->find(layer.shape.layer);
    if (found == nullptr) continue;
    if (found->num_kv_heads != layer.shape.num_kv_heads || found->head_dim != layer.shape.head_dim) {
      throw Error(ErrorCode::Usage, "the calibration is of another shape", "layer " + std::to_string(layer.shape.layer));
    }
    part.layers.push_back(*found);
  }
  return part;
}

class Writer final : public ContainerWriter {
 public:
  Writer(const std::string& path, const CodecSpec& spec, const DumpInfo& source, const std::vector<StoredLayer>& layers,
         const Calibration* calibration, bool overwrite)
      : path_(path), spec_(spec), layers_(layers) {
    check_layers(spec, layers);
    const std::optional<Calibration> part = part_for(calibration, layers);
    TableSet tables;
    std::vector<LayerTables> numbers(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      for (const Side side : {Side::K, Side::V}) {
        planned_.push_back(plan_side(spec, layers[i], side, tensors_));
        if (!layers[i].passthrough)
          numbers[i].of_side[side == Side::K ? 0 : 1] = tables.number_of(side_of(spec, side), layers[i].shape.head_dim);
      }
    }
    std::vector<PlannedTensor> all = tensors_;
    std::vector<const void*> constants;
    for (std::size_t t = 0; t < tables.codecs().size(); ++t) {
      TableTensors table = table_tensors(tables.codecs()[t], static_cast<int>(t));
      all.insert(all.end(), table.tensors.begin(), table.tensors.end());
      constants.insert(constants.end(), table.data.begin(), table.data.end());
    }
    std::map<std::string, std::string> metadata{{"producer", "tq4 " TQ4_VERSION},
                                                {"spec", spec_to_json(spec)},
                                                {"layers", layers_to_json(layers, numbers)},
                                                {"tables", tables.json()},
                                                {"dump", dump_to_json(source)}};
    if (part) {
      const CalibrationTensors tensors = calibration_tensors(*part);
      all.insert(all.end(), tensors.tensors.begin(), tensors.tensors.end());
      constants.insert(constants.end(), tensors.data.begin(), tensors.data.end());
      metadata["calibration"] = calibration_to_json(*part);
    }
    file_ = std::make_unique<SealedWriter>(path, overwrite, "tq4", std::move(metadata), all);
    for (std::size_t i = 0; i < constants.size(); ++i) file_->write(tensors_.size() + i, 0, constants[i], all[tensors_.size() + i].bytes());
  }

  void write(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count, const EncodedIn& planes) override {
    const StoredLayer& layer = checked(layer_index, head);
    const std::int64_t tokens = encoded_tokens(layer);
    check_range(token_begin, count, tokens, layer);
    if (count == 0) return;
    const SideTensors& part = planned_[2 * layer_index + (side == Side::K ? 0 : 1)];
    const auto row = static_cast<std::uint64_t>(std::int64_t{head} * tokens + token_begin), rows = static_cast<std::uint64_t>(count);
    put(part.codes, row, rows, core::code_bytes(side_of(spec_, side), layer.shape.head_dim), planes.codes);
    put(part.signs, row, rows, static_cast<std::uint64_t>(layer.shape.head_dim) / 8, planes.signs);
    put_reals(part.scale, row, rows, planes.scale);
    put_reals(part.zero, row, rows, planes.zero);
    put_reals(part.residual_norm, row, rows, planes.residual_norm);
  }

  void write_exact(std::size_t layer_index, Side side, int head, std::int64_t index, std::int64_t count,
                   const std::uint16_t* rows) override {
    const StoredLayer& layer = checked(layer_index, head);
    const std::int64_t tokens = exact_tokens(layer);
    check_range(index, count, tokens, layer);
    if (count == 0) return;
    put(planned_[2 * layer_index + (side == Side::K ? 0 : 1)].exact, static_cast<std::uint64_t>(std::int64_t{head} * tokens + index),
        static_cast<std::uint64_t>(count), static_cast<std::uint64_t>(layer.shape.head_dim) * 2, rows);
  }

  void commit() override { file_->commit(); }

 private:
  const StoredLayer& checked(std::size_t layer_index, int head) const {
    if (layer_index >= layers_.size())
      throw Error(ErrorCode::Usage, "layer index " + std::to_string(layer_index) + " of " + std::to_string(layers_.size()), path_);
    if (head < 0 || head >= layers_[layer_index].shape.num_kv_heads)
      throw Error(ErrorCode::Usage, "head " + std::to_string(head) + " does not exist", path_);
    return layers_[layer_index];
  }
  void check_range(std::int64_t begin, std::int64_t count, std::int64_t tokens, const StoredLayer& layer) const {
    if (begin < 0 || count < 0 || begin > tokens || count > tokens - begin) {
      throw Error(ErrorCode::Usage,
                  "tokens " + std::to_string(begin) + " + " + std::to_string(count) + " of " + std::to_string(tokens) + " in layer " +
                      std::to_string(layer.shape.layer),
                  path_);
    }
  }
  void put(int tensor, std::uint64_t row, std::uint64_t rows, std::uint64_t row_bytes, const void* data) {
    if (tensor < 0) return;
    if (data == nullptr) throw Error(ErrorCode::Usage, "no data for " + tensors_[static_cast<std::size_t>(tensor)].name, path_);
    file_->write(static_cast<std::size_t>(tensor), row * row_bytes, data, rows * row_bytes);
  }
  void put_reals(int tensor, std::uint64_t row, std::uint64_t rows, const float* values) {
    if (tensor < 0) return;
    const DType dtype = tensors_[static_cast<std::size_t>(tensor)].dtype;
    if (dtype == DType::F32 || values == nullptr) return put(tensor, row, rows, 4, values);
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(rows));
    from_float(values, halves.size(), DType::F16, halves.data());
    put(tensor, row, rows, 2, halves.data());
  }

  std::string path_;
  CodecSpec spec_;
  std::vector<StoredLayer> layers_;
  std::vector<PlannedTensor> tensors_;  ///< of the layers
  std::vector<SideTensors> planned_;    ///< K and V of each layer
  std::unique_ptr<SealedWriter> file_;
};

}  // namespace

std::unique_ptr<ContainerWriter> create_container(const std::string& path, const CodecSpec& spec, const DumpInfo& source,
                                                  const std::vector<StoredLayer>& layers, const Calibration* calibration, bool overwrite) {
  return std::make_unique<Writer>(path, spec, source, layers, calibration, overwrite);
}

}  // namespace tq4
