// The three ways to see a tensor, and walking over strided ones.
#include "tensor.h"

#include <nanobind/stl/string.h>

#include <cstring>

namespace tq4::python {
namespace {

// DLPack's C structures as its 1.3 specification lays them out (nanobind has the tensor's, not the exchange interface's).
struct ExchangeHeader {
  std::uint32_t major, minor;
  ExchangeHeader* older;
};
struct ExchangeInterface {
  ExchangeHeader header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
  int (*current_stream)(int device_type, std::int32_t device, void** stream);
};

constexpr int kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;

/// The exchange interface of the object's type; the last type seen is remembered (a call's tensors are mostly of one).
const ExchangeInterface* exchange(nb::handle object) {
  static PyTypeObject* known = nullptr;
  static const ExchangeInterface* interface = nullptr;
  PyTypeObject* type = Py_TYPE(object.ptr());
  if (type == known) return interface;
  const nb::object capsule = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__", nb::none());
  const ExchangeInterface* found = nullptr;
  if (PyCapsule_CheckExact(capsule.ptr())) {
    found = static_cast<const ExchangeInterface*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (found == nullptr) PyErr_Clear();
    if (found != nullptr && (found->header.major != 1 || found->tensor_from_object == nullptr)) found = nullptr;
  }
  if (found == nullptr) return nullptr;
  Py_INCREF(type);  // for good: a handful of types, and the pointer stays true
  known = type;
  interface = found;
  return found;
}

void place(Tensor& t, int device_type, int device, const char* name) {
  if (device_type == kCuda || device_type == kCudaManaged) {
    t.cuda = true;
    t.device = device;
  } else if (device_type != kCpu && device_type != kCudaHost) {
    throw Refusal{"DeviceError", std::string(name) + " is on a device of DLPack type " + std::to_string(device_type) +
                                     "; tensors on the cpu and on CUDA devices are taken"};
  }
}

bool by_exchange(nb::handle object, const char* name, std::initializer_list<DType> allowed, Tensor& t) {
  const ExchangeInterface* api = exchange(object);
  if (api == nullptr) return false;
  nb::dlpack::dltensor seen{};
  if (api->tensor_from_object(object.ptr(), &seen) != 0) {
    PyErr_Clear();  // e.g. it requires a gradient: the other ways decide
    return false;
  }
  t.dtype = dtype_of(seen.dtype, name, allowed);
  t.data = static_cast<std::uint8_t*>(seen.data) + seen.byte_offset;
  t.shape.assign(seen.shape, seen.shape + seen.ndim);
  t.strides.resize(t.shape.size());
  std::int64_t dense = 1;
  for (std::size_t i = t.shape.size(); i-- > 0;) {
    t.strides[i] = seen.strides != nullptr ? seen.strides[i] : dense;
    dense *= t.shape[i];
  }
  place(t, seen.device.device_type, seen.device.device_id, name);
  if (t.cuda && api->current_stream != nullptr) {
    t.has_stream = api->current_stream(kCuda, t.device, &t.stream) == 0;
    if (!t.has_stream) PyErr_Clear();
  }
  return true;
}

template <class Array>
void from_array(nb::handle object, const Array& array, const char* name, std::initializer_list<DType> allowed, Tensor& t) {
  place(t, array.device_type(), array.device_id(), name);
  t.dtype = dtype_of(array.dtype(), name, allowed);
  t.shape.resize(array.ndim());
  t.strides.resize(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    t.shape[i] = static_cast<std::int64_t>(array.shape(i));
    t.strides[i] = array.stride(i);
  }
  t.data = const_cast<void*>(static_cast<const void*>(array.data()));
  if (t.cuda) t.object = nb::borrow(object);  // stream_of asks it
}

/// What __cuda_array_interface__ (version 2 or 3) says; false where the object has none.
bool by_cuda_array_interface(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable, Tensor& t) {
  nb::object interface;
  try {
    interface = nb::getattr(object, "__cuda_array_interface__", nb::none());
    if (interface.is_none()) return false;
    const auto type = nb::cast<std::string>(interface["typestr"]);
    const auto size = type.size() == 3 ? static_cast<std::uint8_t>(8 * (type[2] - '0')) : std::uint8_t{0};
    using Code = nb::dlpack::dtype_code;
    const Code code = type.size() < 2  ? Code::Bool
                      : type[1] == 'f' ? Code::Float
                      : type[1] == 'u' ? Code::UInt
                      : type[1] == 'i' ? Code::Int
                                       : Code::Bool;
    if (type.empty() || type[0] == '>') throw Refusal{"DTypeError", std::string(name) + " is not little endian"};
    t.dtype = dtype_of({static_cast<std::uint8_t>(code), size, 1}, name, allowed);
    for (const nb::handle one : interface["shape"]) t.shape.push_back(nb::cast<std::int64_t>(one));
    const nb::object data = interface["data"];
    t.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(data[0]));
    if (writable && nb::cast<bool>(data[1])) throw Refusal{"DTypeError", std::string(name) + " is read-only"};
    const nb::object strides = interface.attr("get")("strides");
    const auto width = static_cast<std::int64_t>(dtype_size(t.dtype));
    std::int64_t dense = 1;
    t.strides.resize(t.shape.size());
    for (std::size_t i = t.shape.size(); i-- > 0;) {
      t.strides[i] = strides.is_none() ? dense : nb::cast<std::int64_t>(strides[i]) / width;
      dense *= t.shape[i];
    }
  } catch (const Refusal&) {
    throw;
  } catch (const std::exception&) {
    PyErr_Clear();
    return false;
  }
  t.cuda = true;
  t.object = nb::borrow(object);
  return true;
}

}  // namespace

int Tensor::stray_axis() const {
  if (size() == 0) return -1;
  std::int64_t expected = 1;
  for (int i = ndim(); i-- > 0;) {
    if (dim(i) != 1 && stride(i) != expected) return i;
    expected *= dim(i);
  }
  return -1;
}

void Tensor::insert_axis(int i) {
  shape.insert(shape.begin() + i, 1);
  strides.insert(strides.begin() + i, i < static_cast<int>(strides.size()) ? strides[static_cast<std::size_t>(i)] : 1);
}

Tensor tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable) {
  Tensor t;
  if (by_exchange(object, name, allowed, t)) return t;
  if (writable) {
    if (nb::try_cast(object, t.out, false) && t.out.is_valid()) {
      from_array(object, t.out, name, allowed, t);
      return t;
    }
  } else if (nb::try_cast(object, t.in, false) && t.in.is_valid()) {
    from_array(object, t.in, name, allowed, t);
    return t;
  }
  if (by_cuda_array_interface(object, name, allowed, writable, t)) return t;
  no_tensor(object, name, writable);
}

Tensor tensor_on(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool cuda, int device, bool writable) {
  Tensor t = tensor(object, name, allowed, writable);
  if (t.cuda != cuda) {
    throw Refusal{"DeviceError",
                  std::string(name) + (t.cuda ? " is on a GPU; this call works on cpu tensors: pass " + std::string(name) + ".cpu()"
                                              : " is on the cpu; this call works on CUDA tensors")};
  }
  if (cuda && t.device != device) {
    throw Refusal{"DeviceError", std::string(name) + " is on cuda:" + std::to_string(t.device) +
                                     ", the codec's tables are on cuda:" + std::to_string(device)};
  }
  return t;
}

Tensor cpu_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable) {
  Tensor t = tensor_on(object, name, allowed, false, 0, writable);
  need_dense(t, name);
  return t;
}

void need_dense(const Tensor& t, const char* name) {
  const int axis = t.stray_axis();
  if (axis < 0) return;
  throw Refusal{"StrideError", std::string(name) + " of shape " + shape_text(t.shape) + " is not C-contiguous (stride of axis " +
                                   std::to_string(axis) + " is " + std::to_string(t.stride(axis)) +
                                   " elements): pass numpy.ascontiguousarray(" + name + ") or " + name + ".contiguous()"};
}

void need_rows(const Tensor& t, const char* name) {
  if (t.shape.empty() || t.shape.back() <= 1 || t.size() == 0 || t.strides.back() == 1) return;
  throw Refusal{"StrideError", std::string(name) + " of shape " + shape_text(t.shape) + " has elements " +
                                   std::to_string(t.strides.back()) +
                                   " apart along its last axis: vectors must be contiguous (numpy.ascontiguousarray, .contiguous())"};
}

void need_vectors(const Tensor& t, const char* name, int head_dim) {
  if (t.shape.empty())
    throw Refusal{"ShapeError", std::string(name) + " is a single number; vectors of " + std::to_string(head_dim) + " are needed"};
  if (t.shape.back() != head_dim) {
    throw Refusal{"HeadDimError", std::string(name) + " of shape " + shape_text(t.shape) + " has vectors of " +
                                      std::to_string(t.shape.back()) + "; this codec is for head_dim " + std::to_string(head_dim)};
  }
  need_rows(t, name);
}

void* stream_of(const Tensor& t, std::optional<std::uintptr_t> stream) {
  if (stream) return reinterpret_cast<void*>(*stream);
  if (t.has_stream) return t.stream;
  try {
    const auto module = nb::cast<std::string>(nb::getattr(t.object.type(), "__module__"));
    nb::object current = nb::none();
    if (module == "torch" || module.starts_with("torch.")) {
      current = nb::module_::import_("torch").attr("cuda").attr("current_stream")(t.device).attr("cuda_stream");
    } else {
      const nb::object interface = nb::getattr(t.object, "__cuda_array_interface__", nb::none());
      if (!interface.is_none()) current = interface.attr("get")("stream");
    }
    if (!current.is_none()) return reinterpret_cast<void*>(nb::cast<std::uintptr_t>(current));
  } catch (const std::exception&) {
    PyErr_Clear();
  }
  throw Refusal{"UsageError", "these tensors do not tell their framework's current stream: pass stream=<cudaStream_t as an integer>"};
}

const void* gather_rows(const Tensor& t, std::int64_t first, std::int64_t count, std::vector<std::uint8_t>& to) {
  const auto width = static_cast<std::int64_t>(dtype_size(t.dtype));
  const std::int64_t row = t.shape.back() * width;
  const auto* base = t.as<const std::uint8_t>();
  if (t.dense()) return base + first * row;
  to.resize(static_cast<std::size_t>(count * row));
  const int axes = t.ndim() - 1;
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = first + i, offset = 0;
    for (int a = axes; a-- > 0;) {
      offset += rest % t.dim(a) * t.stride(a);
      rest /= t.dim(a);
    }
    std::memcpy(to.data() + i * row, base + offset * width, static_cast<std::size_t>(row));
  }
  return to.data();
}

}  // namespace tq4::python
