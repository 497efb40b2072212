// The dequantisers of the fused kernel: from the bytes of a native tile to the half2 operands of the tensor cores. Each is a policy with the same
// members; a new codec is a new policy, never a copy of the kernel. Two facts make them short:
//   - A code addresses a 256-entry table of half2, so one look-up gives two neighbouring coordinates, whatever the codebook (scalar
//     product or 2-D). Entries are 256 bytes apart in a table aligned to 64 KiB: PRMT drops the code byte straight into the
//     address. Each entry is repeated for 32 lanes (128 bytes), so look-ups never conflict; the other 128 bytes hold V's table. Pairs of fewer
//     than 8 bits have the table repeated, so that the rest of a byte need not be masked.
//   - The order of dimensions inside the products is free as long as q and the output use the same one. The order is chosen so
//     that the bytes a lane loads *are* its fragments.
//
// K is operand A of m16n8k16 (16 tokens x 16 dims). Lane (g = lane / 4, t = lane % 4) needs tokens g and g + 8, and holds the dims
// of "piece t" of their rows: CH-dim chunks t, t + 4, ... (CH = 32, or D / 4 for small D).
//
//            piece 0      piece 1      piece 2      piece 3            MMA i of token g takes the half2 pairs 2i and 2i+1 of
//   token g [ CH dims  |  CH dims   |  CH dims   |  CH dims  ] ...     every piece: k = 2t,2t+1 -> pair 2i; k = 2t+8,+9 -> 2i+1
//
// V is operand A too, transposed: rows are *pairs of dims*, k runs over (token, which of the pair). B then holds p for one of the two
// and zero for the other: even columns collect the even dims, odd columns the odd dims of a query row. Lane (g, t) needs tokens 2t and
// 2t + 1 of each half of 8 tokens, and of their rows the D / 16 pairs of piece g: dims [g * D / 8, (g + 1) * D / 8).
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/ptx.cuh"

namespace tq4::gpu::fused {

constexpr std::uint32_t kTableAddress = 0x10000;  // shared-memory address of the tables: 64 KiB to 128 KiB

/// Loads Bytes (a multiple of 2) from an address aligned to the largest power of two dividing Bytes (at most 16).
template <int Bytes>
__device__ __forceinline__ void load_bytes(std::uint32_t a, std::uint32_t* v) {
  if constexpr (Bytes % 16 == 0) {
#pragma unroll
    for (int i = 0; i < Bytes / 16; ++i) lds128(a + 16 * i, v + 4 * i);
  } else if constexpr (Bytes % 8 == 0) {
#pragma unroll
    for (int i = 0; i < Bytes / 8; ++i) lds64(a + 8 * i, v + 2 * i);
  } else if constexpr (Bytes % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) v[i] = lds32(a + 4 * i);
  } else {
#pragma unroll
    for (int i = 0; i < Bytes / 4; ++i) v[i] = lds16(a + 4 * i) | lds16(a + 4 * i + 2) << 16;
    v[Bytes / 4] = lds16(a + Bytes - 2);
  }
}

/// 32 bytes as two loads of 16 that lie `step` bytes apart. `at` is the first place, or the second where `turned`: lanes that would meet in a bank read in
/// different order.
__device__ __forceinline__ void load_two(std::uint32_t at, int step, bool turned, std::uint32_t (&w)[8]) {
  std::uint32_t one[4], other[4];
  lds128(at, one);
  lds128(at + (turned ? -step : step), other);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] = turned ? other[i] : one[i];
    w[i + 4] = turned ? one[i] : other[i];
  }
}

/// Value of pair `i` (compile time) of a run of codes of 2 * Bits bits, LSB first, starting at bit `Start` of w. Side 0 = K, 1 = V.
/// A field of 2 or 3 bits a code that does not end a byte is shifted up, which serves three of four pairs of 3 bits; what else is in its byte does no harm,
/// the table being repeated for the lower bits of a byte (table_code()). Those shifts are multiplications, on a pipe with time to spare, where shifts down
/// would wait for that of the permutations; only fields across two words take it.
template <int Bits, int Side, int Start = 0>
__device__ __forceinline__ std::uint32_t pair_value(const std::uint32_t* w, int i, std::uint32_t lane_base) {
  const int end = Start + (i + 1) * 2 * Bits, shift = -end & 7, word = (end - 1) / 32, byte = (end - 1) / 8 % 4;
  const bool crosses = (end - 2 * Bits) / 32 < word;
  const std::uint32_t x = shift == 0 ? w[word] : crosses ? __funnelshift_l(w[word - 1], w[word], shift) : w[word] << shift;
  return table_read<Side * 128>(__byte_perm(x, lane_base, 0x7604 | byte << 4));
}
/// Which of a table's Entries codes a byte stands for.
template <int Entries>
__device__ __forceinline__ int table_code(int byte) {
  return byte / (256 / Entries);
}
/// Pair `i` of group `q` of a unit of 3-bit codes (core/units.h), 12 bytes in w. A group's first three pairs have a byte of their own each, in bits 1 to 3
/// and 5 to 7; the fourth pairs of all four groups are put together from bits 0 and 4 of the bytes, again by shifts up.
template <int Side>
__device__ __forceinline__ std::uint32_t unit_pair_value(const std::uint32_t* w, int q, int i, std::uint32_t lane_base) {
  const std::uint32_t x = i < 3 ? w[i] : select_bits(w[2] << 3, 0x88888888u, select_bits(w[1] << 2, 0x44444444u, w[0] << 1));
  return table_read<Side * 128>(__byte_perm(x, lane_base, 0x7604 | q << 4));
}
/// The pair code that such a byte stands for.
__device__ __forceinline__ int unit_entry(int byte) { return (byte >> 1 & 7) | (byte >> 5 & 7) << 3; }

template <int D>
struct KeyOrder {
  static constexpr int kChunk = D >= 128 && D % 128 == 0 ? 32 : D / 4;  // dims of a chunk
  static constexpr int kChunks = D / 4 / kChunk;
  /// First of the two dims of pair i of piece t.
  __device__ static constexpr int dim(int t, int i) { return (2 * i / kChunk * 4 + t) * kChunk + 2 * i % kChunk; }
};

/// Keys by table, Bits = 2, 4.
template <int D, int Bits>
struct TableKey {
  static constexpr int kRow = D * Bits / 8;
  static constexpr int kBytes = 16 * kRow;
  static constexpr bool kTable = true;
  /// The pair code that the table's entry for a byte stands for.
  __device__ static int entry(int byte) { return table_code<1 << 2 * Bits>(byte); }
  static constexpr int kChunkBytes = KeyOrder<D>::kChunk * Bits / 8;
  static constexpr int kWords = (D / 4 * Bits / 8 + 3) / 4;
  struct Raw {
    std::uint32_t w[2][kWords];
  };
  static constexpr bool kTurned = kRow == 128 && kChunkBytes == 16;  // all rows begin in one bank: those of odd g are read in turned order
  __device__ static std::uint32_t lane_offset(int g, int t) { return g * kRow + t * kChunkBytes + (kTurned ? g % 2 * 64 : 0); }
  /// at: of the tile, and lane_offset() further on. odd: whether g is.
  __device__ static void load(Raw& r, std::uint32_t at, bool odd) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (kTurned) {
        load_two(at + 8 * h * kRow, 64, odd, r.w[h]);
      } else {
#pragma unroll
        for (int c = 0; c < KeyOrder<D>::kChunks; ++c)
          load_bytes<kChunkBytes>(at + 8 * h * kRow + c * 4 * kChunkBytes, r.w[h] + c * kChunkBytes / 4);
      }
    }
  }
  /// Pair i of token g + 8 h.
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    return pair_value<Bits, 0>(r.w[h], i, lane_base);
  }
};

/// Keys of 3 bits by table, in units. A lane's units are neighbours: its piece of token g in groups 0 and 1, of token g + 8 in groups 2 and 3.
template <int D>
struct TableKey<D, 3> {
  static constexpr int kBytes = 16 * D * 3 / 8;
  static constexpr bool kTable = true;
  __device__ static int entry(int byte) { return unit_entry(byte); }
  static constexpr int kUnits = D / 64;
  struct Raw {
    std::uint32_t w[kUnits * 3];
  };
  __device__ static std::uint32_t lane_offset(int g, int t) { return (g * 4 + t) * kUnits * 12; }
  __device__ static void load(Raw& r, std::uint32_t at, bool) { load_bytes<kUnits * 12>(at, r.w); }
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    return unit_pair_value<0>(r.w + i / 8 * 3, 2 * h + i / 4 % 2, i % 4, lane_base);
  }
};

/// Keys as FP8 E4M3 bytes: the hardware converts two at a time, no table.
template <int D>
struct Fp8Key {
  static constexpr int kRow = D;
  static constexpr int kBytes = 16 * kRow;
  static constexpr bool kTable = false;
  static constexpr int kChunkBytes = KeyOrder<D>::kChunk;
  static constexpr int kWords = D / 16;
  struct Raw {
    std::uint32_t w[2][kWords];
  };
  __device__ static std::uint32_t lane_offset(int g, int t) { return g * kRow + t * kChunkBytes; }
  /// at: of the tile, and lane_offset() further on.
  __device__ static void load(Raw& r, std::uint32_t at, bool) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int c = 0; c < KeyOrder<D>::kChunks; ++c)
        load_bytes<kChunkBytes>(at + 8 * h * kRow + c * 4 * kChunkBytes, r.w[h] + c * kChunkBytes / 4);
  }
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t) {
    return e4m3x2_to_half2((std::uint16_t)(r.w[h][i / 2] >> i % 2 * 16));
  }
};

/// Values by table, Bits = 2, 4. Uniform values (scale * index + zero) use the same look-up with the indices themselves as entries.
template <int D, int Bits, bool Zero = false>
struct TableValue {
  static constexpr int kPiece = D * Bits / 64;
  static constexpr int kBytes = 16 * D * Bits / 8;
  static constexpr bool kZero = Zero;
  __device__ static int entry(int byte) { return table_code<1 << 2 * Bits>(byte); }
  static constexpr int kWords = (2 * kPiece + 3) / 4;
  struct Raw {
    std::uint32_t w[2][kWords];
  };
  static constexpr bool kTurned = kPiece == 16;  // as of keys
  __device__ static std::uint32_t lane_offset(int g, int t) { return (g * 4 + t) * 2 * kPiece + (kTurned ? g % 2 * 16 : 0); }
  /// at: of the tile's values, and lane_offset() further on. odd: whether g is.
  __device__ static void load(Raw& r, std::uint32_t at, bool odd) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (kTurned) {
        load_two(at + h * 64 * kPiece, 16, odd, r.w[h]);
      } else {
        load_bytes<2 * kPiece>(at + h * 64 * kPiece, r.w[h]);
      }
    }
  }
  /// Pair i of piece g of token 8 h + 2 t + odd.
  template <int Odd>
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    return pair_value<Bits, 1, Odd * kPiece * 8>(r.w[h], i, lane_base);
  }
};

/// Values of 3 bits by table, in units: tokens 2t, 2t + 1, 2t + 8 and 2t + 9 are their groups.
template <int D, bool Zero>
struct TableValue<D, 3, Zero> {
  static constexpr int kBytes = 16 * D * 3 / 8;
  static constexpr bool kZero = Zero;
  __device__ static int entry(int byte) { return unit_entry(byte); }
  static constexpr bool kTurned = false;
  static constexpr int kUnits = D / 64;
  struct Raw {
    std::uint32_t w[kUnits * 3];
  };
  __device__ static std::uint32_t lane_offset(int g, int t) { return (g * 4 + t) * kUnits * 12; }
  __device__ static void load(Raw& r, std::uint32_t at, bool) { load_bytes<kUnits * 12>(at, r.w); }
  template <int Odd>
  __device__ static std::uint32_t pair(const Raw& r, int h, int i, std::uint32_t lane_base) {
    return unit_pair_value<1>(r.w + i / 4 * 3, 2 * h + Odd, i % 4, lane_base);
  }
};

}  // namespace tq4::gpu::fused
