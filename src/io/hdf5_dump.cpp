// Reads dumps from HDF5: only the rows asked for come into memory. Rows that lie in the file as they are wanted (contiguous storage, little
// endian) are read from their place by their offset; everything else (chunks, filters, other orders, doubles) by hyperslabs. fp16 and bf16
// arrive as their 16-bit patterns (HDF5's own conversion of small floats is slow and loses NaN payloads); doubles are converted to fp32.
#include <algorithm>
#include <array>
#include <cstring>

#include "io/dump_schema.h"
#include "io/file.h"
#include "io/flat_rows.h"
#include "io/hdf5_attributes.h"
#include "io/hdf5_handle.h"
#include "io/open_dump.h"

namespace tq4::io {
namespace {

/// Element type of a dataset, or why it cannot be read.
std::optional<DType> element_type(hid_t type, const Attributes& attributes, std::string& problem) {
  const H5T_class_t kind = H5Tget_class(type);
  const std::size_t bytes = H5Tget_size(type);
  if (kind == H5T_FLOAT) {
    std::size_t sign = 0, exponent_at = 0, exponent = 0, mantissa_at = 0, mantissa = 0;
    H5Tget_fields(type, &sign, &exponent_at, &exponent, &mantissa_at, &mantissa);
    if (bytes == 2 && exponent == 5 && mantissa == 10 && H5Tget_ebias(type) == 15) return DType::F16;
    if (bytes == 2 && exponent == 8 && mantissa == 7 && H5Tget_ebias(type) == 127) return DType::BF16;
    if (bytes == 4 && exponent == 8 && mantissa == 23) return DType::F32;
    if (bytes == 8 && exponent == 11 && mantissa == 52) return DType::F64;
    problem = "has floats of " + std::to_string(bytes) + " bytes with " + std::to_string(exponent) + " exponent and " +
              std::to_string(mantissa) + " mantissa bits; use float16, bfloat16 or float32";
    return std::nullopt;
  }
  if (kind == H5T_INTEGER && bytes == 2) {
    const auto named = attributes.find("dtype");
    if (named != attributes.end() && (named->second == "bfloat16" || named->second == "bf16")) return DType::BF16;
    if (named != attributes.end() && (named->second == "float16" || named->second == "fp16")) return DType::F16;
    problem = "holds 16-bit integers; if they are bfloat16 patterns, say so with the attribute dtype = \"bfloat16\"";
    return std::nullopt;
  }
  problem = "does not hold floating-point numbers; use float16, bfloat16 or float32";
  return std::nullopt;
}

/// Where the elements of a dataset begin in the file, if they lie there row-major and in the order of bytes that they are handed out in.
std::optional<std::uint64_t> flat_offset(const H5Dataset& dataset, hid_t type, const SourceTensor& source, std::uint64_t file_bytes) {
  if (!source.dtype || *source.dtype == DType::F64) return std::nullopt;
  if (*source.dtype == DType::F32 ? H5Tequal(type, H5T_IEEE_F32LE) <= 0 : H5Tget_order(type) != H5T_ORDER_LE) return std::nullopt;
  const H5Properties made(H5Dget_create_plist(dataset.get()));
  if (H5Pget_layout(made.get()) != H5D_CONTIGUOUS || H5Pget_external_count(made.get()) != 0) return std::nullopt;
  const haddr_t offset = H5Dget_offset(dataset.get());
  if (offset == HADDR_UNDEF || offset > file_bytes) return std::nullopt;
  std::uint64_t bytes = dtype_size(*source.dtype);
  for (const std::uint64_t extent : source.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  if (H5Dget_storage_size(dataset.get()) != bytes || bytes > file_bytes - offset) return std::nullopt;
  return offset;
}

class Hdf5Dump final : public Dump {
 public:
  Hdf5Dump(const std::string& path, const DumpOptions& options) : bytes_(path, options.read_once) {
    const Hdf5Scope scope;
    file_ = H5File(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT));
    if (!file_) bad_input(path, "HDF5 cannot open it (" + hdf5_reason() + "); the file is cut short or damaged, copy it again");
    const H5Object root(H5Oopen(file_.get(), "/", H5P_DEFAULT));
    const Attributes attributes = read_attributes(root.get());
    schema_ = assemble(path, "hdf5", list_datasets(path, attributes), attributes, options);
  }

  const DumpInfo& info() const override { return schema_.info; }

  void read(std::size_t layer_index, Tensor tensor, int head, std::int64_t token_begin, std::int64_t count, void* out) override {
    const PlacedTensor& placed = schema_.tensor(layer_index, tensor);
    check_range(placed, schema_.info.path, head, token_begin, count);
    if (count == 0) return;
    if (const auto& flat = flat_[placed.source.id]; flat && heads_contiguous(placed)) {
      const auto read = [&](std::uint64_t offset, void* to, std::size_t bytes) { bytes_.read_once_at(*flat + offset, to, bytes); };
      read_rows(placed, read, head, token_begin, count, out);
      return;
    }
    const Hdf5Scope scope;
    const auto rank = placed.source.shape.size();
    std::vector<hsize_t> start(rank, 0), size(rank, 1);
    start[static_cast<std::size_t>(placed.head_axis)] = static_cast<hsize_t>(head);
    start[static_cast<std::size_t>(placed.token_axis)] = static_cast<hsize_t>(token_begin);
    size[static_cast<std::size_t>(placed.token_axis)] = static_cast<hsize_t>(count);
    size[rank - 1] = placed.head_dim();
    read_slab(placed.source, open_dataset(tensor, placed.source), start, size, out);
  }

  std::vector<float> read_o_gram(std::size_t layer_index) override {
    if (layer_index >= schema_.layers.size() || !schema_.layers[layer_index].o_gram)
      bad_input(schema_.info.path, "no o_gram in layer index " + std::to_string(layer_index));
    const Hdf5Scope scope;
    const SourceTensor& source = *schema_.layers[layer_index].o_gram;
    const H5Dataset dataset(H5Dopen2(file_.get(), source.path.c_str(), H5P_DEFAULT));
    std::vector<float> gram(source.shape[0] * source.shape[1] * source.shape[2]);
    if (!dataset || H5Dread(dataset.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, gram.data()) < 0)
      fail(source, "cannot be read");
    return gram;
  }

 private:
  struct OpenDataset {
    std::string path;
    H5Dataset dataset;
  };

  [[noreturn]] void fail(const SourceTensor& source, const std::string& what) const {
    bad_input(schema_.info.path + ": " + source.path, what + " (" + hdf5_reason() + "); the file is cut short or damaged, copy it again");
  }

  std::vector<SourceTensor> list_datasets(const std::string& path, const Attributes& root_attributes) {
    std::vector<std::string> names;
    const auto visit = [](hid_t, const char* name, const H5O_info_t* object, void* out) -> herr_t {
      if (object->type == H5O_TYPE_DATASET) static_cast<std::vector<std::string>*>(out)->push_back(std::string("/") + name);
      return 0;
    };
    if (H5Ovisit(file_.get(), H5_INDEX_NAME, H5_ITER_NATIVE, visit, &names) < 0)
      bad_input(path, "HDF5 cannot list its datasets (" + hdf5_reason() + ")");
    std::vector<SourceTensor> sources;
    for (const std::string& name : names) {
      const H5Dataset dataset(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT));
      if (!dataset) bad_input(path + ": " + name, "HDF5 cannot open this dataset (" + hdf5_reason() + ")");
      SourceTensor& source = sources.emplace_back();
      source.path = name;
      const H5Space space(H5Dget_space(dataset.get()));
      std::vector<hsize_t> extent(static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space.get()))));
      H5Sget_simple_extent_dims(space.get(), extent.data(), nullptr);
      source.shape.assign(extent.begin(), extent.end());
      source.attributes = read_attributes(dataset.get());
      if (const auto slash = name.rfind('/'); slash > 0) {
        const H5Object group(H5Oopen(file_.get(), name.substr(0, slash).c_str(), H5P_DEFAULT));
        source.attributes.merge(read_attributes(group.get()));
      }
      Attributes for_type = source.attributes;
      for_type.insert(root_attributes.begin(), root_attributes.end());
      const H5Type type(H5Dget_type(dataset.get()));
      source.dtype = element_type(type.get(), for_type, source.problem);
      source.id = flat_.size();
      flat_.push_back(flat_offset(dataset, type.get(), source, bytes_.size()));
    }
    return sources;
  }

  /// One dataset of each kind stays open, with a chunk cache that holds what neighbouring reads share.
  hid_t open_dataset(Tensor tensor, const SourceTensor& source) {
    OpenDataset& open = open_[static_cast<std::size_t>(tensor)];
    if (open.path == source.path && open.dataset) return open.dataset.get();
    open.dataset.reset();
    const H5Properties access(H5Pcreate(H5P_DATASET_ACCESS));
    H5Pset_chunk_cache(access.get(), 521, std::size_t{24} << 20, 1.0);
    open.dataset = H5Dataset(H5Dopen2(file_.get(), source.path.c_str(), access.get()));
    if (!open.dataset) fail(source, "cannot be opened");
    open.path = source.path;
    return open.dataset.get();
  }

  void read_slab(const SourceTensor& source, hid_t dataset, const std::vector<hsize_t>& start, const std::vector<hsize_t>& size,
                 void* out) const {
    const H5Space file_space(H5Dget_space(dataset));
    if (H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, start.data(), nullptr, size.data(), nullptr) < 0)
      fail(source, "cannot be selected from");
    const H5Space memory_space(H5Screate_simple(static_cast<int>(size.size()), size.data(), nullptr));
    H5Type memory_type(H5Tcopy(H5T_NATIVE_FLOAT));
    if (*source.dtype == DType::F16 || *source.dtype == DType::BF16) {
      const H5Type stored(H5Dget_type(dataset));
      memory_type = H5Type(H5Tcopy(stored.get()));  // the stored pattern, in little-endian order
      H5Tset_order(memory_type.get(), H5T_ORDER_LE);
    }
    if (H5Dread(dataset, memory_type.get(), memory_space.get(), file_space.get(), H5P_DEFAULT, out) < 0) fail(source, "cannot be read");
  }

  H5File file_;
  InputFile bytes_;                                 ///< the same file, for what needs no HDF5 to read
  std::vector<std::optional<std::uint64_t>> flat_;  ///< by SourceTensor::id
  Schema schema_;
  std::array<OpenDataset, 3> open_;
};

}  // namespace

std::unique_ptr<Dump> open_hdf5_dump(const std::string& path, const DumpOptions& options) {
  return std::make_unique<Hdf5Dump>(path, options);
}

}  // namespace tq4::io
