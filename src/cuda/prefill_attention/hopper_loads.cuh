// The shared memory of a block of the Hopper prefill attention, and what its first warpgroup does: loading. While a piece is computed, three warps
// fetch the next one's queries (16-byte copies, swizzled as wgmma reads them; bf16 becomes fp16) and one thread keeps the stages of keys and
// values full, one bulk copy a tile.
#pragma once

#include <cuda_fp16.h>

#include "cuda/prefill_attention/hopper_work.cuh"
#include "cuda/prefill_attention/row_end.cuh"
#include "cuda/wgmma.cuh"

namespace tq4::gpu {

template <int HD, bool Int8>
struct HopperTile {
  static constexpr int kGroups = 2, kRows = 64 * kGroups, kThreads = 128 * (1 + kGroups), kStages = 2, kPieces = 2;
  static constexpr int kQueryBytes = 64 * HD * (Int8 ? 1 : 2);  ///< of a warpgroup
  static constexpr int kKeyBytes = kTileKeys * HD * (Int8 ? 1 : 2), kValueBytes = kTileKeys * HD * 2;
  static constexpr int kScaleBytes = Int8 ? kTileKeys * 4 : 0;
  static constexpr int kQueries = 64 * HD * 2;                ///< of a warpgroup with room for the output, which leaves by way of them
  static constexpr int kKeys = kPieces * kGroups * kQueries;  ///< offset
  static constexpr int kValues = kKeys + kStages * kKeyBytes;
  static constexpr int kScales = kValues + kStages * kValueBytes;
  static constexpr int kBarriers = kScales + kStages * kScaleBytes;
  static constexpr int kPiece = kBarriers + 8 * (4 * kStages + 2 * kPieces);
  static constexpr int kBytes = kPiece + kPieces * 32 + 16 + 1024;  ///< 1024 to align by
};

/// Addresses in it; full and empty barriers of each stage and piece.
template <int HD, bool Int8>
struct HopperMemory {
  using T = HopperTile<HD, Int8>;
  std::uint32_t base;
  __device__ __forceinline__ std::uint32_t key_full(int stage) const { return base + T::kBarriers + stage * 8; }
  __device__ __forceinline__ std::uint32_t value_full(int stage) const { return base + T::kBarriers + (T::kStages + stage) * 8; }
  __device__ __forceinline__ std::uint32_t key_empty(int stage) const { return base + T::kBarriers + (2 * T::kStages + stage) * 8; }
  __device__ __forceinline__ std::uint32_t value_empty(int stage) const { return base + T::kBarriers + (3 * T::kStages + stage) * 8; }
  __device__ __forceinline__ std::uint32_t piece_full(int slot) const { return base + T::kBarriers + (4 * T::kStages + slot) * 8; }
  __device__ __forceinline__ std::uint32_t piece_empty(int slot) const {
    return base + T::kBarriers + (4 * T::kStages + T::kPieces + slot) * 8;
  }
  __device__ __forceinline__ std::uint32_t queries(int slot) const { return base + slot * (T::kGroups * T::kQueries); }
  __device__ __forceinline__ std::uint32_t piece(int slot) const { return base + T::kPiece + slot * 32; }
  __device__ __forceinline__ std::uint32_t next() const { return base + T::kPiece + T::kPieces * 32; }  ///< number of the piece after
};

/// The next piece's queries to shared memory, bf16 as fp16, and the piece itself; by 96 threads, announced at `full`.
template <int HD, bool Int8>
__device__ __forceinline__ void load_queries(const HopperFlashArgs& args, const FlashPiece& piece, std::uint32_t to,
                                             std::uint32_t piece_memory, std::uint32_t empty, int parity, std::uint32_t full) {
  using T = HopperTile<HD, Int8>;
  constexpr int kChunks = T::kQueryBytes / 64 / 16;  // of a row
  const FlashArgs& a = args.flash;
  const int first = static_cast<int>(threadIdx.x) - 32, last_row = piece.q_len * static_cast<int>(args.rows.group) - 1;
  const auto place = [&](int i) {
    const int r = i / kChunks, c = i % kChunks;
    return to + (r >> 6) * T::kQueries + (c >> 3) * 8192 + (r & 63) * 128 + ((c & 7) ^ (r & 7)) * 16;
  };
  mbarrier_wait(empty, parity);
  if (first == 0) {
    sts128_words<0>(piece_memory, piece.row0, piece.head, piece.q_begin, piece.q_len);
    sts32(piece_memory + 16, piece.kv_len);
  }
  if (piece.row0 >= 0) {
    const auto* q = Int8 ? reinterpret_cast<const std::uint8_t*>(args.tiles.q8) : static_cast<const std::uint8_t*>(a.q);
#pragma unroll 1
    for (int i = first; i < T::kRows * kChunks; i += 96) {
      const std::int64_t at = place_of(args, piece, min(piece.row0 + i / kChunks, last_row));
      copy_async_16(place(i), q + at * (kChunks * 16) + i % kChunks * 16);
    }
    copy_async_commit();
    copy_async_wait<0>();
    if (!Int8 && a.dtype == static_cast<int>(DType::BF16)) {
#pragma unroll 1
      for (int i = first; i < T::kRows * kChunks; i += 96) {
        std::uint32_t w[4];
        lds128(place(i), w);
#pragma unroll
        for (std::uint32_t& v : w) v = bf16x2_to_half2(v);
        sts128_words<0>(place(i), static_cast<int>(w[0]), static_cast<int>(w[1]), static_cast<int>(w[2]), static_cast<int>(w[3]));
      }
    }
  }
  fence_bulk_copies();
  mbarrier_arrive(full);
}

/// The first warpgroup, until no piece is left; the end is announced as a piece, too.
template <int HD, bool Int8>
__device__ __forceinline__ void load_pieces(const HopperFlashArgs& args, const HopperMemory<HD, Int8>& m) {
  using T = HopperTile<HD, Int8>;
  const FlashArgs& a = args.flash;
  PieceWalk walk;
  int n = static_cast<int>(blockIdx.x), slot = 0, slot_parity = 1, stage = 0, parity = 1;  // the first round finds all empty
  while (true) {
    const FlashPiece piece = walk.find(args, T::kRows, n);
    if (threadIdx.x >= 32) {
      load_queries<HD, Int8>(args, piece, m.queries(slot), m.piece(slot), m.piece_empty(slot), slot_parity, m.piece_full(slot));
    } else if (threadIdx.x == 0 && piece.row0 >= 0) {
      const unsigned next = gridDim.x + atomicAdd(a.next_work, 1u);  // known by the time it is needed
      const KeyRange keys = key_range<T::kRows>(args, piece);
      const std::int64_t first = (static_cast<std::int64_t>(piece.sequence) * a.num_kv_heads + piece.head) * args.tiles.tiles;
      for (int tile = keys.tile_end - 1; tile >= keys.tile_begin; --tile) {
        const std::int64_t at = first + tile;
        mbarrier_wait(m.key_empty(stage), parity);
        mbarrier_arrive_expect(m.key_full(stage), T::kKeyBytes + T::kScaleBytes);
        if constexpr (Int8) {
          bulk_copy(m.base + T::kKeys + stage * T::kKeyBytes, args.tiles.k8 + at * T::kKeyBytes, T::kKeyBytes, m.key_full(stage));
          bulk_copy(m.base + T::kScales + stage * T::kScaleBytes, args.tiles.k8_scale + at * kTileKeys, T::kScaleBytes, m.key_full(stage));
        } else {
          bulk_copy(m.base + T::kKeys + stage * T::kKeyBytes, args.tiles.k + at * T::kKeyBytes, T::kKeyBytes, m.key_full(stage));
        }
        mbarrier_wait(m.value_empty(stage), parity);
        mbarrier_arrive_expect(m.value_full(stage), T::kValueBytes);
        bulk_copy(m.base + T::kValues + stage * T::kValueBytes, args.tiles.v + at * T::kValueBytes, T::kValueBytes, m.value_full(stage));
        if (++stage == T::kStages) stage = 0, parity ^= 1;
      }
      sts32(m.next(), next);
    }
    if (piece.row0 < 0) break;
    __syncwarp();
    named_barrier_sync(5, 128);
    n = static_cast<int>(lds32(m.next()));
    named_barrier_sync(5, 128);
    if (++slot == T::kPieces) slot = 0, slot_parity ^= 1;
  }
}

}  // namespace tq4::gpu
