// The instantiations of the fused kernel and how the host finds one. Which exist is decided in the fused_d*.cu files: what people use, no more,
// so that a clean build stays short; decode_path() tells users when a call takes the general path instead.
#pragma once

#include <cstddef>

#include "cuda/decode_attention/fused_params.h"
#include "tq4/gpu.h"

namespace tq4::gpu::fused {

/// What decides on the instantiation. Bits: 2, 3, 4 = table, 8 = FP8 E4M3 (keys only).
struct InstanceKey {
  int head_dim, k_bits, v_bits;
  int rows;    ///< query rows a kv head there is room for: 4, 8 or 16
  bool exact;  ///< with sinks and an exact window
  bool operator==(const InstanceKey&) const = default;
};
struct Instance {
  InstanceKey key;
  std::size_t part_words;                                                         ///< of a part in the workspace; one a thread block
  void (*launch)(const Params& params, const DeviceInfo& device, Stream stream);  ///< a thread block a multiprocessor
};

/// The tables of the instantiation files, ended by an entry with head_dim 0.
extern const Instance kInstances64[];
extern const Instance kInstances96[];
extern const Instance kInstances128[];
extern const Instance kInstances128Exact[];
extern const Instance kInstances256[];

}  // namespace tq4::gpu::fused
