// How kernels are launched and how they reach their dynamic shared memory: the two things of a .cu file, beside ptx.cuh, that are no plain C++.
// With them here a build for the host (tests/emulator) compiles the same .cu files with another pair of headers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/check.h"
#include "tq4/gpu.h"

namespace tq4::gpu {

struct LaunchShape {
  dim3 blocks;
  unsigned threads;
  std::size_t shared_bytes;  ///< dynamic shared memory of a block
  cudaStream_t stream;
  bool waits_for_lower_blocks = false;  ///< documents it, and the emulator takes blocks in that order; GPUs begin them so anyway
};

/// Launches and reports errors as `what`.
template <class... Params, class... Args>
void launch_kernel(const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, shape.stream>>>(args...);
  check_launch(what);
}

/// Likewise with programmatic dependent launch: the kernel begins before the one ahead of it in the stream has ended (ptx.cuh has the other half).
template <class... Params, class... Args>
void launch_kernel_early(const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args...), what);
}

/// Whether this build's kernels wait on this device for those ahead of them (ptx.cuh), as early launch asks: they do where their code was made for this very
/// architecture; PTX of an older one does not.
inline bool launches_early(const DeviceInfo& device) {
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (device.compute_major >= 9 && architecture == 100 * device.compute_major + 10 * device.compute_minor) return true;
  }
  return false;
}
/// The one or the other.
template <class... Params, class... Args>
void launch_kernel_early_if(bool able, const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  able ? launch_kernel_early(what, shape, kernel, args...) : launch_kernel(what, shape, kernel, args...);
}

}  // namespace tq4::gpu

/// Declares the block's dynamic shared memory as `name`, an array of `type` aligned to 16 bytes.
#define TQ4_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
