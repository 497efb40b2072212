// Pairs of neighbouring codes to half2 by one look-up: a table in shared memory with every entry repeated for the 32 lanes of a warp, so that its look-ups
// never meet in a bank, or for 16 where room is short: two passes. The same instructions for 1 to 4 bits a code.
#pragma once

#include <cstdint>

#include "cuda/encode/row.h"
#include "cuda/ptx.cuh"
#include "cuda/tiles/image.h"
#include "cuda/tiles/product.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {

/// A table with entries for `Copies` lanes.
template <int Copies>
struct PairTable {
  static_assert(Copies == 16 || Copies == 32);
  static constexpr int kShift = Copies == 32 ? 7 : 6;  ///< of an entry's number
  static constexpr int kBytes = 256 << kShift;

  std::uint32_t base, mask, shift[4];  ///< how the lane addresses it
  __device__ __forceinline__ PairTable(std::uint32_t table, int row_bits, int lane)
      : base(table + static_cast<std::uint32_t>(lane % Copies) * 4), mask(((1u << 2 * row_bits) - 1) << kShift) {
#pragma unroll
    for (int i = 0; i < 4; ++i) shift[i] = static_cast<std::uint32_t>(2 * row_bits * i - kShift) & 31u;
  }
  /// Codes 2 i and 2 i + 1 of the eight in w.
  __device__ __forceinline__ std::uint32_t operator()(std::uint32_t w, int i) const {
    return table_read<0>(base + (__funnelshift_r(w, w, shift[i]) & mask));
  }

  /// Fills it: entry low | high << row_bits is (centroid of low, centroid of high), or the reverse where the even coordinate is in the high nibble.
  /// `centroid`: that of code lane % 2^bits. The whole block; the caller synchronises.
  __device__ static void fill(std::uint32_t table, float centroid, int row_bits, bool high_first, int thread, int threads) {
    const int lane = thread & 31, warps = threads >> 5, last = (1 << 2 * row_bits) - 1;
    for (int first = thread >> 5; first <= last; first += 4 * warps) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // without a branch between them
        const int e = min(first + i * warps, last);
        const float low = __shfl_sync(~0u, centroid, e & ((1 << row_bits) - 1)), high = __shfl_sync(~0u, centroid, e >> row_bits);
        if (lane < Copies)
          sts32(table + static_cast<std::uint32_t>(e << kShift | lane * 4), high_first ? half2_bits(high, low) : half2_bits(low, high));
      }
    }
  }
};

/// A lane's D / 4 codes of one row (w: eight a word) as fragments: columns 16 s + 2 t and 16 s + 8 + 2 t of row r (0: g, 1: g + 8) of the image's order
/// Quarters.
template <int D, class Table>
__device__ __forceinline__ void pair_fragments(RowFragments<D>& f, int r, const unsigned (&w)[D / 32], const Table& pairs) {
#pragma unroll
  for (int m = 0; m < D / 8; ++m) f[m / 2][2 * (m % 2) + r] = pairs(w[m / 4], m % 4);
}
/// The sum of the lane's squares of row r.
template <int D>
__device__ __forceinline__ float squares_of(const RowFragments<D>& f, int r) {
  float sum = 0.0f;
#pragma unroll
  for (int m = 0; m < D / 8; ++m) {
    const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&f[m / 2][2 * (m % 2) + r]));
    sum = __fmaf_rn(v.x, v.x, __fmaf_rn(v.y, v.y, sum));
  }
  return sum;
}
/// Of the four lanes that share a row.
__device__ __forceinline__ float of_four_lanes(float sum) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  return sum + __shfl_xor_sync(~0u, sum, 2);
}

}  // namespace tq4::gpu
