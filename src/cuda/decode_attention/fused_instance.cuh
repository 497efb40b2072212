// Makes table entries of fused_launch.h from template arguments.
#pragma once

#include "cuda/decode_attention/fused_kernel.cuh"
#include "cuda/decode_attention/fused_launch.h"

namespace tq4::gpu::fused {

template <class C>
void launch(const Params& params, int blocks, Stream stream) {
  constexpr int kShared = C::kEnd - C::kBase;
  // Of the current device, so at every call.
  check(cudaFuncSetAttribute(fused_decode_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "fused decode");
  launch_kernel_early("fused decode",
                      {dim3(static_cast<unsigned>(blocks)), C::Warps * 32, kShared, static_cast<cudaStream_t>(stream), true},
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
  using C = Config<Shape<D, Rows == 16 ? 2 : 1, Rows == 4>, typename KeyFor<D, KBits>::type, TableValue<D, VBits>, Exact>;
  return {{D, KBits, VBits, Rows, Exact}, C::PartWords, launch<C>};
}

}  // namespace tq4::gpu::fused
