// Python tensors at the border: whatever offers DLPack or the buffer protocol (NumPy, torch, JAX on the CPU) is seen in place, checked, and
// refused with a named tq4.Error where it does not fit. Nothing here copies an argument or imports a framework.
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

/// A C-contiguous CPU tensor seen in place; `keep` holds the owner.
struct InTensor {
  nb::ndarray<nb::ro> keep;
  const void* data = nullptr;
  DType dtype{};
  std::vector<std::int64_t> shape;

  std::int64_t dim(std::size_t i) const { return shape[i]; }
  std::int64_t size() const;
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};
struct OutTensor {
  nb::ndarray<> keep;
  void* data = nullptr;
  DType dtype{};
  std::vector<std::int64_t> shape;
  std::int64_t size() const;
};

/// `name` is the argument's name, for messages. Throws Refusal: no tensor, on a GPU, dtype not among `allowed`, not C-contiguous.
InTensor in_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed);
/// As in_tensor, for results: read-only tensors are refused too.
OutTensor out_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed);
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
