// The instantiations of the slots kernel and how the host finds one; which exist is decided in slots_d*.cu.
#pragma once

#include "cuda/decode_attention/slots_params.h"
#include "tq4/gpu.h"

namespace tq4::gpu::fused {

/// What decides on the instantiation.
struct SlotKey {
  int head_dim;
  int k_bits;   ///< 3, 4 = table with norm correction, 8 = FP8 E4M3
  int v_bits;   ///< uniform, 3 or 4
  int rows;     ///< query rows a kv head there is room for: 4 or 8
  bool spread;  ///< tokens are a multiple of 4 bytes apart (slots_codes.cuh); without it 3 bits and odd strides
  int warps;    ///< of a block, and at most so many kv heads
};
struct SlotInstance {
  SlotKey key;
  std::uint32_t low, high;  ///< shared-memory addresses from which stages lie, up to the tables and up to the end
  void (*launch)(const SlotParams& params, const DeviceInfo& device, Stream stream);
};

/// The tables of the instantiation files, ended by an entry with head_dim 0: the first that fits is taken.
extern const SlotInstance kSlots64[];
extern const SlotInstance kSlots128[];
extern const SlotInstance kSlots256[];

constexpr std::uint32_t kSlotTables = 0x10000, kSlotEnd = 228 * 1024;  ///< where the tables begin, and shared memory ends
constexpr int kSlotMaxStages = 64;
/// Of a group's stages: the feed lists where its first 64 units lie before it begins, and the next 32 when a warp asks for that of turn 31.
constexpr int kSlotMaxTurns = 31;

}  // namespace tq4::gpu::fused
