// Reads dumps from safetensors files, by pread. Attributes come from `__metadata__`; "layer_3.q_start" there is q_start of layer 3.
#include <algorithm>
#include <vector>

#include "io/dump_schema.h"
#include "io/file.h"
#include "io/flat_rows.h"
#include "io/open_dump.h"
#include "io/safetensors_file.h"

namespace tq4::io {
namespace {

SafetensorsHeader read_header(const InputFile& file) {
  std::uint8_t prefix[8];
  file.read_at(0, prefix, sizeof prefix);
  std::string json(static_cast<std::size_t>(safetensors_json_length(prefix, file.size(), file.path())), '\0');
  file.read_at(8, json.data(), json.size());
  return parse_safetensors_header(json, file.size(), file.path());
}

class SafetensorsDump final : public Dump {
 public:
  SafetensorsDump(const std::string& path, const DumpOptions& options) : file_(path, options.read_once), header_(read_header(file_)) {
    if (const auto format = header_.metadata.find("format"); format != header_.metadata.end() && format->second == "tq4") {
      bad_input(path, "is a compressed container, not a dump; decompress it first (tq4 decompress)");
    }
    std::vector<SourceTensor> sources;
    for (std::size_t i = 0; i < header_.entries.size(); ++i) {
      const SafetensorsEntry& entry = header_.entries[i];
      SourceTensor& source = sources.emplace_back();
      source.path = entry.name;
      source.shape = entry.shape;
      source.id = i;
      if (entry.dtype == "F16" || entry.dtype == "BF16" || entry.dtype == "F32" || entry.dtype == "F64") {
        source.dtype = dtype_from_safetensors(entry.dtype);
      } else {
        source.problem = "has dtype " + entry.dtype + "; use F16, BF16 or F32";
      }
      source.attributes = layer_attributes(entry.name);
    }
    schema_ = assemble(path, "safetensors", sources, header_.metadata, options);
  }

  const DumpInfo& info() const override { return schema_.info; }

  void read(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, void* out) override {
    const PlacedTensor& placed = schema_.tensor(layer_index, tensor);
    check_range(placed, schema_.info.path, head, token_begin, count);
    if (count > 0) read_rows(placed, reader(placed.source, heads_contiguous(placed)), head, token_begin, count, out);
  }

  std::vector<float> read_o_gram(std::size_t layer_index) override {
    if (layer_index >= schema_.layers.size() || !schema_.layers[layer_index].o_gram)
      bad_input(schema_.info.path, "no o_gram in layer index " + std::to_string(layer_index));
    const SourceTensor& source = *schema_.layers[layer_index].o_gram;
    return read_all_as_float(source, reader(source, false));
  }

 private:
  ReadBytes reader(const SourceTensor& source, bool once) const {
    const std::uint64_t base = header_.data_start + header_.entries[source.id].begin;
    return [this, base, once](std::uint64_t offset, void* out, std::size_t bytes) {
      once ? file_.read_once_at(base + offset, out, bytes) : file_.read_at(base + offset, out, bytes);
    };
  }

  Attributes layer_attributes(const std::string& name) const {
    Attributes own;
    const auto parsed = parse_tensor_name(name);
    if (!parsed) return own;
    const std::string prefix = "layer_" + std::to_string(parsed->layer) + ".";
    for (const auto& [key, value] : header_.metadata) {
      if (key.starts_with(prefix)) own[key.substr(prefix.size())] = value;
    }
    return own;
  }

  InputFile file_;
  SafetensorsHeader header_;
  Schema schema_;
};

}  // namespace

std::unique_ptr<Dump> open_safetensors_dump(const std::string& path, const DumpOptions& options) {
  return std::make_unique<SafetensorsDump>(path, options);
}

}  // namespace tq4::io
