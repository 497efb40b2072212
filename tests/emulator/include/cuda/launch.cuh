// Stands in for src/cuda/launch.cuh in builds for the emulator.
#pragma once

#include <cuda_runtime.h>

#include <tuple>

#include "cuda/check.h"
#include "tq4/gpu.h"

namespace tq4::gpu {

struct LaunchShape {
  dim3 blocks;
  unsigned threads;
  std::size_t shared_bytes;
  cudaStream_t stream;
  bool waits_for_lower_blocks = false;
};

template <class... Params, class... Args>
void launch_kernel(const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  emulator::submit([=, values = std::tuple<std::remove_const_t<Params>...>(args...)] {
    emulator::emulate(
        what, {shape.blocks.x, shape.blocks.y, shape.blocks.z}, shape.threads, shape.shared_bytes, [&] { std::apply(kernel, values); },
        shape.waits_for_lower_blocks);
  });
}
template <class... Params, class... Args>
void launch_kernel_early(const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  launch_kernel(what, shape, kernel, args...);
}

inline bool launches_early(const DeviceInfo&) { return true; }
template <class... Params, class... Args>
void launch_kernel_early_if(bool able, const char* what, const LaunchShape& shape, void (*kernel)(Params...), const Args&... args) {
  able ? launch_kernel_early(what, shape, kernel, args...) : launch_kernel(what, shape, kernel, args...);
}

}  // namespace tq4::gpu

#define TQ4_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::tq4::emulator::shared_range(::tq4::emulator::kSharedBase, 0, 16))
