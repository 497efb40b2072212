// CUDA errors as tq4::Error. A launch is followed by check_launch(), which also clears the error so that the next call starts clean.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "tq4/error.h"

namespace tq4::gpu {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const bool absent = status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorInvalidDevice;
  throw Error(absent ? ErrorCode::NoDevice : ErrorCode::Runtime, std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status),
              what);
}
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

[[noreturn]] inline void refuse(const std::string& message, const char* where) { throw Error(ErrorCode::Unsupported, message, where); }
inline void require(bool ok, const char* message, const char* where) {
  if (!ok) throw Error(ErrorCode::Usage, message, where);
}

/// Raises a kernel's dynamic shared memory limit; throws Unsupported when the device has less.
template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes, std::size_t device_limit, const char* where) {
  if (bytes > device_limit)
    refuse("needs " + std::to_string(bytes) + " bytes of shared memory a block, this GPU has " + std::to_string(device_limit), where);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        where);
}

}  // namespace tq4::gpu
