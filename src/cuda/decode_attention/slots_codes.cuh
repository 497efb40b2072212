// The dequantisers of the slots kernel: from the bytes of a token's slot, aligned to 2 bytes only, to the half2 operands of the tensor cores. Fragments
// are those of fused_dequant.cuh (K: lane (g, t) holds piece t of tokens g and g + 8; V: pairs of dims by (token, which of the pair)); what differs
// is which dims a piece has, so that rows a multiple of 4 bytes apart are read word by word without bank conflicts:
//
//   Spread  piece t of a key row is its words t, t + 4, ... (8 codes of 4 bits each); piece g of a value row its words g, g + 8, ... Where the codes begin
//           in the middle of a word (`odd`), word 0 takes its lower half from the word behind the last: the row, turned by 4 dims.
//   Runs    pieces are contiguous, read as unaligned runs: for rows that differ in alignment from token to token, and for 3 bits.
//
// Values of 4 bits are uniform: integers become fp16 by their bits alone (1024 + index), two 4 codes apart at a time, without a table.
#pragma once

#include "cuda/decode_attention/fused_tile.cuh"

namespace tq4::gpu::fused {

/// Bytes at an address that is a multiple of 2.
template <int Bytes>
__device__ __forceinline__ void load_run(std::uint32_t at, std::uint32_t* v) {
  constexpr int kAligned = (Bytes + 5) / 4;
  std::uint32_t w[kAligned + 1];
#pragma unroll
  for (int i = 0; i < kAligned; ++i) w[i] = lds32((at & ~3u) + 4 * i);
  w[kAligned] = 0;
#pragma unroll
  for (int i = 0; i < (Bytes + 3) / 4; ++i) v[i] = __funnelshift_r(w[i], w[i + 1], (at & 2) * 8);
}
/// N words of a row of Words, every Step-th from `first` on; the row begins at `at`, `odd` or not. Returns the word behind the last: where the row is
/// odd its upper half, else its lower half follows the row.
template <int Words, int N, int Step>
__device__ __forceinline__ std::uint32_t load_spread(std::uint32_t at, int first, bool odd, std::uint32_t* v) {
  const std::uint32_t row = at - 2 * odd, tail = lds32(row + 4 * Words);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = lds32(row + 4 * first + 4 * Step * i);
  v[0] = __byte_perm(v[0], tail, odd && first == 0 ? 0x3254 : 0x3210);
  return tail;
}

// Keys. load: of the rows that begin at row[0] and row[1], tokens g and g + 8, with the scales behind them. pair: as in fused_dequant.cuh. quad_dim: where the four dims of pairs 2i and
// 2i + 1 of piece t begin.

template <int D, int Bits, bool Spread>
struct SlotTableKey {
  static_assert(!Spread || Bits == 4);
  static constexpr int kEntries = 1 << 2 * Bits;
  static constexpr bool kNormCorrected = true;
  static constexpr int kBytes = D * Bits / 8, kScaleBytes = 2;
  static constexpr int kPiece = D / 4 * Bits / 8;
  static constexpr int kWords = (kPiece + 3) / 4;
  struct Raw {
    std::uint32_t w[2][kWords];
  };
  __device__ static void load(Raw& r, const std::uint32_t (&row)[2], int t, bool odd, float (&scale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t bits;
      if constexpr (Spread) {
        bits = load_spread<D / 8, D / 32, 4>(row[h], t, odd, r.w[h]) >> 16 * odd;
      } else {
        load_run<kPiece>(row[h] + t * kPiece, r.w[h]);
        bits = lds16(row[h] + kBytes);
      }
      scale[h] = __half2float(__ushort_as_half((std::uint16_t)bits));
    }
  }
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    return pair_value<Bits, 0, kWords>(r.w[h], i, lane_base);
  }
  __device__ static int quad_dim(int t, int i, bool odd) {
    return Spread ? (8 * (t + i / 2 * 4) + i % 2 * 4 - 4 * odd) & (D - 1) : t * (D / 4) + 4 * i;
  }
};

template <int D>
struct SlotFp8Key {
  static constexpr int kEntries = 0;
  static constexpr bool kNormCorrected = false;
  static constexpr int kBytes = D, kScaleBytes = 0;
  struct Raw {
    std::uint32_t w[2][D / 16];
  };
  __device__ static void load(Raw& r, const std::uint32_t (&row)[2], int t, bool, float (&scale)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < D / 16; ++i) r.w[h][i] = lds32(row[h] + 4 * t + 16 * i);
      scale[h] = 1.f;
    }
  }
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t) {
    return e4m3x2_to_half2((std::uint16_t)(r.w[h][i / 2] >> i % 2 * 16));
  }
  __device__ static int quad_dim(int t, int i, bool) { return 4 * (t + 4 * i); }
};

// Values, uniform: scale * index + zero, units being index - kLevel. load: piece g of the rows at row[half][odd token]. chunk_dim: where the four dims
// of chunk i of piece g begin, chunk_pair and chunk_second: which pair of the piece, and which of its two dims, gives dim j of the chunk.

template <int D, bool Spread>
struct SlotNibbleValue {
  static constexpr int kEntries = 0;
  static constexpr float kLevel = 8.f;
  static constexpr int kBytes = D / 2;
  static constexpr int kWords = D / 64;
  struct Raw {
    std::uint32_t w[2][2][kWords];
  };
  __device__ static void load(Raw& r, const std::uint32_t (&row)[2][2], int g, bool odd) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int o = 0; o < 2; ++o) {
        if constexpr (Spread) {
          load_spread<D / 8, kWords, 8>(row[h][o], g, odd, r.w[h][o]);
        } else {
          load_run<4 * kWords>(row[h][o] + g * 4 * kWords, r.w[h][o]);
        }
      }
  }
  __device__ static std::uint32_t pair(const Raw& r, int h, int o, int i, std::uint32_t) {
    const std::uint32_t two = r.w[h][o][i / 4] >> (i % 4 / 2 * 8);  // codes i % 4 and i % 4 + 4 of a word, in either half
    return i % 2 == 0 ? fma_half2((two & 0x000f000fu) | 0x64006400u, 0x3c003c00u, 0xe408e408u)   // 1024 + n, - 1032
                      : fma_half2((two & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd480d480u);  // (1024 + 16 n) / 16 - 72
  }
  __device__ static int chunk_dim(int g, int i, bool odd) {
    return Spread ? (8 * (g + i / 2 * 8) + i % 2 * 4 - 4 * odd) & (D - 1) : g * (D / 8) + 4 * i;
  }
  __device__ static constexpr int chunk_pair(int i, int j) { return i / 2 * 4 + j; }
  __device__ static constexpr int chunk_second(int i, int) { return i % 2; }
};

template <int D, int Bits>
struct SlotTableValue {
  static constexpr int kEntries = 1 << 2 * Bits;
  static constexpr float kLevel = .5f * ((1 << Bits) - 1);
  static constexpr int kBytes = D * Bits / 8;
  static constexpr int kPiece = D * Bits / 64;
  static_assert(kPiece % 2 == 0, "a piece begins within a byte");
  static constexpr int kWords = (kPiece + 3) / 4;
  struct Raw {
    std::uint32_t w[2][2][kWords];
  };
  __device__ static void load(Raw& r, const std::uint32_t (&row)[2][2], int g, bool) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int o = 0; o < 2; ++o) load_run<kPiece>(row[h][o] + g * kPiece, r.w[h][o]);
  }
  __device__ static std::uint32_t pair(const Raw& r, int h, int o, int i, std::uint32_t lane_base) {
    return pair_value<Bits, 1, kWords>(r.w[h][o], i, lane_base);
  }
  __device__ static int chunk_dim(int g, int i, bool) { return g * (D / 8) + 4 * i; }
  __device__ static constexpr int chunk_pair(int i, int j) { return 2 * i + j / 2; }
  __device__ static constexpr int chunk_second(int, int j) { return j % 2; }
};

}  // namespace tq4::gpu::fused
