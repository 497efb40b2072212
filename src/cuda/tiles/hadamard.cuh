// Rows times a Hadamard matrix on the tensor cores, without the matrix. A row's D coordinates are numbered by bits: products with one constant
// +-1 fragment transform the bits that lie across lanes and in a fragment's columns, the signs of the fragments' products (or additions) those that
// number the fragments, one addition the bit between a fragment's upper and lower rows. fp16 and bf16 times +-1 are exact.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace tq4::gpu {

/// Chunks of 8 coordinates (bits 0 to 2) that a lane has of a row. Bits 3 and 4 number the lanes t of four, so that neighbours load and store 64 bytes
/// side by side, the others the chunks c.
template <int D>
constexpr int kLaneChunks = D / 32;
/// The first coordinate of a chunk. Eight chunks are numbered as trade_words() leaves them.
template <int D>
__device__ __forceinline__ constexpr int lane_chunk(int t, int c) {
  return 8 * t + (D == 256 ? c % 4 * 64 + c / 4 * 32 : c * 32);
}
/// Swaps bit `Lane` of the lanes' numbers with bit `Word` of the words'. All lanes of the warp.
template <int Lane, int Word, int G>
__device__ __forceinline__ void trade_bit(unsigned (&w)[G], int t) {
  const bool upper = (t & Lane) != 0;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    if ((g & Word) != 0) continue;
    const unsigned got = __shfl_xor_sync(~0u, upper ? w[g] : w[g + Word], Lane);
    w[g] = upper ? got : w[g];
    w[g + Word] = upper ? w[g + Word] : got;
  }
}
/// A word a chunk: of coordinates D/4 t to D/4 (t + 1) to those of lane_chunk(), and back.
template <int G>
__device__ __forceinline__ void trade_words(unsigned (&w)[G], int t) {
  trade_bit<1, 1>(w, t);
  trade_bit<2, G == 2 ? 1 : 2>(w, t);
}
template <int G>
__device__ __forceinline__ void trade_words_back(unsigned (&w)[G], int t) {
  trade_bit<2, G == 2 ? 1 : 2>(w, t);
  trade_bit<1, 1>(w, t);
}

/// Sums of 8 rows, of a lane (g = lane / 4, t = lane % 4) those of row g: v[c][m][2 i + e] is coordinate 4 m + 2 i + e of chunk c.
template <int D>
struct HadamardSums {
  float v[kLaneChunks<D>][2][4];
};

/// The fragments that chunks are multiplied with, plus (0) or minus (1), and either with its lower half negated (m = 1): column 2 t + e is +-1 by the
/// parity of what it shares with row 2 t' + e' (+ 8: bit 2).
struct HadamardFragments {
  unsigned b[2][2][2];  ///< [minus][m]
};
__device__ __forceinline__ HadamardFragments hadamard_fragments(bool bf16, int lane) {
  const int g = lane >> 2, t = lane & 3;
  const unsigned one = bf16 ? 0x3f80u : 0x3c00u, odd = static_cast<unsigned>(__popc(t & g >> 1)), odder = odd ^ static_cast<unsigned>(g);
  const unsigned plus = one | (odd & 1u) << 15 | one << 16 | (odder & 1u) << 31;
  HadamardFragments f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int minus = i / 4 ^ (i / 2 % 2 & i % 2);
    f.b[i / 4][i / 2 % 2][i % 2] = opaque(minus != 0 ? plus ^ 0x80008000u : plus);  // else they are made again for each row
  }
  return f;
}

/// Chunks that products add up; finish_sums() does the rest.
template <int D>
constexpr int kChunkGroup = kLaneChunks<D> < 4 ? kLaneChunks<D> : 4;
/// Adds chunk c's part to the sums of the chunks of its group. a: its coordinates in pairs; words 0 and 2 are row g of a fragment, 1 and 3, whose bit
/// 1 is set, row g + 8.
template <int D, bool Bf16, int Group = kChunkGroup<D>>
__device__ __forceinline__ void add_chunk(HadamardSums<D>& y, int c, const unsigned (&a)[4], const HadamardFragments& f) {
#pragma unroll
  for (int i = 0; i < Group; ++i) {
    const int common = c % Group & i, minus = (common ^ common >> 1) & 1;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float(&sum)[4] = y.v[c / Group * Group + i][m];
      const unsigned(&b)[2] = f.b[minus][m];
      Bf16 ? mma_bf16(sum, a[0], a[1], a[2], a[3], b[0], b[1]) : mma(sum, a[0], a[1], a[2], a[3], b[0], b[1]);
    }
  }
}
/// The bits that products do not reach: 1, and of chunks those from `Group` on.
template <int D, int Group = kChunkGroup<D>>
__device__ __forceinline__ void finish_sums(HadamardSums<D>& y) {
#pragma unroll
  for (int c = 0; c < kLaneChunks<D>; ++c) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float low = y.v[c][m][e], high = y.v[c][m][2 + e];
        y.v[c][m][e] = __fadd_rn(low, high);
        y.v[c][m][2 + e] = __fsub_rn(low, high);
      }
    }
  }
#pragma unroll
  for (int bit = Group; bit < kLaneChunks<D>; bit *= 2) {
#pragma unroll
    for (int c = 0; c < kLaneChunks<D>; ++c) {
      if ((c & bit) != 0) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float low = y.v[c][i / 4][i % 4], high = y.v[c + bit][i / 4][i % 4];
        y.v[c][i / 4][i % 4] = __fadd_rn(low, high);
        y.v[c + bit][i / 4][i % 4] = __fsub_rn(low, high);
      }
    }
  }
}

}  // namespace tq4::gpu
