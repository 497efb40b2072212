// The prefill attention of Hopper GPUs: K and V as fp16 tiles (or K as int8) that wgmma reads as they are. See hopper_flash.cuh.
#pragma once

#include "cuda/prefill_attention/flash.h"

namespace tq4::gpu {

constexpr int kTileKeys = 128;

/// K and V in the workspace: [num_seqs, num_kv_heads, tiles, D / 64 panels, 128 keys, 64 coordinates], panels in the 128-byte swizzle of
/// cuda/wgmma.cuh. Rows past a sequence's end are finite in the tile that holds the end; tiles after it are not written.
struct TiledKeys {
  std::uint8_t* k;
  std::uint8_t* v;
  std::int64_t tiles;  ///< of one head
  std::int8_t* k8;     ///< int8 keys [.., tiles, 128 keys, 128 coordinates], or null
  float* k8_scale;     ///< [num_seqs, num_kv_heads, tiles * 128]
  std::int8_t* q8;     ///< int8 queries, like q
  float* q8_scale;     ///< [total_q, num_q_heads]
};
/// Rows (query, head of the group) without a division.
struct GroupRows {
  unsigned group = 1, inverse = ~0u;  ///< floor(2^32 / group), at most 2^32 - 1
};
struct HopperFlashArgs {
  FlashArgs flash;  ///< k and v are not read
  TiledKeys tiles;
  GroupRows rows;  ///< this and what follows: launch_hopper_flash() sets them
  int section;     ///< heads under way at a time (hopper_work.cuh)
};
/// Null where the kernel serves this call, otherwise what it lacks.
const char* hopper_flash_lacks(const FlashArgs& args, const DeviceInfo& device);
void launch_hopper_flash(const HopperFlashArgs& args, const DeviceInfo& device, cudaStream_t stream);

/// Rows [num_seqs, num_kv_heads, tiles * 128, D] of K and V become tiles in place; `k`, `v`: which of the two.
void launch_tile_rows(const FlashArgs& args, const TiledKeys& tiles, bool k, bool v, cudaStream_t stream);
/// q to q8; keys of k tiles to k8. Rows are turned by a Hadamard matrix, which leaves q . k as it is, and then spread evenly over -127 .. 127.
void launch_quantize_queries(const FlashArgs& args, const TiledKeys& tiles, cudaStream_t stream);
void launch_quantize_keys(const FlashArgs& args, const TiledKeys& tiles, cudaStream_t stream);

}  // namespace tq4::gpu
