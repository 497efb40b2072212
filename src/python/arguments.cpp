// Says in words what does not fit.
#include "arguments.h"

#include <nanobind/stl/string.h>

namespace tq4::python {
namespace {

std::string type_text(nb::handle object) { return nb::cast<std::string>(nb::str(nb::handle(object.type()).attr("__name__"))); }

}  // namespace

std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t n = 1;
  for (const std::int64_t size : shape) n *= size;
  return n;
}

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
