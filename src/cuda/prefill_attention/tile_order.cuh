// Where rows of K and V lie in the tiles that the Hopper prefill attention reads (TiledKeys of hopper.h), for the kernels that write them.
#pragma once

#include <cstdint>

#include "cuda/prefill_attention/hopper.h"

namespace tq4::gpu {

/// Element of row i of a head of `dim` coordinates: the beginning of its first 64 of them.
__device__ __forceinline__ std::int64_t tile_row(unsigned i, int dim) {
  return static_cast<std::int64_t>(i / kTileKeys) * kTileKeys * dim + i % kTileKeys * 64;
}
/// Element of coordinates 8 c .. 8 c + 7 of the row that tile_row() puts at `row` (behind a head's beginning, a multiple of a tile).
__device__ __forceinline__ std::int64_t tile_chunk(std::int64_t row, int c) {
  return row + (c >> 3) * (kTileKeys * 64) + ((c & 7) ^ static_cast<int>(row >> 6 & 7)) * 8;
}

}  // namespace tq4::gpu
