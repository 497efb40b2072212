// Writes dumps in HDF5 (decompress -o back.h5): the schema hdf5_dump.cpp reads, atomically, with the space reserved before the first row.
#include <set>
#include <vector>

#include "io/file.h"
#include "io/hdf5_attributes.h"
#include "io/hdf5_handle.h"
#include "tq4/container.h"
#include "tq4/dump.h"

namespace tq4 {
namespace {

using namespace io;

class Hdf5DumpWriter final : public DumpWriter {
 public:
  Hdf5DumpWriter(const std::string& path, const DumpInfo& info, DType dtype, bool overwrite)
      : path_(path), info_(info), dtype_(dtype), atomic_(path, overwrite) {
    if (dtype != DType::F16 && dtype != DType::BF16 && dtype != DType::F32) {
      throw Error(ErrorCode::Usage, "a dump holds float16, bfloat16 or float32, not " + std::string(dtype_name(dtype)), path);
    }
    const Hdf5Scope scope;
    const H5Properties access(H5Pcreate(H5P_FILE_ACCESS));
    H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    file_ = H5File(H5Fcreate(atomic_.temporary_path().c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()));
    if (!file_) fail("HDF5 cannot create the file");
    reserve_space(atomic_.fd(), total_bytes() + (std::uint64_t{1} << 16) + info.layers.size() * 8192, path);
    type_ = dtype == DType::F16 ? hdf5_half() : dtype == DType::BF16 ? hdf5_bfloat16() : H5Type(H5Tcopy(H5T_IEEE_F32LE));
    write_root_attributes();
    for (const LayerInfo& layer : info.layers) create_layer(layer);
  }

  void write(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, const void* rows) override {
    if (layer_index >= info_.layers.size())
      throw Error(ErrorCode::Usage, "layer index " + std::to_string(layer_index) + " of " + std::to_string(info_.layers.size()), path_);
    const LayerInfo& layer = info_.layers[layer_index];
    const std::int64_t tokens = tensor == Tensor::Q ? layer.q_tokens : layer.tokens;
    const int heads = tensor == Tensor::Q ? layer.num_q_heads : layer.num_kv_heads;
    if (head < 0 || head >= heads || token_begin < 0 || count < 0 || token_begin > tokens || count > tokens - token_begin) {
      throw Error(ErrorCode::Usage, "rows outside of layer " + std::to_string(layer.layer), path_);
    }
    if (count == 0) return;
    const Hdf5Scope scope;
    const hid_t dataset = datasets_[layer_index * 3 + static_cast<std::size_t>(tensor)].get();
    const hsize_t start[3] = {static_cast<hsize_t>(head), static_cast<hsize_t>(token_begin), 0};
    const hsize_t size[3] = {1, static_cast<hsize_t>(count), static_cast<hsize_t>(layer.head_dim)};
    const H5Space file_space(H5Dget_space(dataset)), memory_space(H5Screate_simple(3, size, nullptr));
    H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start, nullptr, size, nullptr);
    if (H5Dwrite(dataset, type_.get(), memory_space.get(), file_space.get(), H5P_DEFAULT, rows) < 0) fail("writing failed");
  }

  void commit() override {
    {
      const Hdf5Scope scope;
      datasets_.clear();
      if (H5Fflush(file_.get(), H5F_SCOPE_GLOBAL) < 0) fail("writing failed");
      if (H5Fclose(file_.release()) < 0) fail("closing failed");
    }
    atomic_.commit();
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw Error(ErrorCode::Runtime, what + " (" + hdf5_reason() + ")", path_); }

  std::uint64_t total_bytes() const {
    std::uint64_t elements = 0;
    for (const LayerInfo& layer : info_.layers) {
      elements += static_cast<std::uint64_t>(layer.head_dim) *
                  (2 * static_cast<std::uint64_t>(layer.num_kv_heads) * static_cast<std::uint64_t>(layer.tokens) +
                   static_cast<std::uint64_t>(layer.num_q_heads) * static_cast<std::uint64_t>(layer.q_tokens));
    }
    return elements * dtype_size(dtype_);
  }

  void write_root_attributes() {
    Attributes attributes = info_.attributes;
    const auto fill = [&](const std::string& name, const std::string& text) {
      if (!text.empty()) attributes.try_emplace(name, text);
    };
    fill("model", info_.model);
    fill("source", info_.source);
    if (info_.sm_scale != 0) fill("sm_scale", number_text(info_.sm_scale));
    if (info_.rope_theta != 0) fill("rope_theta", number_text(info_.rope_theta));
    fill("rope_applied", info_.rope_applied ? "true" : "false");
    fill("causal", info_.causal ? "true" : "false");
    attributes["dtype"] = std::string(dtype_name(dtype_));
    const H5Object root(H5Oopen(file_.get(), "/", H5P_DEFAULT));
    for (const auto& [name, text] : attributes) {
      if (!write_attribute(root.get(), name, text)) fail("cannot write the attribute " + name);
    }
  }

  void create_layer(const LayerInfo& layer) {
    char name[32];
    std::snprintf(name, sizeof name, "layer_%03d", layer.layer);
    const H5Group group(H5Gcreate2(file_.get(), name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    if (!group) fail(std::string("cannot create the group ") + name);
    if (layer.sliding_window > 0) write_attribute(group.get(), "sliding_window", std::to_string(layer.sliding_window));
    datasets_.push_back(create_dataset(group.get(), "k", layer.num_kv_heads, layer.tokens, layer.head_dim));
    datasets_.push_back(create_dataset(group.get(), "v", layer.num_kv_heads, layer.tokens, layer.head_dim));
    if (layer.num_q_heads > 0 && layer.q_tokens > 0) {
      datasets_.push_back(create_dataset(group.get(), "q", layer.num_q_heads, layer.q_tokens, layer.head_dim));
      write_attribute(datasets_.back().get(), "q_start", std::to_string(layer.q_start));
    } else {
      datasets_.emplace_back();
    }
  }

  H5Dataset create_dataset(hid_t group, const char* name, int heads, std::int64_t tokens, int head_dim) {
    const hsize_t extent[3] = {static_cast<hsize_t>(heads), static_cast<hsize_t>(tokens), static_cast<hsize_t>(head_dim)};
    const H5Space space(H5Screate_simple(3, extent, nullptr));
    const H5Properties creation(H5Pcreate(H5P_DATASET_CREATE));
    H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER);
    H5Dataset dataset(H5Dcreate2(group, name, type_.get(), space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT));
    if (!dataset) fail(std::string("cannot create the dataset ") + name);
    if (dtype_ == DType::BF16) write_attribute(dataset.get(), "dtype", "bfloat16");
    return dataset;
  }

  std::string path_;
  DumpInfo info_;
  DType dtype_;
  AtomicFile atomic_;
  H5File file_;
  H5Type type_;
  std::vector<H5Dataset> datasets_;  ///< k, v, q of each layer
};

}  // namespace

std::unique_ptr<DumpWriter> create_dump(const std::string& path, const DumpInfo& info, DType dtype, bool overwrite) {
  return std::make_unique<Hdf5DumpWriter>(path, info, dtype, overwrite);
}

}  // namespace tq4
