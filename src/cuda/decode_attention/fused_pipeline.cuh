// Each warp streams its own tiles: a ring of stages in shared memory, filled by 1-D bulk copies (one per tile, 16-byte aligned, contiguous)
// that one lane issues and an mbarrier announces. No producer warp and no barrier between warps: the warp that reads a stage refills it.
#pragma once

#include <cstdint>

#include "cuda/decode_attention/fused_plan.cuh"

namespace tq4::gpu::fused {

/// The compressed tiles of one pair in a warp's share.
struct Segment {
  int tile, tile_end, tokens_end;  // tokens_end: of the pair's compressed tokens
  /// The first one from the walk's position on that has tiles; leaves the walk at its end. False: there is none.
  __device__ __forceinline__ bool settle(const Params& p, Walk& walk) {
    tile = tile_end = tokens_end = 0;
#pragma unroll 1
    while (walk.pos < walk.end) {
      const Tokens tokens = walk.pair.tokens(p);
      const int shift = tokens.first_tile() - tokens.exact_tiles() - walk.pair.begin;  // unit + shift = tile
      tile = max(walk.pos + shift, tokens.first_tile());
      tile_end = min(walk.segment_end() + shift, tokens.first_tile() + tokens.tiles());
      tokens_end = tokens.end;
      walk.pos = walk.segment_end();
      if (tile < tile_end) return true;
      if (walk.pos < walk.end) walk.next_pair(p);
    }
    return false;
  }
};

/// Walks the compressed tiles of a warp's share, ahead of the tiles it computes on. Page numbers are fetched 32 at a time, one a lane, and the
/// next 32 are on their way while these are used.
template <int CodeBytes, int ScaleBytes>
struct Loader {
  std::uint32_t walk_at;  // the walk rests in shared memory between segments: registers are for tiles
  int tile, tile_end;     // of the current segment
  int index, batch;       // of `tile` within the current batch of page numbers, and how many there are
  int ids, ids_next;
  const std::uint8_t* codes;  // of this head in page 0
  const std::uint8_t* scales;
  bool alive;

  __device__ __forceinline__ int fetch(const Params& p, int seq, int first, int lane) const {
    const int mine = first + lane;
    return mine < tile_end ? __ldg(p.block_table + (std::int64_t)seq * p.block_table_stride + (mine >> p.tiles_per_page_log2)) : 0;
  }
  __device__ __forceinline__ void prepare_batch(const Params& p, int seq, int lane) {
    index = 0;
    batch = min(tile_end - tile, 32);
    if (tile + 32 < tile_end) ids_next = fetch(p, seq, tile + 32, lane);
  }
  /// Enters the segment [tile, tile_end) of kv head `head` of sequence `seq`. `ids` is the caller's: fetch(p, seq, tile, lane).
  __device__ __forceinline__ void enter(const Params& p, int seq, int head, int lane) {
    codes = p.codes + (head << p.tiles_per_page_log2) * CodeBytes;
    scales = p.scales + (head << p.tiles_per_page_log2) * ScaleBytes;
    prepare_batch(p, seq, lane);
  }
  /// Asks for the next tile into `dst`, to be announced at `bar`.
  __device__ __forceinline__ void load(const Params& p, int lane, std::uint32_t dst, std::uint32_t bar) {
    const std::uint32_t page = __shfl_sync(~0u, ids, index);
    const int within = tile & ((1 << p.tiles_per_page_log2) - 1);
    bulk_load<CodeBytes, ScaleBytes>(dst, codes + (std::uint64_t)page * p.code_stride + within * CodeBytes,
                                     scales + (std::uint64_t)page * p.scale_stride + within * ScaleBytes, bar);
    ++tile;
    if (++index == batch) {
      Walk walk;
      walk.wake(walk_at);
      if (tile < tile_end) {
        ids = ids_next;
        prepare_batch(p, walk.pair.seq, lane);
      } else {
        if (walk.pos < walk.end) walk.next_pair(p);
        Segment next;
        alive = next.settle(p, walk);
        if (alive) {
          tile = next.tile, tile_end = next.tile_end;
          ids = fetch(p, walk.pair.seq, tile, lane);
          enter(p, walk.pair.seq, walk.pair.head, lane);
          walk.rest(walk_at, lane);
        }
      }
    }
  }
};

}  // namespace tq4::gpu::fused
