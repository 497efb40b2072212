// Makes table entries of fused_launch.h from template arguments.
#pragma once

#include "cuda/check.h"
#include "cuda/decode_attention/fused_kernel.cuh"
#include "cuda/decode_attention/fused_launch.h"

namespace tq4::gpu::fused {

template <class C>
void launch(const Params& params, int blocks, Stream stream) {
  constexpr int kShared = C::kEnd - C::kBase;
  static const cudaError_t ready = cudaFuncSetAttribute(fused_decode_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  check(ready, "fused decode");
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = kShared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, fused_decode_kernel<C>, params), "fused decode");
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
  return {{D, KBits, VBits, Rows, Exact}, C::PartialFloats, launch<C>};
}

}  // namespace tq4::gpu::fused
