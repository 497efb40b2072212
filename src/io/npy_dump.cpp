// Reads dumps from NumPy files. An npz holds one array a tensor, named as in the schema, and may hold attributes as scalars. A single npy
// holds keys and values stacked: [2, heads, tokens, head_dim] or [layers, 2, heads, tokens, head_dim].
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "io/dump_schema.h"
#include "io/file.h"
#include "io/flat_rows.h"
#include "io/npy_header.h"
#include "io/open_dump.h"
#include "io/zip_file.h"

namespace tq4::io {
namespace {

/// Where the elements of a source tensor lie: in the plain file or in a zip member.
struct Place {
  std::uint64_t data_start = 0;  ///< from the begin of the file or member
  std::optional<ZipMember> member;
};

std::uint64_t data_bytes(const NpyHeader& header, const std::string& where) {
  std::uint64_t bytes = header.element_bytes;
  for (const std::uint64_t extent : header.shape) bytes = checked_multiply(bytes, extent, where);
  return bytes;
}

template <class T>
T scalar(const std::uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

/// A 0-d array as attribute text; empty for types without one.
std::string scalar_text(const NpyHeader& header, const std::uint8_t* bytes) {
  if (header.descr == "<f8" || header.descr == "<f4") {
    std::array<char, 40> text{};
    std::snprintf(text.data(), text.size(), "%.17g",
                  header.descr == "<f8" ? scalar<double>(bytes) : static_cast<double>(scalar<float>(bytes)));
    return text.data();
  }
  if (header.descr == "<i8") return std::to_string(scalar<std::int64_t>(bytes));
  if (header.descr == "<i4") return std::to_string(scalar<std::int32_t>(bytes));
  if (header.descr == "|b1") return bytes[0] != 0 ? "true" : "false";
  if (header.descr.starts_with("<U")) {
    std::string text;
    for (std::size_t i = 0; i < header.element_bytes; i += 4) {
      const auto code = scalar<std::uint32_t>(bytes + i);
      if (code >= 32 && code < 127) text += static_cast<char>(code);
    }
    return text;
  }
  return {};
}

class NpyDump final : public Dump {
 public:
  NpyDump(const std::string& path, const DumpOptions& options) : file_(path, options.read_once) {
    std::array<std::uint8_t, 2> magic{};
    file_.read_at(0, magic.data(), magic.size());
    const bool zip = magic[0] == 'P';
    if (zip) {
      for (const ZipMember& member : list_zip(path)) add_member(member);
    } else {
      add_stacked();
    }
    schema_ = assemble(path, zip ? "npz" : "npy", sources_, attributes_, options);
  }

  const DumpInfo& info() const override { return schema_.info; }

  void read(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, void* out) override {
    const PlacedTensor& placed = schema_.tensor(layer_index, tensor);
    check_range(placed, schema_.info.path, head, token_begin, count);
    if (count == 0) return;
    read_rows(placed, reader(placed.source, static_cast<std::size_t>(tensor), heads_contiguous(placed)), head, token_begin, count, out);
  }

  std::vector<float> read_o_gram(std::size_t layer_index) override {
    if (layer_index >= schema_.layers.size() || !schema_.layers[layer_index].o_gram)
      bad_input(schema_.info.path, "no o_gram in layer index " + std::to_string(layer_index));
    const SourceTensor& source = *schema_.layers[layer_index].o_gram;
    return read_all_as_float(source, reader(source, streams_.size() - 1, false));
  }

 private:
  void add_source(const std::string& name, const NpyHeader& header, const std::vector<std::uint64_t>& shape, Place place) {
    SourceTensor& source = sources_.emplace_back();
    source.path = name;
    source.shape = shape;
    source.dtype = header.dtype;
    source.problem = header.problem;
    source.id = places_.size();
    places_.push_back(std::move(place));
  }

  void add_member(const ZipMember& member) {
    if (!member.name.ends_with(".npy")) return;
    const std::string name = member.name.substr(0, member.name.size() - 4), where = file_.path() + ": " + member.name;
    std::vector<std::uint8_t> begin(static_cast<std::size_t>(std::min<std::uint64_t>(member.size, kNpyHeaderMax)));
    read_member(member, streams_.size() - 1, 0, begin.data(), begin.size());
    const NpyHeader header = parse_npy_header(begin, where);
    const std::uint64_t needed = data_bytes(header, where);
    if (header.data_start > member.size || needed > member.size - header.data_start) {
      bad_input(where, "needs " + std::to_string(needed) + " bytes of data and holds " +
                           std::to_string(member.size - std::min(member.size, header.data_start)));
    }
    if (header.shape.empty() && needed <= 4096 && header.data_start + needed <= begin.size()) {
      const std::string text = scalar_text(header, begin.data() + header.data_start);
      if (!text.empty()) attributes_[name] = text;
      return;
    }
    add_source(name, header, header.shape, {header.data_start, member});
  }

  void add_stacked() {
    const std::string& path = file_.path();
    std::vector<std::uint8_t> begin(static_cast<std::size_t>(std::min<std::uint64_t>(file_.size(), kNpyHeaderMax)));
    file_.read_at(0, begin.data(), begin.size());
    const NpyHeader header = parse_npy_header(begin, path);
    if (!header.dtype) bad_input(path, header.problem);
    const std::uint64_t needed = data_bytes(header, path);
    if (needed > file_.size() - header.data_start) {
      bad_input(path, "needs " + std::to_string(needed) + " bytes of data and holds " + std::to_string(file_.size() - header.data_start) +
                          "; it was cut short, copy it again");
    }
    std::vector<std::uint64_t> shape = header.shape;
    if (shape.size() == 4) shape.insert(shape.begin(), 1);
    if (shape.size() != 5 || shape[1] != 2 || shape[0] > 100000) {
      bad_input(path,
                "a single npy holds keys and values as [2, heads, tokens, head_dim] or [layers, 2, heads, tokens, head_dim]; put other "
                "arrays into an npz, named layer_0_k, layer_0_v, ...");
    }
    const std::vector<std::uint64_t> one(shape.begin() + 2, shape.end());
    const std::uint64_t bytes = shape[0] == 0 ? 0 : needed / (shape[0] * 2);
    for (std::uint64_t i = 0; i < shape[0] * 2; ++i) {
      add_source("layer_" + std::to_string(i / 2) + (i % 2 == 0 ? "/k" : "/v"), header, one, {header.data_start + i * bytes, std::nullopt});
    }
  }

  void read_member(const ZipMember& member, std::size_t slot, std::uint64_t offset, void* out, std::size_t bytes) {
    if (member.stored) return file_.read_at(member.data_offset + offset, out, bytes);
    std::unique_ptr<ZipStream>& stream = streams_[slot];
    if (!stream || stream->member() != member.name) {
      stream.reset();
      stream = std::make_unique<ZipStream>(file_.path(), member);
    }
    stream->read_at(offset, out, bytes);
  }

  ReadBytes reader(const SourceTensor& source, std::size_t slot, bool once) {
    return [this, &place = places_[source.id], slot, once](std::uint64_t offset, void* out, std::size_t bytes) {
      if (place.member) return read_member(*place.member, slot, place.data_start + offset, out, bytes);
      once ? file_.read_once_at(place.data_start + offset, out, bytes) : file_.read_at(place.data_start + offset, out, bytes);
    };
  }

  InputFile file_;
  std::vector<SourceTensor> sources_;
  std::vector<Place> places_;
  Attributes attributes_;
  std::array<std::unique_ptr<ZipStream>, 4> streams_;  ///< K, V, Q, and headers and o_gram
  Schema schema_;
};

}  // namespace

std::unique_ptr<Dump> open_npy_dump(const std::string& path, const DumpOptions& options) {
  return std::make_unique<NpyDump>(path, options);
}

}  // namespace tq4::io
