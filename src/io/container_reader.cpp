// Reading containers. Opening checks that metadata and tensors are exactly those a writer would have made; data are verified block by block as
// they are read. Nothing in the file is believed before it is compared with something.
#include <algorithm>
#include <map>

#include "core/side.h"
#include "io/calibration_tensors.h"
#include "io/codec_tables.h"
#include "io/container_plan.h"
#include "io/json_fields.h"
#include "tq4/container.h"

namespace tq4 {
namespace {

using namespace io;

struct TableInfo {
  int head_dim;
  std::uint64_t fingerprint;
};

/// Runs `make`; what it throws about arguments is the file's fault here.
template <class Make>
auto as_bad_input(const std::string& where, const Make& make) {
  try {
    return make();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::Usage || error.code() == ErrorCode::Unsupported) bad_input(where, error.what());
    if (error.code() == ErrorCode::BadInput && error.where().find(where) == std::string::npos) bad_input(where, error.what());
    throw;
  }
}

class Reader final : public Container {
 public:
  explicit Reader(const std::string& path) : file_(path, "tq4") {
    info_.producer = file_.metadata("producer");
    info_.spec = as_bad_input(path, [&] { return spec_from_json(file_.metadata("spec")); });
    info_.dump = dump_from_json(file_.metadata("dump"), path + ": dump");
    layers_from_json(file_.metadata("layers"), path + ": layers", info_.layers, tables_of_);
    as_bad_input(path, [&] {
      check_layers(info_.spec, info_.layers);
      return 0;
    });
    info_.file_bytes = file_.size();
    for (StoredLayer& layer : info_.layers) place_layer(layer);
    if (file_.has_metadata("calibration")) {
      calibration_ = std::make_unique<Calibration>(as_bad_input(path, [&] { return read_calibration_tensors(file_); }));
      info_.calibrated = true;
    }
    build_codecs(read_table_list());
    file_.refuse_others();
  }

  const ContainerInfo& info() const override { return info_; }
  const Calibration* calibration() const override { return calibration_.get(); }

  const Codec& codec(std::size_t layer_index, Side side) const override {
    const Codec* found = checked(layer_index).passthrough ? nullptr : codec_of_[2 * layer_index + index(side)];
    if (found == nullptr)
      throw Error(ErrorCode::Usage, "layer " + std::to_string(info_.layers[layer_index].shape.layer) + " is kept in fp16 and has no codec",
                  file_.path());
    return *found;
  }

  void read(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count, const EncodedOut& planes) override {
    const StoredLayer& layer = checked(layer_index);
    const std::int64_t tokens = encoded_tokens(layer);
    check_range(layer, head, token_begin, count, tokens);
    if (count == 0) return;
    const Places& part = places_[2 * layer_index + index(side)];
    const auto row = static_cast<std::uint64_t>(std::int64_t{head} * tokens + token_begin), rows = static_cast<std::uint64_t>(count);
    get(part.codes, row, rows, core::code_bytes(side_of(info_.spec, side), layer.shape.head_dim), planes.codes);
    get(part.signs, row, rows, static_cast<std::uint64_t>(layer.shape.head_dim) / 8, planes.signs);
    get_reals(part.scale, row, rows, planes.scale);
    get_reals(part.zero, row, rows, planes.zero);
    get_reals(part.residual_norm, row, rows, planes.residual_norm);
  }

  void read_exact(std::size_t layer_index, Side side, int head, std::int64_t first, std::int64_t count, std::uint16_t* rows) override {
    const StoredLayer& layer = checked(layer_index);
    const std::int64_t tokens = exact_tokens(layer);
    check_range(layer, head, first, count, tokens);
    if (count == 0) return;
    get(places_[2 * layer_index + index(side)].exact, static_cast<std::uint64_t>(std::int64_t{head} * tokens + first),
        static_cast<std::uint64_t>(count), static_cast<std::uint64_t>(layer.shape.head_dim) * 2, rows);
  }

  void decode(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count, float* x,
              const Exec& exec) override;
  void verify() override { file_.verify(); }

 private:
  /// Entries of one side of one layer; null where it has no such part.
  struct Places {
    const SafetensorsEntry *codes = nullptr, *scale = nullptr, *zero = nullptr, *signs = nullptr, *residual_norm = nullptr,
                           *exact = nullptr;
  };
  static std::size_t index(Side side) { return side == Side::K ? 0 : 1; }

  void place_layer(StoredLayer& layer) {
    for (const Side side : {Side::K, Side::V}) {
      std::vector<PlannedTensor> planned;
      const SideTensors parts = plan_side(info_.spec, layer, side, planned);
      std::uint64_t& bytes = side == Side::K ? layer.k_bytes : layer.v_bytes;
      const auto place = [&](int number) -> const SafetensorsEntry* {
        if (number < 0) return nullptr;
        const PlannedTensor& tensor = planned[static_cast<std::size_t>(number)];
        const SafetensorsEntry& found = file_.expect(tensor.name, tensor.dtype, tensor.shape);
        bytes += found.end - found.begin;
        return &found;
      };
      places_.push_back(
          {place(parts.codes), place(parts.scale), place(parts.zero), place(parts.signs), place(parts.residual_norm), place(parts.exact)});
      const auto elements = static_cast<std::uint64_t>(layer.shape.num_kv_heads) * static_cast<std::uint64_t>(layer.shape.tokens) *
                            static_cast<std::uint64_t>(layer.shape.head_dim);
      info_.original_bytes += elements * dtype_size(side == Side::K ? layer.shape.k_dtype : layer.shape.v_dtype);
    }
  }

  std::vector<TableInfo> read_table_list() const {
    const std::string where = file_.path() + ": tables";
    const nlohmann::json list = parse_metadata(file_.metadata("tables"), where);
    if (!list.is_array()) bad_input(where, "is no JSON array");
    std::vector<TableInfo> tables;
    for (const nlohmann::json& entry : list) {
      Fields fields(entry, where);
      tables.push_back({fields.small("head_dim", 1, 65536), parse_hex16(fields.text("rotation_fingerprint"), where)});
      fields.finish();
    }
    return tables;
  }

  /// One codec a table; a layer whose calibration brings its own pair points gets one of its own.
  void build_codecs(const std::vector<TableInfo>& tables) {
    codec_of_.assign(2 * info_.layers.size(), nullptr);
    for (std::size_t i = 0; i < info_.layers.size(); ++i) {
      const StoredLayer& layer = info_.layers[i];
      if (layer.passthrough) continue;
      const LayerCalibration* calibrated = calibration_ ? calibration_->find(layer.shape.layer) : nullptr;
      if (calibrated != nullptr && (calibrated->num_kv_heads != layer.shape.num_kv_heads || calibrated->head_dim != layer.shape.head_dim)) {
        bad_input(file_.path(), "the calibration of layer " + std::to_string(layer.shape.layer) + " is of another shape");
      }
      for (const Side side : {Side::K, Side::V}) {
        const int number = tables_of_[i].of_side[index(side)];
        if (number < 0 || static_cast<std::size_t>(number) >= tables.size() ||
            tables[static_cast<std::size_t>(number)].head_dim != layer.shape.head_dim) {
          bad_input(file_.path(), "layer " + std::to_string(layer.shape.layer) + " names a table that does not exist");
        }
        const SideCalibration* own = calibrated == nullptr ? nullptr : side == Side::K ? &calibrated->k : &calibrated->v;
        const SideSpec& spec = side_of(info_.spec, side);
        const bool own_pairs = own != nullptr && spec.pair_codebook && spec.kind == CodeKind::Mse && !own->pair_points.empty();
        // Two sides may share a table only when their specs are the same; the key keeps a crafted file from mixing them.
        auto& codec = codecs_[{number, spec == info_.spec.k ? 0 : 1, own_pairs ? static_cast<int>(i) : -1,
                               own_pairs ? static_cast<int>(index(side)) : 0}];
        if (codec == nullptr) {
          codec = as_bad_input(file_.path(), [&] {
            return codec_from_table(file_, number, spec, layer.shape.head_dim, tables[static_cast<std::size_t>(number)].fingerprint,
                                    own_pairs ? &own->pair_points : nullptr);
          });
        }
        codec_of_[2 * i + index(side)] = codec.get();
      }
    }
  }

  const StoredLayer& checked(std::size_t layer_index) const {
    if (layer_index >= info_.layers.size())
      throw Error(ErrorCode::Usage, "layer index " + std::to_string(layer_index) + " of " + std::to_string(info_.layers.size()),
                  file_.path());
    return info_.layers[layer_index];
  }
  void check_range(const StoredLayer& layer, int head, std::int64_t begin, std::int64_t count, std::int64_t tokens) const {
    if (head < 0 || head >= layer.shape.num_kv_heads || begin < 0 || count < 0 || begin > tokens || count > tokens - begin) {
      throw Error(ErrorCode::Usage,
                  "head " + std::to_string(head) + ", tokens " + std::to_string(begin) + " + " + std::to_string(count) +
                      " asked of layer " + std::to_string(layer.shape.layer) + " with " + std::to_string(layer.shape.num_kv_heads) +
                      " heads and " + std::to_string(tokens) + " such tokens",
                  file_.path());
    }
  }
  void get(const SafetensorsEntry* entry, std::uint64_t row, std::uint64_t rows, std::uint64_t row_bytes, void* out) {
    if (entry != nullptr && out != nullptr) file_.read(*entry, row * row_bytes, out, rows * row_bytes);
  }
  void get_reals(const SafetensorsEntry* entry, std::uint64_t row, std::uint64_t rows, float* out) {
    if (entry == nullptr || out == nullptr) return;
    if (entry->dtype == "F32") return get(entry, row, rows, 4, out);
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(rows));
    get(entry, row, rows, 2, halves.data());
    to_float(halves.data(), DType::F16, halves.size(), out);
  }

  SealedFile file_;
  ContainerInfo info_;
  std::vector<LayerTables> tables_of_;
  std::vector<Places> places_;  ///< K and V of each layer
  std::unique_ptr<Calibration> calibration_;
  std::map<std::array<int, 4>, std::unique_ptr<Codec>> codecs_;
  std::vector<const Codec*> codec_of_;  ///< K and V of each layer
};

void Reader::decode(std::size_t layer_index, Side side, int head, std::int64_t token_begin, std::int64_t count, float* x,
                    const Exec& exec) {
  const StoredLayer& layer = checked(layer_index);
  check_range(layer, head, token_begin, count, layer.shape.tokens);
  const auto dim = static_cast<std::size_t>(layer.shape.head_dim);
  const std::int64_t first = layer.passthrough ? layer.shape.tokens : layer.exact_first, encoded = encoded_tokens(layer);
  const LayerCalibration* calibrated = calibration_ && !layer.passthrough ? calibration_->find(layer.shape.layer) : nullptr;
  constexpr std::int64_t kRows = 4096;  // what is held at once beside x
  std::vector<std::uint16_t> halves;
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual_norm;
  for (std::int64_t token = token_begin, end = token_begin + count; token < end;) {
    const bool is_encoded = token >= first && token < first + encoded;
    const std::int64_t until = token < first ? first : is_encoded ? first + encoded : layer.shape.tokens;
    const std::int64_t rows = std::min({until, end, token + kRows}) - token;
    float* out = x + static_cast<std::size_t>(token - token_begin) * dim;
    const auto n = static_cast<std::size_t>(rows);
    if (is_encoded) {
      const Codec& used = codec(layer_index, side);
      codes.resize(n * used.code_bytes());
      scale.resize(n);
      zero.resize(n);
      signs.resize(n * dim / 8);
      residual_norm.resize(n);
      read(layer_index, side, head, token - first, rows, {codes.data(), scale.data(), zero.data(), signs.data(), residual_norm.data()});
      used.decode({codes.data(), scale.data(), zero.data(), signs.data(), residual_norm.data()}, rows, out,
                  head_transform(calibrated, side, head, token), exec);
    } else {
      halves.resize(n * dim);
      read_exact(layer_index, side, head, token < first ? token : token - encoded, rows, halves.data());
      to_float(halves.data(), DType::F16, halves.size(), out);
    }
    token += rows;
  }
}

}  // namespace

std::unique_ptr<Container> open_container(const std::string& path) { return std::make_unique<Reader>(path); }

}  // namespace tq4
