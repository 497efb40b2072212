// Page caches in HDF5; see tq4/page_file.h. A layer's cache is read and written whole: caches are made of pages that must fit in memory anyway.
#include "tq4/page_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>

#include "core/units.h"
#include "io/file.h"
#include "io/hdf5_attributes.h"
#include "io/hdf5_handle.h"
#include "tq4/container.h"

namespace tq4 {
namespace {

using namespace io;

constexpr const char* kVersionName = "tq4_page_file";
/// Of what is written. Version 1 had native pages' 3-bit codes in rows (core/units.h).
constexpr const char* kVersion = "2";

/// Axes of the cache dataset, as the layout's owners see them.
std::vector<hsize_t> cache_extent(const PagedLayer& layer) {
  const PageLayout& l = layer.layout;
  const auto u = [](std::int64_t n) { return static_cast<hsize_t>(n); };
  const std::int64_t tokens = l.block_size;
  if (l.kind == LayoutKind::TurboquantVllm && l.block_stride == tokens * l.token_stride)
    return {u(layer.num_blocks), u(tokens), u(l.token_stride)};
  if (l.kind == LayoutKind::Vllm) {
    if (l.token_stride == l.num_kv_heads * l.head_stride && l.block_stride == tokens * l.token_stride)
      return {u(layer.num_blocks), u(tokens), u(l.num_kv_heads), u(l.head_stride)};
    if (l.head_stride == tokens * l.token_stride && l.block_stride == l.num_kv_heads * l.head_stride)
      return {u(layer.num_blocks), u(l.num_kv_heads), u(tokens), u(l.token_stride)};
  }
  return {u(layer.num_blocks), u(l.block_stride)};
}

class Hdf5PageFileWriter final : public PageFileWriter {
 public:
  Hdf5PageFileWriter(const std::string& path, const std::map<std::string, std::string>& attributes, bool overwrite)
      : path_(path), atomic_(path, overwrite) {
    const Hdf5Scope scope;
    file_ = H5File(H5Fcreate(atomic_.temporary_path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
    if (!file_) fail("HDF5 cannot create the file");
    const H5Object root(H5Oopen(file_.get(), "/", H5P_DEFAULT));
    put_attribute(root.get(), kVersionName, kVersion);
    for (const auto& [name, text] : attributes) {
      if (name != kVersionName) put_attribute(root.get(), name, text);
    }
  }

  void write(const PagedLayer& layer, const std::uint8_t* cache) override {
    const Hdf5Scope scope;
    total_bytes_ += static_cast<std::uint64_t>(layer.num_blocks * layer.layout.block_stride) +
                    4 * (layer.block_table.size() + layer.seq_lens.size()) + (1 << 16);
    reserve_space(atomic_.fd(), total_bytes_, path_);
    std::array<char, 32> name{};
    std::snprintf(name.data(), name.size(), "layer_%03d", layer.layer);
    const H5Group group(H5Gcreate2(file_.get(), name.data(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    if (!group) fail(std::string("cannot create the group ") + name.data());
    const PageLayout& l = layer.layout;
    put_attribute(group.get(), "layout", std::string(layout_name(l.kind)));
    put_attribute(group.get(), "codec", spec_to_json(l.spec));
    const std::pair<const char*, std::int64_t> numbers[] = {{"num_kv_heads", l.num_kv_heads}, {"head_dim", l.head_dim},
                                                            {"block_size", l.block_size},     {"block_stride", l.block_stride},
                                                            {"token_stride", l.token_stride}, {"head_stride", l.head_stride}};
    for (const auto& [key, value] : numbers) put_attribute(group.get(), key, std::to_string(value));
    put_dataset(group.get(), "cache", H5T_STD_U8LE, H5T_NATIVE_UINT8, cache_extent(layer), cache);
    put_dataset(group.get(), "block_table", H5T_STD_I32LE, H5T_NATIVE_INT32,
                {layer.seq_lens.size(), static_cast<hsize_t>(layer.blocks_per_seq)}, layer.block_table.data());
    put_dataset(group.get(), "seq_lens", H5T_STD_I32LE, H5T_NATIVE_INT32, {layer.seq_lens.size()}, layer.seq_lens.data());
  }

  void commit() override {
    {
      const Hdf5Scope scope;
      if (H5Fflush(file_.get(), H5F_SCOPE_GLOBAL) < 0) fail("writing failed");
      if (H5Fclose(file_.release()) < 0) fail("closing failed");
    }
    atomic_.commit();
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorCode::Runtime, what + " (" + hdf5_reason() + ")", path_); }

  void put_attribute(hid_t object, const std::string& name, const std::string& text) const {
    if (!write_attribute(object, name, text)) fail("cannot write the attribute " + name);
  }

  void put_dataset(hid_t group, const char* name, hid_t file_type, hid_t memory_type, const std::vector<hsize_t>& extent,
                   const void* data) const {
    const H5Space space(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr));
    const H5Dataset dataset(H5Dcreate2(group, name, file_type, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    if (!dataset) fail(std::string("cannot create the dataset ") + name);
    const bool empty = std::find(extent.begin(), extent.end(), hsize_t{0}) != extent.end();
    if (!empty && H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
      fail(std::string("cannot write the dataset ") + name);
  }

  std::string path_;
  AtomicFile atomic_;
  H5File file_;
  std::uint64_t total_bytes_ = 0;
};

class Hdf5PageFile final : public PageFile {
 public:
  Hdf5PageFile(const std::string& path, const std::optional<PageHint>& hint) : path_(path) {
    const Hdf5Scope scope;
    file_ = H5File(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
    if (!file_) bad_input(path, "is not an HDF5 file, or a damaged one (" + hdf5_reason() + ")");
    const H5Object root(H5Oopen(file_.get(), "/", H5P_DEFAULT));
    attributes_ = read_attributes(root.get());
    if (const auto version = attributes_.find(kVersionName); version != attributes_.end()) {
      first_version_ = version->second == "1";
      if (!first_version_ && version->second != kVersion) bad_input(path, "is of version " + version->second + "; this tq4 reads 1 and 2");
    }
    for (const std::string& group : groups()) add_layer(group, hint);
    if (layers_.empty()) bad_input(path, "holds no page cache: no dataset named cache in a group layer_000, layer_001, ... or in the root");
    std::vector<std::size_t> order(layers_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return layers_[a].layer < layers_[b].layer; });
    std::vector<PagedLayer> sorted;
    std::vector<std::string> sorted_groups;
    for (const std::size_t i : order) {
      sorted.push_back(std::move(layers_[i]));
      sorted_groups.push_back(std::move(groups_[i]));
    }
    layers_ = std::move(sorted);
    groups_ = std::move(sorted_groups);
  }

  const std::map<std::string, std::string>& attributes() const override { return attributes_; }
  const std::vector<PagedLayer>& layers() const override { return layers_; }

  std::vector<std::uint8_t> read(std::size_t layer_index) override {
    const Hdf5Scope scope;
    const PagedLayer& layer = layers_.at(layer_index);
    const H5Dataset dataset(H5Dopen2(file_.get(), (groups_[layer_index] + "/cache").c_str(), H5P_DEFAULT));
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(layer.num_blocks * layer.layout.block_stride));
    if (!dataset || (!bytes.empty() && H5Dread(dataset.get(), H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0))
      bad_input(path_ + ":" + groups_[layer_index] + "/cache", "cannot be read (" + hdf5_reason() + ")");
    if (first_version_ && layer.layout.kind == LayoutKind::Native) core::rows_to_units(layer.layout, bytes.data(), layer.num_blocks);
    return bytes;
  }

  /// Groups that hold a dataset named cache: "" (the root) or "/layer_NNN".
  static std::vector<std::string> find_groups(hid_t file) {
    std::vector<std::string> names;
    if (H5Lexists(file, "cache", H5P_DEFAULT) > 0) names.emplace_back();
    H5Literate(
        file, H5_INDEX_NAME, H5_ITER_INC, nullptr,
        [](hid_t parent, const char* name, const H5L_info_t*, void* list) -> herr_t {
          const std::string group = name;
          if (group.rfind("layer_", 0) == 0 && group.size() > 6 && H5Lexists(parent, (group + "/cache").c_str(), H5P_DEFAULT) > 0)
            static_cast<std::vector<std::string>*>(list)->push_back("/" + group);
          return 0;
        },
        &names);
    return names;
  }

 private:
  std::vector<std::string> groups() const { return find_groups(file_.get()); }

  std::vector<hsize_t> extent(const std::string& name) const {
    const H5Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
    if (!dataset) bad_input(path_ + ":" + name, "is missing");
    const H5Space space(H5Dget_space(dataset.get()));
    std::vector<hsize_t> dims(static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space.get()))));
    H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
    return dims;
  }

  std::vector<std::int32_t> integers(const std::string& name, std::size_t count) const {
    if (count > (std::size_t{1} << 28)) bad_input(path_ + ":" + name, "is too large");
    std::vector<std::int32_t> values(count);
    const H5Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
    if (!dataset || (count > 0 && H5Dread(dataset.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0))
      bad_input(path_ + ":" + name, "cannot be read (" + hdf5_reason() + ")");
    return values;
  }

  std::int64_t number(const std::map<std::string, std::string>& attributes, const std::string& name, const std::string& where) const {
    const auto found = attributes.find(name);
    std::int64_t value = 0;
    if (found == attributes.end()) bad_input(where, "lacks the attribute " + name);
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > (std::int64_t{1} << 40))
      bad_input(where, "attribute " + name + " is " + text);
    return value;
  }

  PageLayout described_layout(const std::map<std::string, std::string>& attributes, const std::string& where) const {
    PageLayout layout;
    layout.kind = layout_from_name(attributes.at("layout"));
    const auto codec = attributes.find("codec");
    if (codec == attributes.end()) bad_input(where, "lacks the attribute codec");
    layout.spec = spec_from_json(codec->second);
    layout.num_kv_heads = static_cast<int>(std::min<std::int64_t>(number(attributes, "num_kv_heads", where), 1 << 20));
    layout.head_dim = static_cast<int>(std::min<std::int64_t>(number(attributes, "head_dim", where), 1 << 20));
    layout.block_size = static_cast<int>(std::min<std::int64_t>(number(attributes, "block_size", where), 1 << 20));
    layout.block_stride = number(attributes, "block_stride", where);
    layout.token_stride = number(attributes, "token_stride", where);
    layout.head_stride = number(attributes, "head_stride", where);
    return layout;
  }

  PageLayout hinted_layout(const PageHint& hint, const std::vector<hsize_t>& dims, const std::string& where) const {
    const auto dim = [&](std::size_t i) { return static_cast<std::int64_t>(dims[i]); };
    const bool four = hint.kind == LayoutKind::Vllm;
    if (hint.kind == LayoutKind::Native) bad_input(where, "native pages must describe themselves (attributes layout, codec, ...)");
    if (dims.size() != (four ? 4u : 3u))
      bad_input(where, std::string("has ") + std::to_string(dims.size()) + " axes; " + (four ? "vllm" : "turboquant-vllm") +
                           " caches have " + (four ? "4" : "3"));
    const std::int64_t heads = four ? dim(hint.heads_outer ? 1 : 2) : hint.num_kv_heads;
    const std::int64_t tokens = four ? dim(hint.heads_outer ? 2 : 1) : dim(1);
    if (heads < 1 || heads > (1 << 20) || tokens < 1 || tokens > (1 << 20)) bad_input(where, "has an impossible shape");
    PageLayout layout = make_layout(hint.kind, hint.spec, static_cast<int>(heads), hint.head_dim, static_cast<int>(tokens));
    const std::int64_t row = dims.empty() ? 0 : dim(dims.size() - 1);
    if (four) {
      layout.head_stride = hint.heads_outer ? tokens * row : row;
      layout.token_stride = hint.heads_outer ? row : heads * row;
      layout.block_stride = heads * tokens * row;
    } else {
      layout.token_stride = row;
      layout.block_stride = tokens * row;
    }
    return layout;
  }

  void add_layer(const std::string& group, const std::optional<PageHint>& hint) {
    const std::string where = path_ + ":" + group + "/cache";
    PagedLayer layer;
    if (!group.empty()) {
      const char* digits = group.c_str() + 7;  // after "/layer_"
      const auto [end, error] = std::from_chars(digits, group.c_str() + group.size(), layer.layer);
      if (error != std::errc() || *end != '\0') return;
    }
    const std::vector<hsize_t> dims = extent(group + "/cache");
    if (dims.size() < 2) bad_input(where, "has " + std::to_string(dims.size()) + " axes");
    std::uint64_t bytes = 1;
    for (const hsize_t d : dims) bytes = checked_multiply(bytes, d, where);
    const H5Object object(H5Oopen(file_.get(), group.empty() ? "/" : group.c_str(), H5P_DEFAULT));
    const std::map<std::string, std::string> attributes = read_attributes(object.get());
    const bool described = attributes.count("layout") != 0;
    if (described)
      layer.layout = described_layout(attributes, where);
    else if (hint)
      layer.layout = hinted_layout(*hint, dims, where);
    else
      throw Error(ErrorCode::Usage, "does not say its layout and codec; give them (--from-layout, --codec, --head-dim, ...)", where);
    layer.num_blocks = static_cast<std::int64_t>(dims[0]);
    if (layer.layout.block_stride <= 0 || bytes != checked_multiply(static_cast<std::uint64_t>(layer.num_blocks),
                                                                    static_cast<std::uint64_t>(layer.layout.block_stride), where))
      bad_input(where, "is not num_blocks x block_stride bytes");
    try {  // strides that overlap or leave the page are refused before anyone follows them
      std::uint8_t codes = 0;
      float number = 0;
      const EncodedOut unused{&codes, &number, &number, &codes, &number};
      read_pages(layer.layout, nullptr, 0, nullptr, 0, unused, unused);
    } catch (const Error& error) {
      throw Error(described ? ErrorCode::BadInput : error.code(), error.message(), where);
    }
    const std::vector<hsize_t> table = extent(group + "/block_table");
    const std::vector<hsize_t> lens = extent(group + "/seq_lens");
    if (table.size() != 2 || lens.size() != 1 || table[0] != lens[0])
      bad_input(path_ + ":" + group, "block_table must be [num_seqs, blocks] and seq_lens [num_seqs]");
    layer.blocks_per_seq = static_cast<std::int64_t>(table[1]);
    layer.block_table = integers(group + "/block_table", checked_multiply(table[0], table[1], where));
    layer.seq_lens = integers(group + "/seq_lens", lens[0]);
    layers_.push_back(std::move(layer));
    groups_.push_back(group);
  }

  std::string path_;
  bool first_version_ = false;
  H5File file_;
  std::map<std::string, std::string> attributes_;
  std::vector<PagedLayer> layers_;
  std::vector<std::string> groups_;
};

}  // namespace

std::vector<std::int64_t> slot_mapping(const PagedLayer& layer, std::size_t sequence, std::int64_t begin, std::int64_t count) {
  const std::string where = "layer " + std::to_string(layer.layer) + ", sequence " + std::to_string(sequence);
  if (sequence >= layer.seq_lens.size())
    throw Error(ErrorCode::Usage, "there are " + std::to_string(layer.seq_lens.size()) + " sequences", where);
  std::vector<std::int64_t> slots(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = begin + i;
    const std::int64_t block = token / layer.layout.block_size;
    if (token >= layer.seq_lens[sequence] || block >= layer.blocks_per_seq)
      bad_input(where, "token " + std::to_string(token) + " lies past seq_lens or block_table");
    const std::int32_t page =
        layer.block_table[sequence * static_cast<std::size_t>(layer.blocks_per_seq) + static_cast<std::size_t>(block)];
    if (page < 0 || page >= layer.num_blocks)
      bad_input(where, "block_table names page " + std::to_string(page) + " of " + std::to_string(layer.num_blocks));
    slots[static_cast<std::size_t>(i)] = std::int64_t{page} * layer.layout.block_size + token % layer.layout.block_size;
  }
  return slots;
}

std::unique_ptr<PageFileWriter> create_page_file(const std::string& path, const std::map<std::string, std::string>& attributes,
                                                 bool overwrite) {
  return std::make_unique<Hdf5PageFileWriter>(path, attributes, overwrite);
}

std::unique_ptr<PageFile> open_page_file(const std::string& path, const std::optional<PageHint>& hint) {
  return std::make_unique<Hdf5PageFile>(path, hint);
}

bool is_page_file(const std::string& path) {
  const Hdf5Scope scope;
  const H5File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
  return file && !Hdf5PageFile::find_groups(file.get()).empty();
}

}  // namespace tq4
