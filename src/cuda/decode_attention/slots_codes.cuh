// The dequantisers of the slots kernel: from the bytes of a token's slot, aligned to 2 bytes only, to the half2 operands of the tensor
// cores. Fragments are those of fused_dequant.cuh (K: lane (g, t) holds piece t of tokens g and g + 8; V: pairs of dims by (token, which of
// the pair)); what differs is which dims a piece has, so that rows a multiple of 4 bytes apart are read word by word without bank
// conflicts:
//
//   Spread  piece t of a key row is its words t, t + 4, ... (8 codes of 4 bits each); piece g of a value row its words g, g + 8, ...
//           Where the codes begin in the middle of a word (`odd`), word 0 takes its lower half from the word behind the last: the row,
//           turned by 4 dims.
//   Runs    pieces are contiguous, read as unaligned runs: for rows that differ in alignment from token to token, and for 3 bits.
//
// Values are uniform: integers are fp16 numbers by their bits alone, two codes some apart at a time, without a table.
#pragma once

#include "cuda/decode_attention/fused_tile.cuh"

namespace tq4::gpu::fused {

/// The first word of an odd row, whose words begin at `row`, takes its lower half from the word behind the last.
template <int Words>
__device__ __forceinline__ void mend_row(std::uint32_t& word, std::uint32_t row, bool first) {
  const std::uint32_t tail = lds32(row + 4 * Words);
  word = __byte_perm(word, tail, first ? 0x3254 : 0x3210);
}
/// Bytes from `turn` bits (0 or 16) of an aligned address on.
template <int Bytes>
__device__ __forceinline__ void load_run(std::uint32_t at, std::uint32_t turn, std::uint32_t* v) {
  constexpr int kAligned = (Bytes + 5) / 4;
  std::uint32_t w[kAligned + 1];
#pragma unroll
  for (int i = 0; i < kAligned; ++i) w[i] = lds32(at + 4 * i);
  w[kAligned] = 0;
#pragma unroll
  for (int i = 0; i < (Bytes + 3) / 4; ++i) v[i] = __funnelshift_r(w[i], w[i + 1], turn);
}

// Keys. lane_at: what a lane adds to where a row begins, for load; turn: with it. load: of tokens g and g + 8, at[half]. mend: where rows
// are `odd`, with where those rows begin. kByParity: load and pair are told whether rows are `odd`, and take codes from where they are,
// unturned. pair: as in fused_dequant.cuh. quad_dim: where the four dims of pairs 2i and 2i + 1 of piece t begin.

template <int D, int Bits, bool Spread, bool Aligned>
struct SlotTableKey {
  static_assert(!Spread || (Bits == 4 && Aligned));
  static constexpr int kEntries = 1 << 2 * Bits;
  static constexpr bool kNormCorrected = true, kMend = Spread, kByParity = Aligned && !Spread && D / 4 * Bits / 8 % 4 == 0;
  static constexpr int kBytes = D * Bits / 8, kScaleBytes = 2;
  static constexpr int kPiece = D / 4 * Bits / 8;
  static constexpr int kWords = (kPiece + 3) / 4 + kByParity;
  struct Raw {
    std::uint32_t w[2][kWords];
  };
  __device__ static int lane_at(int t) { return Spread ? 4 * t : t * kPiece; }
  template <bool Odd>
  __device__ static void load(Raw& r, const std::uint32_t (&at)[2], std::uint32_t turn) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (Spread) {
#pragma unroll
        for (int i = 0; i < D / 32; ++i) r.w[h][i] = lds32(at[h] + 16 * i);
      } else if constexpr (kByParity) {
#pragma unroll
        for (int i = 0; i < (kPiece + 2 * Odd + 3) / 4; ++i) r.w[h][i] = lds32(at[h] + 4 * i);
      } else {
        load_run<kPiece>(at[h], turn, r.w[h]);
      }
    }
  }
  __device__ static void mend(Raw& r, const std::uint32_t (&row)[2], int t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) mend_row<D / 8>(r.w[h][0], row[h], t == 0);
  }
  template <bool Odd>
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    constexpr int kStart = kByParity && Odd ? 16 : 0;
    return pair_value<Bits, 0, kStart>(r.w[h], i, lane_base);
  }
  __device__ static int quad_dim(int t, int i, bool odd) {
    return Spread ? (8 * (t + i / 2 * 4) + i % 2 * 4 - 4 * odd) & (D - 1) : t * (D / 4) + 4 * i;
  }
};

template <int D>
struct SlotFp8Key {
  static constexpr int kEntries = 0;
  static constexpr bool kNormCorrected = false, kMend = false, kByParity = false;
  static constexpr int kBytes = D, kScaleBytes = 0;
  struct Raw {
    std::uint32_t w[2][D / 16];
  };
  __device__ static int lane_at(int t) { return 4 * t; }
  template <bool Odd>
  __device__ static void load(Raw& r, const std::uint32_t (&at)[2], std::uint32_t) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < D / 16; ++i) r.w[h][i] = lds32(at[h] + 16 * i);
  }
  __device__ static void mend(Raw&, const std::uint32_t (&)[2], int) {}
  template <bool Odd>
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t) {
    return e4m3x2_to_half2((std::uint16_t)(r.w[h][i / 2] >> i % 2 * 16));
  }
  __device__ static int quad_dim(int t, int i, bool) { return 4 * (t + 4 * i); }
};

// Values, uniform: scale * index + zero. Indices stay where they are: a field of a half-word, everything else masked away, is a subnormal
// fp16 number, the index times a power of two, which the tensor cores take as exactly as any other. Hence no table and no arithmetic;
// unit(i) is what the sums of pair i are multiplied by in the end. load: piece g of the rows at row[half][odd token]. chunk_dim: where the
// four dims of chunk i of piece g begin, chunk_pair and chunk_second: which pair of the piece, and which of its two dims, gives dim j of
// the chunk.

template <int D, bool Spread>
struct SlotNibbleValue {
  static constexpr bool kMend = Spread, kAligned = Spread;
  static constexpr int kBytes = D / 2;
  static constexpr int kWords = D / 64;
  struct Raw {
    std::uint32_t w[2][2][kWords];
  };
  __device__ static int lane_at(int g) { return Spread ? 4 * g : 4 * kWords * g; }
  __device__ static std::uint32_t turn(std::uint32_t) { return 0; }
  __device__ static void load(Raw& r, const std::uint32_t (&at)[2][2], std::uint32_t) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int o = 0; o < 2; ++o) {
        if constexpr (Spread) {
#pragma unroll
          for (int i = 0; i < kWords; ++i) r.w[h][o][i] = lds32(at[h][o] + 32 * i);
        } else {
          load_run<4 * kWords>(at[h][o] & ~3u, (at[h][o] & 2) * 8, r.w[h][o]);
        }
      }
  }
  /// row: where the first words of the rows lie.
  __device__ static void mend(Raw& r, const std::uint32_t (&row)[2][2], int g) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int o = 0; o < 2; ++o) mend_row<D / 8>(r.w[h][o][0], row[h][o], g == 0);
  }
  /// Codes i % 4 and i % 4 + 4 of a word.
  __device__ static std::uint32_t pair(const Raw& r, int h, int o, int i) {
    return (r.w[h][o][i / 4] >> (i % 4 / 2 * 8)) & (i % 2 == 0 ? 0x000f000fu : 0x00f000f0u);
  }
  __device__ static constexpr float unit(int i) { return i % 2 == 0 ? 0x1p24f : 0x1p20f; }
  __device__ static int chunk_dim(int g, int i, bool odd) {
    return Spread ? (8 * (g + i / 2 * 8) + i % 2 * 4 - 4 * odd) & (D - 1) : g * (D / 8) + 4 * i;
  }
  __device__ static constexpr int chunk_pair(int i, int j) { return i / 2 * 4 + j; }
  __device__ static constexpr int chunk_second(int i, int) { return i % 2; }
};

/// 3 bits: a piece is 16 codes in 48 bits. Bytes 0, 1 and 3, 4 make a word in which codes 0 to 2 stand beside codes 8 to 10, bytes 1, 2 and
/// 4, 5 one with codes 3 to 7 beside 11 to 15, the last two too high for subnormal numbers.
template <int D, bool Aligned>
struct SlotTripleValue {
  static constexpr bool kMend = false, kAligned = Aligned;
  static_assert(D == 128, "a piece is 48 bits");
  static constexpr int kBytes = D * 3 / 8;
  struct Raw {
    std::uint32_t w[2][2][2];
  };
  __device__ static int lane_at(int g) { return 6 * g; }
  /// Which bytes of the two words that hold it make a piece's first word.
  __device__ static std::uint32_t turn(std::uint32_t at) { return 0x4310 + (at & 2) * 0x1111; }
  __device__ static void load(Raw& r, const std::uint32_t (&at)[2][2], std::uint32_t own_turn) {
#pragma unroll
    for (int o = 0; o < 2; ++o) {
      const std::uint32_t select = Aligned ? own_turn : turn(at[0][o]);  // 8 tokens are a multiple of 4 bytes
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t from = Aligned ? at[h][o] : at[h][o] & ~3u, low = lds32(from), high = lds32(from + 4);
        r.w[h][o][0] = pick_bytes(low, high, select);
        r.w[h][o][1] = pick_bytes(low, high, select + 0x1111);
      }
    }
  }
  __device__ static void mend(Raw&, const std::uint32_t (&)[2][2], int) {}
  /// Codes i and i + 8.
  __device__ static std::uint32_t pair(const Raw& r, int h, int o, int i) {
    constexpr int kBit[8] = {0, 3, 6, 1, 4, 7, 0, 3};
    return (r.w[h][o][i / 3 > 0] >> (i < 6 ? 0 : 10)) & (0x00070007u << kBit[i]);
  }
  __device__ static constexpr float unit(int i) {
    constexpr float kUnit[8] = {0x1p24f, 0x1p21f, 0x1p18f, 0x1p23f, 0x1p20f, 0x1p17f, 0x1p24f, 0x1p21f};
    return kUnit[i];
  }
  __device__ static int chunk_dim(int g, int i, bool) { return g * 16 + 4 * i; }
  __device__ static constexpr int chunk_pair(int i, int j) { return (4 * i + j) % 8; }
  __device__ static constexpr int chunk_second(int i, int) { return i / 2; }
};

}  // namespace tq4::gpu::fused
