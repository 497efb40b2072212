// Sizes of an instantiation of the fused kernel and its map of shared memory, and the small helpers that read and write it.
#pragma once

#include <cuda_bf16.h>

#include "cuda/decode_attention/fused_pipeline.cuh"
#include "cuda/decode_attention/fused_tall.cuh"

namespace tq4::gpu::fused {

/// Sizes and the map of shared memory. Addresses are absolute (dynamic shared memory starts at kBase; the tables need 64 KiB alignment).
template <class Shape_, class Key_, class Value_, bool Exact_ = false>
struct Config {
  static constexpr bool Exact = Exact_;  // with exact fp16 tokens (sinks, recent)
  using S = Shape_;
  using Key = Key_;
  using Value = Value_;
  static constexpr int D = S::D;
  /// Of a thread block. 16 leave 128 registers a thread, 8 leave 255: what is spilled waits behind the stream of tiles.
  static constexpr int Warps = S::Tall || D > 128 ? 8 : 16;
  /// Tiles that a warp takes at once: two where few warps leave the registers for it and need the independent instructions.
  static constexpr int TilesATurn = Warps == 8 ? 2 : 1;
  static constexpr bool ValuesLate =
      Warps < 16;  // a tile's values stay in its stage until they are needed: registers for more rows or dims
  static constexpr int CodeBytes = Key::kBytes + Value::kBytes;
  static constexpr int ScaleBytes = 64 + (Value::kZero ? 32 : 0);
  /// 4 query rows of 128 dims at 4 bits wait for memory, not for instructions. More than 3 tiles a warp asked for, or a shorter loop that asks for them sooner,
  /// make its answers come later (experiments/decode/LOG.md, sixth round).
  static constexpr bool MemoryBound = S::Packed && D == 128 && Key::kTable && Key::kBytes == 8 * D && Value::kBytes == 8 * D;
  /// Tiles of the longest pieces that are fitted to pairs (fit_pieces()): the more rows a pair has, the dearer are its ends and parts.
  static constexpr int Fitted = S::Packed ? 24 * Warps : S::Tall ? 1536 : 512;
  static constexpr int TileBytes = CodeBytes + ScaleBytes, ExactBytes = Exact ? kExact * 4 * D : 0;
  static constexpr int SlotBytes = TileBytes > ExactBytes ? TileBytes : ExactBytes;  // of a stage: a tile or an exact unit
  /// Query rows of all pairs of a round. A round costs its beginning and end: 16 rows a pair have room for the four pairs that a long piece may touch.
  static constexpr int RoundRows = D > 128 ? 16 : S::Rows > 8 ? 64 : 32;
  static constexpr int Pairs = RoundRows / S::Rows;  // pairs of a round
  static_assert(Pairs <= 8);
  static constexpr int States = Warps + Pairs;  // a warp's last state, and one for the warp in which a pair ends
  static constexpr std::uint32_t kBase = 1024;
  static constexpr std::uint32_t kEnd = 228 * 1024;
  /// Rows of a state are padded against bank conflicts; where there is no room for that, their words of 16 bytes change places.
  static constexpr bool Padded = S::Rows * D <= 1024;
  static constexpr int RowStride = D * 4 + (Padded ? 16 : 0);
  static constexpr int StateBytes = S::Rows * RowStride + S::Rows * 8;  // accumulators, then (max, sum) a row
  static constexpr int HalfStride = (D + 63) / 64 * 128;  // bytes of a row of queries or finished outputs (fp16), see half_at()
  static constexpr int PairStateBytes = (Pairs * StateBytes + HalfStride - 1) / HalfStride * HalfStride;
  static constexpr int HighBytes = PairStateBytes + RoundRows * HalfStride;
  static constexpr int SmallBytes = 1024 + 512 + Warps * 64;  // mbarriers, what the warps tell each other, where their walks rest
  // Rings: those of the first WarpsLow warps lie below the tables, the others above.
  static constexpr int Low = kTableAddress - kBase - SmallBytes;
  static constexpr int High = kEnd - 2 * kTableAddress - HighBytes;
  static constexpr int stages() {
    for (int n = MemoryBound ? 3 : 8; n > 1; --n)
      if (Low / (n * SlotBytes) + High / (n * SlotBytes) >= Warps) return n;
    return 1;
  }
  static constexpr int Stages = stages();
  static constexpr int RingBytes = Stages * SlotBytes;
  static constexpr int WarpsLow = Low / RingBytes;
  static_assert(Stages >= 2 && RingBytes >= StateBytes, "no room for a ring, or for a state in it");
  static constexpr std::uint32_t kBarriers = kTableAddress - SmallBytes;  // Warps * Stages mbarriers
  static constexpr std::uint32_t kStateSlot = kBarriers + 1024;  // States words: slot of the state's pair in the round, -1 = no state
  static constexpr std::uint32_t kPairTable =
      kStateSlot + 4 * 24;  // Pairs x (sequence, head, whether it ends in this block, seq_len, begin, units), 32 bytes each
  static constexpr std::uint32_t kRound = kPairTable + 8 * 32;     // Round
  static constexpr std::uint32_t kOpening = kRound + 32;           // the pair of Round::opening
  static constexpr std::uint32_t kWalks = kBarriers + 1024 + 512;  // two a warp
  static constexpr std::uint32_t kPairStates = kEnd - HighBytes;
  static constexpr std::uint32_t kQueries = kPairStates;  // as they came, before there are states
  static_assert(RoundRows * HalfStride <= PairStateBytes);
  static constexpr std::uint32_t kRotated = kPairStates + PairStateBytes;
  static constexpr int PartWords = S::Rows * D + 2 * S::Rows;
  static_assert(kPairStates % HalfStride == 0 && kRotated % HalfStride == 0);
  /// Where dim `dim` of row `row` of the fp16 rows at `base` lies: odd rows have their halves of 128 bytes swapped, so that 4 lanes in each of two rows hit all
  /// banks.
  __device__ static constexpr std::uint32_t half_at(std::uint32_t base, int row, int dim) {
    return base + row * HalfStride + (dim * 2 ^ (row & 1) << 6);
  }
  /// Where in row `row` of a state float `dim` (a multiple of 4) lies. The next four are 16 bytes further, or where bit 4 of the address is the other one.
  __device__ static constexpr std::uint32_t in_row(int row, int dim) {
    if (Padded) return dim * 4;
    return S::Tall ? dim * 4 ^ dim / 32 % 4 << 4 ^ row % 2 << 6 : dim * 4 ^ row / 2 % 4 << 4 ^ dim / 32 % 2 << 6;
  }
  __device__ static constexpr std::uint32_t ring(int warp) {
    return warp < WarpsLow ? kBase + warp * RingBytes : 2 * kTableAddress + (warp - WarpsLow) * RingBytes;
  }
  /// State i: a warp's own lies in its ring (empty by then), those of ended pairs beside it.
  __device__ static std::uint32_t state(int i) { return i < Warps ? ring(i) : kPairStates + (i - Warps) * StateBytes; }
};

__device__ __forceinline__ std::uint32_t bf16x2_to_half2(std::uint32_t x) {
  const float lo = __uint_as_float(x << 16), hi = __uint_as_float(x & 0xffff0000u);
  return pack_half2(fminf(fmaxf(lo, -65504.f), 65504.f), fminf(fmaxf(hi, -65504.f), 65504.f));
}
__device__ __forceinline__ float half_bits_to_float(std::uint32_t bits) { return __half2float(__ushort_as_half((std::uint16_t)bits)); }

/// N consecutive floats from shared memory, as wide as N allows.
template <int N>
__device__ __forceinline__ void load_floats(std::uint32_t at, float (&v)[N]) {
  std::uint32_t w[N];
  load_bytes<N * 4>(at, w);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = __uint_as_float(w[i]);
}

}  // namespace tq4::gpu::fused
