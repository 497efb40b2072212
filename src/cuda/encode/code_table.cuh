// Rotated coordinates in registers to codes for kernels of many rows: a code costs two look-ups in shared memory, a pair of centroids half of one more,
// and no two lanes of a warp ever meet in a bank. (lanes.cuh does the same with shuffles, without a table to fill.)
//
// 3 + z lies in [2, 4) for a coordinate z of a unit vector, so that its fp32 bits are z in fixed point (2^-22): bits 16 to 22 number one of 128
// cells, none of which holds two boundaries. A cell's word is such that the sum of both words is the code, from bit 24 on (coordinates of even number) or 28
// on (odd). Two sums make a byte that numbers two centroids and is two codes of 4 bits. Codes are those of row.cuh but for coordinates within 2^-22
// of a boundary and what the order of sums changes. What is no number finds row 255, or 383 where it is odd, and code 0, the CPU's.
#pragma once

#include "cuda/encode/lanes.cuh"

namespace tq4::gpu {

/// Row i of 256: 16 times the centroids of codes i % 16 and i / 16, then 32 times word i of SideTables::code_cells. Of the rows behind them only the last
/// is ever read.
constexpr int kCodeTableRow = 256, kCodeTableBytes = 384 * kCodeTableRow;

/// Codecs that need no table, or have one.
inline bool table_serves(const RowCodec& r) { return r.kind != static_cast<int>(CodeKind::Mse) || r.t.code_cells != nullptr; }

/// What a lane reads for the table, long before it is there.
struct CodeTableParts {
  float centroid;
  unsigned cell;
};
/// A warp fills rows 2 i and 2 i + 1 for i = warp, warp + Warps, ..; lane l has read the cell of the l-th of them.
template <int Warps>
__device__ __forceinline__ CodeTableParts code_table_parts(const SideTables& t, int warp, int lane) {
  static_assert(Warps >= 8);
  const int row = 2 * (warp + lane / 2 * Warps) + lane % 2;
  if (t.code_cells == nullptr) return {0.0f, 0u};
  return {__ldg(t.cells + 64 + lane), row < 256 ? __ldg(t.code_cells + row) : 0u};
}
struct CodeTable {
  const unsigned char* row;  ///< shared memory
  unsigned cell, pair;       ///< of this lane: bytes of a row
};
/// All of the block's warps fill it; the caller synchronises.
template <int Warps>
__device__ __forceinline__ CodeTable code_table(void* memory, const CodeTableParts& parts, int warp, int lane) {
  auto* row = static_cast<unsigned char*>(memory);
  const int piece = lane & 15;
#pragma unroll
  for (int k = 0; k < (128 + Warps - 1) / Warps; ++k) {
    const int r = 2 * (warp + k * Warps) + (lane >> 4);
    const float low = __shfl_sync(~0u, parts.centroid, r & 15), high = __shfl_sync(~0u, parts.centroid, r >> 4);
    const unsigned cell = __shfl_sync(~0u, parts.cell, 2 * k + (lane >> 4));
    const uint4 v = piece < 8 ? make_uint4(__float_as_uint(low), __float_as_uint(high), __float_as_uint(low), __float_as_uint(high))
                              : make_uint4(cell, cell, cell, cell);
    if (r < 256) *reinterpret_cast<uint4*>(row + kCodeTableRow * r + 16 * piece) = v;
  }
  if (warp == 0) *reinterpret_cast<unsigned*>(row + 383 * kCodeTableRow + 128 + 4 * lane) = kNoNumberCell;
  return {row, 128u + 4u * static_cast<unsigned>(lane), 8u * static_cast<unsigned>(lane & 15)};
}

/// Eight codes of 4 bits to eight of `bits`.
__device__ __forceinline__ unsigned narrow_codes(unsigned w, unsigned bits) {
  const unsigned one = (1u << bits) - 1, two = (1u << 2 * bits) - 1, four = (1u << 4 * bits) - 1;
  w = (w & one * 0x01010101u) | (w >> (4 - bits) & (one << bits) * 0x01010101u);
  w = (w & two * 0x00010001u) | (w >> (8 - 2 * bits) & (two << 2 * bits) * 0x00010001u);
  return (w & four) | (w >> (16 - 4 * bits) & four << 4 * bits);
}

/// A lane's part of a row: codes, and its shares of the sums that make the scale.
template <int N>
struct LaneWork {
  unsigned low[N / 8];
  float dot, centroids;
};
/// `Turned`: in groups of 8 of odd number, y has its sign changed by `turned` (0 or 2^31).
template <int N, bool Turned = false, class Y>
__device__ __forceinline__ LaneWork<N> look_up_codes(const CodeTable& table, const Y& y, float to_place, unsigned turned = 0) {
  LaneWork<N> out;
  const float to_places[2] = {to_place, __uint_as_float(__float_as_uint(to_place) ^ turned)};
  float yc[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}}, cc[2] = {0.0f, 0.0f};
#pragma unroll
  for (int g = 0; g < N / 8; ++g) {
    const int part = Turned ? g % 2 : 0;
    unsigned two[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float y0 = y(8 * g + 2 * k), y1 = y(8 * g + 2 * k + 1);
      const unsigned place0 = bits_above_three(y0, to_places[part]), place1 = bits_above_three(y1, to_places[part]);
      const unsigned even = place0 + *reinterpret_cast<const unsigned*>(table.row + __byte_perm(place0, table.cell, 0x5524));
      const unsigned odd = place1 + *reinterpret_cast<const unsigned*>(table.row + 32768 + __byte_perm(place1, table.cell, 0x5524));
      two[k] = select_bits(odd, 0xf0000000u, even);
      const float2 c = *reinterpret_cast<const float2*>(table.row + __byte_perm(two[k], table.pair, 0x5534));
      yc[part][0] = __fmaf_rn(y0, c.x, yc[part][0]), yc[part][1] = __fmaf_rn(y1, c.y, yc[part][1]);
      cc[0] = __fmaf_rn(c.x, c.x, cc[0]), cc[1] = __fmaf_rn(c.y, c.y, cc[1]);
    }
    out.low[g] = __byte_perm(__byte_perm(two[0], two[1], 0x0073), __byte_perm(two[2], two[3], 0x0073), 0x5410);
  }
  out.dot = yc[0][0] + yc[0][1], out.centroids = cc[0] + cc[1];
  if constexpr (Turned) out.dot += __uint_as_float(__float_as_uint(yc[1][0] + yc[1][1]) ^ turned);
  return out;
}
template <int N>
__device__ __forceinline__ void take_codes(LaneCodes<N>& out, const LaneWork<N>& work, int bits) {
#pragma unroll
  for (int g = 0; g < N / 8; ++g) out.low[g] = work.low[g], out.high[g] = 0;
  if (bits == 4) return;
#pragma unroll
  for (int g = 0; g < N / 8; ++g) out.low[g] = narrow_codes(out.low[g], static_cast<unsigned>(bits));
}

/// y(i) * factor is coordinate i of this lane's N; `square` is the row's sum of y^2. All lanes of the warp; Mse of a codec that has code_cells.
template <int N, int Lanes, class Y>
__device__ __forceinline__ LaneCodes<N> table_codes(const RowCodec& r, const CodeTable& table, const Y& y, float square, float factor) {
  LaneCodes<N> out;
  const RowNorm norm = row_norm(square, factor);
  const LaneWork<N> work = look_up_codes<N>(table, y, norm.inverse * kCodeCellScale);
  take_codes(out, work, r.bits);
  out.zero = 0.0f;
  out.scale = row_scale(r, norm, sum_lanes<Lanes>(work.dot), sum_lanes<Lanes>(work.centroids), factor);
  return out;
}

/// Sums over four lanes of what each has of two rows: lanes of even number get the first row's, the others the second's.
__device__ __forceinline__ float sum_two(float first, float second, bool odd) {
  float v = odd ? second : first;
  v += __shfl_xor_sync(~0u, odd ? first : second, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
/// table_codes of two rows by four lanes: y(row, i). Each lane makes the scale of one of them. Scaled: else codes alone.
template <int N, bool Scaled = true, class Y>
__device__ __forceinline__ void table_codes_two(LaneCodes<N> (&out)[2], const RowCodec& r, const CodeTable& table, const Y& y,
                                                const float (&factor)[2], int t) {
  const bool odd = (t & 1) != 0;
  float part[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) part[k] = square_part<N>([&](int i) { return y(k, i); });
  const RowNorm norm = row_norm(sum_two(part[0], part[1], odd), odd ? factor[1] : factor[0]);
  const float mine = norm.inverse * kCodeCellScale, other = __shfl_xor_sync(~0u, mine, 1);
  LaneWork<N> work[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    work[k] = look_up_codes<N>(
        table, [&](int i) { return y(k, i); }, odd == (k == 1) ? mine : other);
    take_codes(out[k], work[k], r.bits);
    out[k].zero = 0.0f;
  }
  if constexpr (!Scaled) return;
  const float scale = row_scale(r, norm, sum_two(work[0].dot, work[1].dot, odd), sum_two(work[0].centroids, work[1].centroids, odd),
                                odd ? factor[1] : factor[0]);
  const float next = __shfl_xor_sync(~0u, scale, 1);
  out[0].scale = odd ? next : scale, out[1].scale = odd ? scale : next;
}

}  // namespace tq4::gpu
