// Shared by the GPU tests: device buffers, seeded random data, the skip when there is no device, calibrations made up for a test.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tq4/gpu.h"
#include "tq4/types.h"

namespace tq4::gpu {

#define TQ4_REQUIRE_DEVICE()                                             \
  if (device_count() == 0) {                                             \
    GTEST_SKIP() << "no CUDA device is visible: GPU test not performed"; \
  }                                                                      \
  static_assert(true, "")

inline void cuda_ok(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}
inline void synchronize() { cuda_ok(cudaDeviceSynchronize()); }

/// A device allocation with the contents of a vector. Fresh memory is filled with 0xa5, so that what a kernel leaves out shows.
template <class T>
class Device {
 public:
  explicit Device(std::size_t count) : count_(count) {
    cuda_ok(cudaMalloc(&data_, bytes() > 0 ? bytes() : 1));
    cuda_ok(cudaMemset(data_, 0xa5, bytes()));
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) { upload(values); }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* get() const { return static_cast<T*>(data_); }
  std::size_t size() const { return count_; }
  void upload(const std::vector<T>& values) {
    cuda_ok(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    synchronize();
  }
  void fill(int byte) { cuda_ok(cudaMemset(data_, byte, bytes())); }
  std::vector<T> host() const {
    synchronize();
    std::vector<T> values(count_);
    cuda_ok(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::size_t count_;
  void* data_ = nullptr;
};

using Random = std::mt19937;

/// Gaussian numbers of `dtype` as bytes, and what they are in fp32.
struct Values {
  DType dtype = DType::F16;
  std::vector<std::uint8_t> bytes;
  std::vector<float> floats;
};
inline Values gaussian(std::size_t count, DType dtype, Random& random, float sigma = 1.0f) {
  std::normal_distribution<float> normal(0.0f, sigma);
  Values v{dtype, std::vector<std::uint8_t>(count * dtype_size(dtype)), std::vector<float>(count)};
  for (float& f : v.floats) f = normal(random);
  from_float(v.floats.data(), count, dtype, v.bytes.data());
  to_float(v.bytes.data(), dtype, count, v.floats.data());
  return v;
}

/// Calibration with matrices near the codec's rotation (a random diagonal stretch before it), centres and, on request, centring before RoPE.
struct CalibrationOptions {
  bool matrices = false, centres = false, rope = false;
};
LayerCalibration made_up_calibration(const CodecSpec& spec, int head_dim, int num_kv_heads, const CalibrationOptions& options,
                                     Random& random);

}  // namespace tq4::gpu
