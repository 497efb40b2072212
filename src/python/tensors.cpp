// Imports tensors through nanobind's DLPack and buffer-protocol reader and says in words what does not fit.
#include "tensors.h"

#include <nanobind/stl/string.h>

namespace tq4::python {
namespace {

std::string type_text(nb::handle object) { return nb::cast<std::string>(nb::str(nb::handle(object.type()).attr("__name__"))); }

template <class Array>
void describe(const Array& array, const char* name, std::initializer_list<DType> allowed, DType& dtype, std::vector<std::int64_t>& shape) {
  if (array.device_type() != nb::device::cpu::value) {
    throw Refusal{"DeviceError", std::string(name) + " is on a device (DLPack type " + std::to_string(array.device_type()) +
                                     "); this call works on CPU tensors: pass " + name + ".cpu()"};
  }
  dtype = dtype_of(array.dtype(), name, allowed);
  shape.resize(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) shape[i] = static_cast<std::int64_t>(array.shape(i));
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0;) {
    if (shape[i] != 1 && array.stride(i) != expected && array.size() != 0) {
      throw Refusal{"StrideError", std::string(name) + " of shape " + shape_text(shape) + " is not C-contiguous (stride of axis " +
                                       std::to_string(i) + " is " + std::to_string(array.stride(i)) + " elements, not " +
                                       std::to_string(expected) + "): pass numpy.ascontiguousarray(" + name + ") or " + name +
                                       ".contiguous()"};
    }
    expected *= shape[i];
  }
}

}  // namespace

std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (const std::int64_t size : shape) n *= size;
  return n;
}

std::int64_t InTensor::size() const { return elements(shape); }
std::int64_t OutTensor::size() const { return elements(shape); }

DType dtype_of(const nb::dlpack::dtype& dtype, const char* name, std::initializer_list<DType> allowed) {
  using Code = nb::dlpack::dtype_code;
  const auto code = static_cast<Code>(dtype.code);
  std::string found = code == Code::Int       ? "int"
                      : code == Code::UInt    ? "uint"
                      : code == Code::Bfloat  ? "bfloat"
                      : code == Code::Float   ? "float"
                      : code == Code::Complex ? "complex"
                      : code == Code::Bool    ? "bool"
                                              : "dtype code " + std::to_string(dtype.code) + " of ";
  if (code != Code::Bool) found += std::to_string(dtype.bits);
  if (dtype.lanes == 1) {
    for (const DType candidate : allowed) {
      if (found == dtype_name(candidate)) return candidate;
    }
  }
  std::string names;
  for (const DType candidate : allowed) names += (names.empty() ? "" : ", ") + std::string(dtype_name(candidate));
  throw Refusal{"DTypeError", std::string(name) + " must be " + names + ", not " + found};
}

void no_tensor(nb::handle object, const char* name, bool writable) {
  // A tensor that offers DLPack but would not export it knows best why (torch: "requires gradient").
  const bool offers = nb::hasattr(object, "__dlpack__");
  throw Refusal{"DTypeError", std::string(name) + " must be a " + (writable ? "writable " : "") +
                                  "tensor (NumPy, torch or another with DLPack), " +
                                  (offers ? "and this " + type_text(object) + (writable ? " is read-only or" : "") +
                                                " does not let itself be shared (a dtype without DLPack, or .detach() is needed)"
                                          : "not " + type_text(object))};
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

InTensor in_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed) {
  InTensor tensor;
  if (!nb::try_cast(object, tensor.keep, false) || !tensor.keep.is_valid()) no_tensor(object, name, false);
  describe(tensor.keep, name, allowed, tensor.dtype, tensor.shape);
  tensor.data = tensor.keep.data();
  return tensor;
}

OutTensor out_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed) {
  OutTensor tensor;
  if (!nb::try_cast(object, tensor.keep, false) || !tensor.keep.is_valid()) no_tensor(object, name, true);
  describe(tensor.keep, name, allowed, tensor.dtype, tensor.shape);
  tensor.data = tensor.keep.data();
  return tensor;
}

void need_shape(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& expected, const char* name) {
  bool same = shape.size() == expected.size();
  for (std::size_t i = 0; same && i < shape.size(); ++i) same = expected[i] < 0 || shape[i] == expected[i];
  if (!same) throw Refusal{"ShapeError", std::string(name) + " must have shape " + shape_text(expected) + ", not " + shape_text(shape)};
}

nb::object to_numpy_half(std::unique_ptr<std::uint16_t[]> values, const std::vector<std::int64_t>& shape) {
  std::vector<std::size_t> sizes(shape.begin(), shape.end());
  std::uint16_t* data = values.get();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<std::uint16_t*>(p); });
  static_cast<void>(values.release());
  const nb::dlpack::dtype half{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  return nb::cast(nb::ndarray<nb::numpy>(data, sizes.size(), sizes.data(), owner, nullptr, half, nb::device::cpu::value));
}

}  // namespace tq4::python
