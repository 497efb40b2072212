// Makes table entries of fused_launch.h from template arguments.
#pragma once

#include <array>
#include <atomic>

#include "cuda/check.h"
#include "cuda/decode_attention/fused_kernel.cuh"
#include "cuda/decode_attention/fused_launch.h"

namespace tq4::gpu::fused {

template <class C>
LaunchShape launch_shape(int blocks, int cluster, Stream stream) {
  static const cudaError_t ready = [] {
    cudaError_t e = cudaSuccess;
    if constexpr (C::Cluster) e = cudaFuncSetAttribute(fused_decode_kernel<C>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return e != cudaSuccess ? e
                            : cudaFuncSetAttribute(fused_decode_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kEnd - C::kBase);
  }();
  check(ready, "fused decode");
  return {dim3(static_cast<unsigned>(blocks)), kWarps * 32, C::kEnd - C::kBase, static_cast<cudaStream_t>(stream),
          static_cast<unsigned>(cluster)};
}

template <class C>
void launch(const Params& params, int blocks, int cluster, Stream stream) {
  launch_kernel_early("fused decode", launch_shape<C>(blocks, cluster, stream), fused_decode_kernel<C>, params);
}

/// How many clusters of `cluster` blocks the current device runs at once. Asked once a device and size: the answer costs microseconds.
template <class C>
int clusters_at_once(int cluster) {
  constexpr int kDevices = 64;
  static std::array<std::atomic<int>, kDevices*(kMaxCluster + 1)> known{};  // the answer + 1, 0 = not asked yet
  int device = 0;
  check(cudaGetDevice(&device), "fused decode");
  if (device >= kDevices || cluster > kMaxCluster) return 0;
  std::atomic<int>& n = known[static_cast<std::size_t>(device * (kMaxCluster + 1) + cluster)];
  if (n == 0) n = 1 + gpu::clusters_at_once(launch_shape<C>(cluster, cluster, nullptr), fused_decode_kernel<C>);
  return n - 1;
}

template <int D, int KBits>
struct KeyFor {
  using type = TableKey<D, KBits>;
};
template <int D>
struct KeyFor<D, 8> {
  using type = Fp8Key<D>;
};

/// Clustered: with the variant for few pairs beside it.
template <int D, int KBits, int VBits, int Rows, bool Exact = false, bool Clustered = false>
constexpr Instance instance() {
  using S = Shape<D, Rows == 16 ? 2 : 1, Rows == 4>;
  using Key = typename KeyFor<D, KBits>::type;
  using C = Config<S, Key, TableValue<D, VBits>, Exact>;
  Instance made{{D, KBits, VBits, Rows, Exact}, C::PartialFloats, launch<C>, nullptr, nullptr};
  if constexpr (Clustered) {
    using Together = Config<S, Key, TableValue<D, VBits>, Exact, true>;
    made.launch_clusters = launch<Together>;
    made.clusters_at_once = clusters_at_once<Together>;
  }
  return made;
}

}  // namespace tq4::gpu::fused
