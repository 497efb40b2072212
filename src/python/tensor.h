// Tensors of either device, seen in place: shape, strides, device and, where the framework tells it, the current stream. torch's exchange
// interface (DLPack 1.3) is asked first because it takes tens of nanoseconds where __dlpack__() takes microseconds; then DLPack and the
// buffer protocol; then __cuda_array_interface__. Nothing is copied or synchronised. The current stream comes from the exchange interface, from
// __cuda_array_interface__ (CuPy), or from torch where it is older than the former.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"

namespace tq4::python {

struct Tensor {
  void* data = nullptr;
  DType dtype{};
  std::vector<std::int64_t> shape, strides;  ///< strides in elements
  bool cuda = false;
  int device = 0;          ///< CUDA ordinal
  void* stream = nullptr;  ///< the framework's current stream of `device`
  bool has_stream = false;

  int ndim() const { return static_cast<int>(shape.size()); }
  std::int64_t dim(int i) const { return shape[static_cast<std::size_t>(i)]; }
  std::int64_t stride(int i) const { return strides[static_cast<std::size_t>(i)]; }
  std::int64_t size() const { return elements(shape); }
  int stray_axis() const;  ///< the last axis whose stride is not that of a C-contiguous tensor; -1 = C-contiguous
  bool dense() const { return stray_axis() < 0; }
  void insert_axis(int i);  ///< an axis of size 1 before axis i
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  // Owners of what was lent; which are set depends on how the object was seen. The exchange interface borrows: the caller holds the object.
  nb::ndarray<nb::ro> in;
  nb::ndarray<> out;
  nb::object object;
};

/// `name` is the argument's, for messages. Throws Refusal: no tensor, another dtype, read-only where `writable` is asked for.
Tensor tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable = false);
/// The same, refused unless it lies on the CPU (`cuda` false) or on CUDA device `device`.
Tensor tensor_on(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool cuda, int device, bool writable = false);

/// The same, refused unless it lies on the CPU and is C-contiguous.
Tensor cpu_tensor(nb::handle object, const char* name, std::initializer_list<DType> allowed, bool writable = false);

/// Throws Refusal (StrideError) unless C-contiguous.
void need_dense(const Tensor& tensor, const char* name);
/// Throws Refusal (StrideError) unless elements of the last axis lie side by side.
void need_rows(const Tensor& tensor, const char* name);

/// Throws Refusal unless `tensor` is of vectors: its last axis dense (StrideError) and of `head_dim` elements (HeadDimError).
void need_vectors(const Tensor& tensor, const char* name, int head_dim);

/// The stream given, else the current one of the CUDA tensor's framework; Refusal (UsageError) where that does not tell it.
void* stream_of(const Tensor& tensor, std::optional<std::uintptr_t> stream);

/// Copies vectors [first, first + count) of a tensor whose last axis is dense into `to`; a vector's index runs over the leading axes in C
/// order. Returns the source itself where those vectors already lie side by side.
const void* gather_rows(const Tensor& tensor, std::int64_t first, std::int64_t count, std::vector<std::uint8_t>& to);

}  // namespace tq4::python
