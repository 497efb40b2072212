// See hdf5_handle.h.
#include "io/hdf5_handle.h"

#include <algorithm>

namespace tq4::io {

std::recursive_mutex Hdf5Scope::mutex_;

Hdf5Scope::Hdf5Scope() : lock_(mutex_) {
  H5Eget_auto2(H5E_DEFAULT, &function_, &data_);  // a thread's own setting where the library is thread-safe, hence at every entry
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Hdf5Scope::~Hdf5Scope() { H5Eset_auto2(H5E_DEFAULT, function_, data_); }

std::string hdf5_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
        if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &reason);
  std::replace(reason.begin(), reason.end(), '\n', ' ');  // ctime's, in the middle of HDF5's sentence
  return reason;
}

namespace {
H5Type small_float(std::size_t exponent_bits, std::size_t mantissa_bits, std::size_t bias) {
  H5Type type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), bias);
  return type;
}
}  // namespace

H5Type hdf5_half() { return small_float(5, 10, 15); }
H5Type hdf5_bfloat16() { return small_float(8, 7, 127); }

}  // namespace tq4::io
