// Makes table entries of slots_launch.h from template arguments.
#pragma once

#include <type_traits>

#include "cuda/decode_attention/slots_kernel.cuh"
#include "cuda/decode_attention/slots_launch.h"

namespace tq4::gpu::fused {

template <class C>
void launch_slots(const SlotParams& params, const DeviceInfo& device, Stream stream) {
  // Of the current device, so at every call.
  allow_shared(slot_decode_kernel<C>, kSlotEnd - kSharedBase, device.shared_bytes_per_block, "decode (slots)");
  launch_kernel_early(
      "decode (slots)",
      {dim3(static_cast<unsigned>(device.sm_count)), C::Warps * 32, kSlotEnd - kSharedBase, static_cast<cudaStream_t>(stream), true},
      slot_decode_kernel<C>, params);
}

/// 16 warps leave 128 registers a thread: enough for 4 rows of 128 dims.
template <int D, int KBits, int VBits, int Rows, bool Spread, int Warps = 16>
constexpr SlotInstance slots() {
  using Key = std::conditional_t<KBits == 8, SlotFp8Key<D>, SlotTableKey<D, KBits == 8 ? 4 : KBits, Spread && KBits == 4, Spread>>;
  using Value = std::conditional_t<VBits == 4, SlotNibbleValue<D, Spread>, SlotTripleValue<D, Spread>>;
  using C = SlotConfig<Shape<D, 1, Rows == 4>, Key, Value, Warps>;
  return {{D, KBits, VBits, Rows, Spread, Warps}, C::kLow, C::kHigh, launch_slots<C>};
}

}  // namespace tq4::gpu::fused
