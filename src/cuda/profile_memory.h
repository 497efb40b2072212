// A device allocation that frees itself: what the profiler's parts keep their tensors in.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/check.h"

namespace tq4::gpu {

class Buffer {
 public:
  explicit Buffer(std::size_t bytes) { check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 16)), "profile"); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  static std::unique_ptr<Buffer> of(const std::vector<T>& values) {
    auto b = std::make_unique<Buffer>(values.size() * sizeof(T));
    if (!values.empty()) check(cudaMemcpy(b->data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "profile");
    return b;
  }

 private:
  void* data_ = nullptr;
};
using BufferPtr = std::unique_ptr<Buffer>;

/// The first `count` elements of device memory.
template <class T>
std::vector<T> to_host(const void* from, std::size_t count) {
  std::vector<T> values(count);
  if (count > 0) check(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost), "profile");
  return values;
}

}  // namespace tq4::gpu
