// Reader of the committed golden files (HDF5): whole datasets as vectors of the type the test wants. Header-only, for tests only: it
// uses the HDF5 C API directly so that a bug in the library's own reader cannot hide one in its writer.
#pragma once

#include <hdf5.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace tq4::golden {

/// A dataset: its shape and its elements, row-major.
template <class T>
struct Array {
  std::vector<std::size_t> shape;
  std::vector<T> data;
  std::size_t size() const { return data.size(); }
  const T& operator[](std::size_t i) const { return data[i]; }
};

/// An open golden file. Datasets are read with read<T>("a/b/c"); T is float, double, std::uint8_t, std::int32_t or std::int64_t, and
/// HDF5 converts what is stored (float16 becomes float exactly). Throws std::runtime_error where something is missing.
class File {
 public:
  /// `path` defaults to the peers' bytes: see tests/golden/data/README.md.
  explicit File(const std::string& path = std::string(TQ4_SOURCE_DIR) + "/tests/golden/data/peers.h5")
      : file_(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT)) {
    if (file_ < 0) throw std::runtime_error("cannot open " + path);
  }
  ~File() { H5Fclose(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// Does group or dataset `name` exist? Every group on the way is checked.
  bool has(const std::string& name) const {
    for (std::size_t end = name.find('/');; end = name.find('/', end + 1)) {
      if (H5Lexists(file_, name.substr(0, end).c_str(), H5P_DEFAULT) <= 0) return false;
      if (end == std::string::npos) return true;
    }
  }

  template <class T>
  Array<T> read(const std::string& name) const {
    if (!has(name)) throw std::runtime_error("golden file has no " + name);
    const hid_t set = H5Dopen2(file_, name.c_str(), H5P_DEFAULT);
    const hid_t space = H5Dget_space(set);
    const int rank = H5Sget_simple_extent_ndims(space);
    std::vector<hsize_t> extents(static_cast<std::size_t>(rank > 0 ? rank : 0));
    if (rank > 0) H5Sget_simple_extent_dims(space, extents.data(), nullptr);
    Array<T> array;
    array.shape.assign(extents.begin(), extents.end());
    array.data.resize(std::accumulate(extents.begin(), extents.end(), std::size_t{1}, std::multiplies<>()));
    const herr_t status = H5Dread(set, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, array.data.data());
    H5Sclose(space);
    H5Dclose(set);
    if (status < 0) throw std::runtime_error("cannot read " + name);
    return array;
  }

  template <class T>
  T scalar(const std::string& name) const {
    return read<T>(name).data.at(0);
  }

 private:
  template <class T>
  static hid_t memory_type() {
    if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
    if constexpr (std::is_same_v<T, double>) return H5T_NATIVE_DOUBLE;
    if constexpr (std::is_same_v<T, std::uint8_t>) return H5T_NATIVE_UINT8;
    if constexpr (std::is_same_v<T, std::int32_t>) return H5T_NATIVE_INT32;
    if constexpr (std::is_same_v<T, std::int64_t>) return H5T_NATIVE_INT64;
  }

  hid_t file_;
};

}  // namespace tq4::golden
