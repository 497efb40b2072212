// What arguments must be and how they are refused: Refusal becomes a named tq4.Error; shapes and dtypes are checked in words a user can act on.
// And results as NumPy arrays. How a tensor is seen at all is tensor.h.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "tq4/types.h"

namespace tq4::python {

namespace nb = nanobind;

/// Becomes the exception class `name` of tq4._errors (DTypeError, ShapeError, StrideError, HeadDimError, DeviceError, UsageError).
struct Refusal {
  const char* name;
  std::string message;
};

/// Elements of a tensor of this shape.
std::int64_t elements(const std::vector<std::int64_t>& shape);

/// Throws Refusal (ShapeError) unless `shape` is `expected`; -1 takes any size.
void need_shape(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& expected, const char* name);
std::string shape_text(const std::vector<std::int64_t>& shape);
/// The element type, or Refusal (DTypeError) where it is not among `allowed`.
DType dtype_of(const nb::dlpack::dtype& dtype, const char* name, std::initializer_list<DType> allowed);
/// Throws Refusal (DTypeError) that says why `object` is no tensor.
[[noreturn]] void no_tensor(nb::handle object, const char* name, bool writable);

/// A NumPy array that owns `values`.
template <class T>
nb::object to_numpy(std::unique_ptr<T[]> values, const std::vector<std::int64_t>& shape) {
  std::vector<std::size_t> sizes(shape.begin(), shape.end());
  T* data = values.get();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  static_cast<void>(values.release());
  return nb::cast(nb::ndarray<nb::numpy, T>(data, sizes.size(), sizes.data(), owner));
}
/// The same for fp16 bits.
nb::object to_numpy_half(std::unique_ptr<std::uint16_t[]> values, const std::vector<std::int64_t>& shape);

}  // namespace tq4::python
