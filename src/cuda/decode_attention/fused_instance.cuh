// Makes table entries of fused_launch.h from template arguments.
#pragma once

#include "cuda/decode_attention/fused_kernel.cuh"
#include "cuda/decode_attention/fused_launch.h"

namespace tq4::gpu::fused {

template <class C>
void launch(const Params& params, const DeviceInfo& device, Stream stream) {
  constexpr int kShared = C::kEnd - C::kBase;
  allow_shared(fused_decode_kernel<C>, kShared, device.shared_bytes_per_block, "fused decode");  // of the current device, so at every call
  launch_kernel_early("fused decode",
                      {dim3(static_cast<unsigned>(device.sm_count)), C::Warps * 32, kShared, static_cast<cudaStream_t>(stream), true},
                      fused_decode_kernel<C>, params);
}

template <int D, int KBits>
struct KeyFor {
  using type = TableKey<D, KBits>;
};
template <int D>
struct KeyFor<D, 8> {
  using type = Fp8Key<D>;
};

template <int D, int KBits, int VBits, int Rows, bool Exact = false>
constexpr Instance instance() {
  using C = Config<Shape<D, Rows == 16 ? 2 : 1, Rows == 4, Rows == 16>, typename KeyFor<D, KBits>::type, TableValue<D, VBits>, Exact>;
  return {{D, KBits, VBits, Rows, Exact}, C::PartWords, launch<C>};
}

}  // namespace tq4::gpu::fused
