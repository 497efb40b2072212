// Which rows a block of the Hopper prefill attention takes next. A launch has as many blocks as the GPU has multiprocessors; they draw pieces of
// 128 query rows of one kv head from a counter until none is left. In a sequence the rows that see most keys come first, for a few heads at a time
// (`section`): the last pieces are the short ones of the triangle, and K and V of the heads under way stay in the second-level cache.
#pragma once

#include "cuda/prefill_attention/hopper.h"

namespace tq4::gpu {

struct QueryOfRow {
  int query, head;  ///< of the group
};
__device__ __forceinline__ QueryOfRow query_of(const GroupRows& rows, int row) {
  const auto r = static_cast<unsigned>(row);
  unsigned query = static_cast<unsigned>(static_cast<std::uint64_t>(r) * rows.inverse >> 32), head = r - query * rows.group;
  if (head >= rows.group) ++query, head -= rows.group;  // the quotient was at most one too small
  return {static_cast<int>(query), static_cast<int>(head)};
}
inline GroupRows group_rows(const FlashArgs& a) {
  const auto group = static_cast<unsigned>(a.num_q_heads / a.num_kv_heads);
  return {group, group == 1 ? ~0u : static_cast<unsigned>((std::uint64_t{1} << 32) / group)};
}

/// A piece as it lies in shared memory, from the loading warps to the others.
struct FlashPiece {
  int row0;  ///< of rows (query, head of the group) of the sequence; < 0: there is no further piece
  int sequence, head, q_begin, q_len, kv_len;
};

/// Where a row of the piece's sequence and head is among those of q, out and lse.
__device__ __forceinline__ std::int64_t place_of(const HopperFlashArgs& args, const FlashPiece& piece, int row) {
  const QueryOfRow q = query_of(args.rows, row);
  return static_cast<std::int64_t>(piece.q_begin + q.query) * args.flash.num_q_heads + piece.head * static_cast<int>(args.rows.group) +
         q.head;
}

/// Finds piece n; n must not fall from call to call.
struct PieceWalk {
  int sequence = 0, first = 0;  ///< piece `first` is the first of `sequence`

  __device__ __forceinline__ FlashPiece find(const HopperFlashArgs& args, int rows_each, int n) {
    const FlashArgs& a = args.flash;
    const int section = args.section, group = static_cast<int>(args.rows.group);
    for (; sequence < a.num_seqs; ++sequence) {
      const int q_begin = a.cu_q[sequence], q_len = a.cu_q[sequence + 1] - q_begin;
      const int tiles = (q_len * group + rows_each - 1) / rows_each;
      if (n - first < tiles * a.num_kv_heads) {
        const int i = n - first, head0 = i / (tiles * section) * section, heads = min(section, a.num_kv_heads - head0);
        const int within = i - head0 * tiles, tile = tiles - 1 - within / heads;
        const int kv_len = a.cu_k ? a.cu_k[sequence + 1] - a.cu_k[sequence] : q_len + (a.prefix_lens ? a.prefix_lens[sequence] : 0);
        return {tile * rows_each, sequence, head0 + within % heads, q_begin, q_len, kv_len};
      }
      first += tiles * a.num_kv_heads;
    }
    return {-1, 0, 0, 0, 0, 0};
  }
};

/// Tiles of keys that the rows of a piece see, and the positions of its first and last query.
struct KeyRange {
  int tile_begin, tile_end, first_position, last_position;
};
template <int Rows>
__device__ __forceinline__ KeyRange key_range(const HopperFlashArgs& args, const FlashPiece& piece) {
  const FlashArgs& a = args.flash;
  const int offset = piece.kv_len - piece.q_len, rows = piece.q_len * static_cast<int>(args.rows.group);  // position of query 0
  const int first_position = offset + query_of(args.rows, piece.row0).query,
            last_position = offset + query_of(args.rows, min(piece.row0 + Rows, rows) - 1).query;
  const int kv_end = a.causal ? min(piece.kv_len, last_position + 1) : piece.kv_len;
  const int kv_begin = a.window > 0 ? max(0, first_position - a.window + 1) : 0;
  const int tile_begin = kv_begin / kTileKeys;
  return {tile_begin, max(tile_begin, (kv_end + kTileKeys - 1) / kTileKeys), first_position, last_position};
}

/// Heads of which K and V (fp16, `tiles` tiles a head) take 20 MB, at least one.
inline int section_heads(const FlashArgs& a, std::int64_t tiles) {
  const std::int64_t bytes = tiles * kTileKeys * a.head_dim * 4;
  const std::int64_t heads = std::int64_t{20} * 1024 * 1024 / (bytes > 0 ? bytes : 1);
  return static_cast<int>(heads < 1 ? 1 : heads < a.num_kv_heads ? heads : a.num_kv_heads);
}

}  // namespace tq4::gpu
