// Parts of a softmax that thread blocks of one launch pass to each other through the workspace, for the kernels that cut a sequence or pair over blocks (fused_merge.cuh,
// slots_merge.cuh). A word of a part is kept as its complement and 0 means that it is not there yet (no sum is the NaN of all ones), so readers need
// no counter and no fence: they read until all they want is there, and leave zeros for the next launch. Whoever reads waits only for blocks of lower
// index, which begin before it. A warp has a row, a lane LaneDims of its dims.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace tq4::gpu::fused {

/// Maximum (log2) and sum of the weights so far, and the weighted sum of values.
template <int LaneDims>
struct MergedRow {
  float m, l, o[LaneDims];
};

/// Adds the parts of blocks first, first + step, ... below `end`, N at a time. row_at(block): this lane's words of the row; sums_at(block): its maximum and sum.
template <int N, int LaneDims, class RowAt, class SumsAt>
__device__ __forceinline__ void add_parts(int first, int end, int step, int lane, MergedRow<LaneDims>& sum, RowAt&& row_at,
                                          SumsAt&& sums_at) {
  const int top_block = end - 1 - (unsigned)(end - 1 - first) % (unsigned)step;  // the last of them
#pragma unroll 1
  for (int b = first; b < end; b += N * step) {
    std::uint32_t v[N][LaneDims], ml[2];
    const int mine = b + lane % N * step;
    for (;;) {
      load_relaxed<2>(sums_at(min(mine, top_block)), ml);
      bool there = ml[0] != 0 && ml[1] != 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        load_relaxed<LaneDims>(row_at(min(b + i * step, top_block)), v[i]);
#pragma unroll
        for (int d = 0; d < LaneDims; ++d) there &= v[i][d] != 0;
      }
      if (__all_sync(~0u, there)) break;
      not_there_yet();
    }
    const float m = __uint_as_float(~ml[0]);
    float top = m;
#pragma unroll
    for (int o = 1; o < N; o <<= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    top = fmaxf(top, sum.m);
    const float old = exp2_fast(sum.m - top), weight = mine < end ? exp2_fast(m - top) : 0.f;
    float l = weight * __uint_as_float(~ml[1]);
#pragma unroll
    for (int o = 1; o < N; o <<= 1) l += __shfl_xor_sync(~0u, l, o);
    sum.m = top;
    sum.l = sum.l * old + l;
#pragma unroll
    for (int d = 0; d < LaneDims; ++d) sum.o[d] *= old;
    constexpr std::uint32_t kNone[LaneDims] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float w = __shfl_sync(~0u, weight, i);
      if (b + i * step < end) {
#pragma unroll
        for (int d = 0; d < LaneDims; ++d) sum.o[d] += w * __uint_as_float(~v[i][d]);
        store_relaxed<LaneDims>(row_at(b + i * step), kNone);
      }
    }
    if (lane < N && mine < end) store_relaxed<2>(sums_at(mine), {0, 0});
  }
}

/// Leaves a part: this lane's words at `row`, maximum and sum at `sums`.
template <int LaneDims>
__device__ __forceinline__ void write_part(const MergedRow<LaneDims>& sum, int lane, std::uint32_t* row, std::uint32_t* sums) {
  std::uint32_t v[LaneDims];
#pragma unroll
  for (int d = 0; d < LaneDims; ++d) v[d] = ~__float_as_uint(sum.o[d]);
  store_relaxed<LaneDims>(row, v);
  if (lane == 0) store_relaxed<2>(sums, {~__float_as_uint(sum.m), ~__float_as_uint(sum.l)});
}

}  // namespace tq4::gpu::fused
