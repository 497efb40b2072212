// Each warp streams its own tiles: a ring of stages in shared memory, filled by 1-D bulk copies (one per tile, 16-byte aligned, contiguous)
// that one lane issues and an mbarrier announces. No producer warp and no barrier between warps: the warp that reads a stage refills it.
#pragma once

#include <cstdint>

#include "cuda/decode_attention/fused_plan.cuh"

namespace tq4::gpu::fused {

/// Walks the units of a warp's share, ahead of those it computes on. Page numbers are fetched 32 at a time, one a lane, and the next 32 are on their
/// way while these are used. RowBytes: of an exact token, 0 where there are none.
template <int CodeBytes, int ScaleBytes, int RowBytes>
struct Loader {
  static constexpr int kExactUnit = -(1 << 30);  // added to the number of an exact unit: exact units are below 0

  std::uint32_t walk_at;      // the walk rests in shared memory between segments: registers are for tiles
  int tile, tile_end;         // of the current run: compressed tiles or exact units of a segment
  int batch_end;              // page numbers are there for tiles [tile, batch_end); nothing is left to ask for when there are none
  int ids, ids_next;          // lane l: the page of the tile that is l modulo 32, of this batch and the next
  const std::uint8_t* codes;  // of this head in page 0
  const std::uint8_t* scales;

  __device__ __forceinline__ bool alive() const { return tile < batch_end; }
  __device__ __forceinline__ int fetch(const Params& p, int seq, int first, int lane) const {
    const int mine = first + ((lane - first) & 31);
    return mine < tile_end ? __ldg(p.block_table + (std::int64_t)seq * p.block_table_stride + (mine >> p.tiles_per_page_log2)) : 0;
  }
  __device__ __forceinline__ void prepare_batch(const Params& p, int seq, int lane) {
    batch_end = min(tile_end, tile + 32);
    if (tile + 32 < tile_end) ids_next = fetch(p, seq, tile + 32, lane);
  }
  /// Enters the next run from the walk's position on: exact units or compressed tiles of a pair.
  __device__ __forceinline__ void settle(const Params& p, Walk& walk, int lane) {
#pragma unroll 1
    for (;;) {
      if (walk.pos >= walk.end) {
        batch_end = tile;
        return;
      }
      if (walk.pos == walk.pair.end()) walk.next_pair(p);
      const Tokens tokens = walk.pair.tokens(p);
      int first = walk.pos - walk.pair.begin, end = walk.segment_end() - walk.pair.begin;  // units
      if constexpr (RowBytes > 0) {
        const int exact = tokens.exact_units();
        if (first < exact) {
          tile = kExactUnit + first;
          tile_end = batch_end = kExactUnit + min(end, exact);
          walk.pos = min(walk.segment_end(), walk.pair.begin + exact);
          walk.rest(walk_at, lane);
          return;
        }
        first -= exact, end -= exact;
      }
      tile = tokens.first_tile() + first;
      tile_end = tokens.first_tile() + min(end, tokens.tiles());
      walk.pos = walk.segment_end();
      if (tile < tile_end) break;
    }
    const int T = p.tiles_per_page_log2;
    codes = p.codes + (walk.pair.head << T) * CodeBytes;
    scales = p.scales + (walk.pair.head << T) * ScaleBytes;
    ids = fetch(p, walk.pair.seq, tile, lane);
    prepare_batch(p, walk.pair.seq, lane);
    walk.rest(walk_at, lane);
  }
  __device__ __forceinline__ void start(const Params& p, Walk walk, std::uint32_t rest_at, int lane) {
    walk_at = rest_at;
    tile = tile_end = batch_end = ids = ids_next = 0;
    codes = scales = nullptr;
    settle(p, walk, lane);
  }
  /// Whether the next unit is an exact one.
  __device__ __forceinline__ bool exact() const { return RowBytes > 0 && tile < 0; }
  /// How many tiles load_within() may ask for that hold no tokens which the kernel before this one in the stream may still be writing.
  __device__ __forceinline__ int early(const Params& p) const {
    if (exact()) return 0;
    Walk walk;
    walk.wake(walk_at);
    return min(min((walk.pair.tokens(p).end - p.fresh_tokens) / kTile, tile_end) - tile, batch_end - tile - 1);
  }
  /// Where the next tile lies, a compressed one whose page number is there: its codes and its scales.
  __device__ __forceinline__ void next_tile(const Params& p, const std::uint8_t*& its_codes, const std::uint8_t*& its_scales) const {
    const std::uint64_t page = (std::uint32_t)__shfl_sync(~0u, ids, tile), within = (std::uint32_t)(tile & p.tile_in_page);
    its_codes = codes + page * p.code_stride + within * CodeBytes;
    its_scales = scales + page * p.scale_stride + within * ScaleBytes;
  }
  /// Asks for the next tile into `dst`, to be announced at `bar`; it is not the last of its batch of page numbers.
  __device__ __forceinline__ void load_within(const Params& p, std::uint32_t dst, std::uint32_t bar, std::uint64_t policy) {
    const std::uint8_t *its_codes, *its_scales;
    next_tile(p, its_codes, its_scales);
    bulk_load<CodeBytes, ScaleBytes>(dst, its_codes, its_scales, bar, policy);
    ++tile;
  }
  /// Has the next tile brought to the second-level cache. The kernel before may be writing it: caches of that level see writes.
  __device__ __forceinline__ void prefetch(const Params& p) const {
    const std::uint8_t *its_codes, *its_scales;
    next_tile(p, its_codes, its_scales);
    bulk_prefetch<CodeBytes, ScaleBytes>(its_codes, its_scales);
  }
  /// Asks for the next unit, an exact one: rows of K, then of V.
  __device__ __forceinline__ void load_exact(const Params& p, const Walk& walk, int lane, std::uint32_t dst, std::uint32_t bar,
                                             std::uint64_t policy) {
    const Tokens tokens = walk.pair.tokens(p);
    int row = tile - kExactUnit - tokens.sink_units();
    const bool sink = row < 0;
    if (sink) row += tokens.sink_units();
    row *= kExact;
    const int rows = sink ? p.sinks : p.recent;
    const std::int64_t from = ((std::int64_t)(walk.pair.seq * p.num_kv_heads + walk.pair.head) * rows + row) * RowBytes;
    const std::uint32_t bytes = min(kExact, rows - row) * RowBytes;
    bulk_load_two(dst, reinterpret_cast<const std::uint8_t*>(sink ? p.sink_k : p.recent_k) + from, dst + kExact * RowBytes,
                  reinterpret_cast<const std::uint8_t*>(sink ? p.sink_v : p.recent_v) + from, bytes, bar, policy);
    ++tile;
  }
  /// Asks for the next unit, whichever it is.
  __device__ __forceinline__ void load(const Params& p, int lane, std::uint32_t dst, std::uint32_t bar, std::uint64_t policy) {
    Walk walk;
    if (exact()) {
      walk.wake(walk_at);
      load_exact(p, walk, lane, dst, bar, policy);
      if (tile < tile_end) return;
    } else {
      load_within(p, dst, bar, policy);
      if (tile < batch_end) return;
      walk.wake(walk_at);
      if (tile < tile_end) {
        ids = ids_next;
        prepare_batch(p, walk.pair.seq, lane);
        return;
      }
    }
    settle(p, walk, lane);
  }
};

}  // namespace tq4::gpu::fused
