// RAII around HDF5's C API: handles that close themselves, HDF5's own error printing silenced, its error stack turned into one line. Every
// public function of the HDF5 classes holds an Hdf5Scope: it also serialises calls, because not every build of the library is thread-safe.
#pragma once

#define H5_USE_110_API
#include <hdf5.h>

#include <mutex>
#include <string>
#include <utility>

namespace tq4::io {

class Hdf5Scope {
 public:
  Hdf5Scope();
  ~Hdf5Scope();
  Hdf5Scope(const Hdf5Scope&) = delete;
  Hdf5Scope& operator=(const Hdf5Scope&) = delete;

 private:
  static std::recursive_mutex mutex_;
  std::lock_guard<std::recursive_mutex> lock_;
  H5E_auto2_t function_ = nullptr;
  void* data_ = nullptr;
};

template <herr_t (*Close)(hid_t)>
class H5Handle {
 public:
  H5Handle() = default;
  explicit H5Handle(hid_t id) : id_(id) {}
  H5Handle(H5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  H5Handle& operator=(H5Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, -1);
    }
    return *this;
  }
  ~H5Handle() { reset(); }
  void reset() {
    if (id_ < 0) return;
    const Hdf5Scope scope;
    Close(id_);
    id_ = -1;
  }
  hid_t release() { return std::exchange(id_, -1); }
  hid_t get() const { return id_; }
  explicit operator bool() const { return id_ >= 0; }

 private:
  hid_t id_ = -1;
};
using H5File = H5Handle<H5Fclose>;
using H5Group = H5Handle<H5Gclose>;
using H5Object = H5Handle<H5Oclose>;
using H5Dataset = H5Handle<H5Dclose>;
using H5Space = H5Handle<H5Sclose>;
using H5Type = H5Handle<H5Tclose>;
using H5Attribute = H5Handle<H5Aclose>;
using H5Properties = H5Handle<H5Pclose>;

/// The innermost description on HDF5's error stack, "" when it is empty.
std::string hdf5_reason();

/// HDF5 types of the 16-bit floats, which 1.10 has no constants for. Little-endian.
H5Type hdf5_half();
H5Type hdf5_bfloat16();

}  // namespace tq4::io
