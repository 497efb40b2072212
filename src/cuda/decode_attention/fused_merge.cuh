// The end of a round of the fused kernel: the warps' states become the outputs of pairs that end in the block, merged with the parts that blocks
// before it left in the workspace, or such a part. All by log-sum-exp.
#pragma once

#include "cuda/decode_attention/fused_rotate.cuh"
#include "cuda/decode_attention/parts.cuh"

namespace tq4::gpu::fused {

template <class C>
struct Merges : Rotations<C> {
  using Base = Rotations<C>;
  using Base::D;
  using Base::g;
  using Base::lane;
  using Base::p;
  using Base::pair_word;
  using Base::row_offset;
  using Base::rows;
  using Base::t;
  using Base::warp;
  using typename Base::S;
  using Value = typename C::Value;
  using Base::Base;

  /// Sums of l and z over the lanes of a row, accumulators in units of V itself.
  __device__ __forceinline__ void finish_rows(RowState<S>& st) const {
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) {
#pragma unroll
      for (int o = S::Tall ? 1 : 4; o < (S::Tall ? 4 : 32); o <<= 1) {
        st.l[r] += __shfl_xor_sync(~0u, st.l[r], o);
        if constexpr (Value::kZero) st.z[r] += __shfl_xor_sync(~0u, st.z[r], o);
      }
    }
    const float unit = st.v_unit > 0.f ? 1.f / st.v_unit : 0.f;
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int e = 0; e < S::Parities; ++e)
#pragma unroll
        for (int j = 0; j < S::Blocks; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float add = 0.f;
            if constexpr (Value::kZero) add = st.z[S::row_of(n, c)];
            st.o[n][e][j][c] = st.o[n][e][j][c] * unit + add;
          }
  }
  /// The warp's state to shared memory, for the merge. pair_slot: which pair of the round it belongs to.
  __device__ __forceinline__ void write_state(RowState<S>& st, int index, int pair_slot) const {
    finish_rows(st);
    const std::uint32_t slot = C::state(index);
    if (lane == 0) sts32(C::kStateSlot + index * 4, pair_slot);
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int j = 0; j < S::Blocks; ++j) {
        const int dim = g * (D / 8) + 4 * j;
        if constexpr (S::Tall) {
          if (n > 0) continue;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int row = g + c / 2 * 8, at = (2 * t + c % 2) * (D / 8) + 4 * j;
            sts128(slot + row * C::RowStride + C::in_row(row, at), st.o[0][0][j][c], st.o[0][1][j][c], st.o[1][0][j][c], st.o[1][1][j][c]);
          }
        } else if constexpr (S::Packed) {
          sts128(slot + t * C::RowStride + dim * 4, st.o[n][0][j][0], st.o[n][0][j][1], st.o[n][0][j][2], st.o[n][0][j][3]);
        } else {
#pragma unroll
          for (int c = 0; c < 2; ++c)
            sts128(slot + S::row(t, 2 * n + c) * C::RowStride + C::in_row(S::row(t, 2 * n + c), dim), st.o[n][0][j][c],
                   st.o[n][S::Parities - 1][j][c], st.o[n][0][j][2 + c], st.o[n][S::Parities - 1][j][2 + c]);
        }
      }
    if (S::Tall ? t == 0 : g == 0) {
#pragma unroll
      for (int r = 0; r < S::LaneRows; ++r) {
        const std::uint32_t at = slot + S::Rows * C::RowStride + S::row(g, t, r) * 8;
        sts32(at, __float_as_uint(S::Tall && st.slack[r] < 0.f ? kMaskedMax : st.m[r]));
        sts32(at + 4, __float_as_uint(st.l[r]));
      }
    }
  }

  __device__ __forceinline__ void write_lse(int seq, int head, int row, float m, float l) const {
    float v = l > 0.f ? (m + log2f(l)) * 0.69314718056f : -INFINITY;
    const std::int64_t at = row_offset(seq, head, row);
    if (p.k_centre && l > 0.f) {
      float dot = 0.f;
#pragma unroll 1
      for (int i = lane; i < D; i += 32) {
        const std::uint16_t bits = __ldg(static_cast<const std::uint16_t*>(p.q) + at + i);
        dot += (p.q_is_bf16 ? __uint_as_float((std::uint32_t)bits << 16) : half_bits_to_float(bits)) * __ldg(p.k_centre + head * D + i);
      }
#pragma unroll
      for (int o = 16; o; o >>= 1) dot += __shfl_xor_sync(~0u, dot, o);
      v += dot * p.k_table_scale * 0.69314718056f;
    }
    if (lane == 0) p.lse[at / D] = v;
  }

  // Parts of pairs that span blocks (parts.cuh). A pair's output is written by the block in which it ends; every block before it in the pair leaves its
  // part in the workspace, one a block.

  static constexpr int LaneDims = D % 64 == 0 ? D / 32 : 4;  // a warp merges a row, a lane so many dims of it
  /// The first of this lane's dims. Lanes that are left over do as the last one does.
  __device__ __forceinline__ int lane_dim() const { return min(lane, D / LaneDims - 1) * LaneDims; }
  __device__ __forceinline__ std::uint32_t* part_row(int block, int row) const {
    return p.parts + (std::int64_t)block * C::PartWords + row * D + lane_dim();
  }
  __device__ __forceinline__ std::uint32_t* part_sums(int block, int row) const {
    return p.parts + (std::int64_t)block * C::PartWords + S::Rows * D + 2 * row;
  }

  using Row = MergedRow<LaneDims>;
  /// This lane's dims of row `row` of a state; at: where the row begins.
  __device__ __forceinline__ void load_dims(std::uint32_t at, int row, float (&v)[LaneDims]) const {
    if constexpr (C::Padded || LaneDims <= 4) {
      load_floats(at + C::in_row(row, lane_dim()), v);
    } else {
      static_assert(LaneDims == 8);
      float four[4];
      at += C::in_row(row, lane_dim());
      load_floats(at, four);
#pragma unroll
      for (int d = 0; d < 4; ++d) v[d] = four[d];
      load_floats(at ^ 16, four);
#pragma unroll
      for (int d = 0; d < 4; ++d) v[4 + d] = four[d];
    }
  }
  /// The states that the warps have of a row of the pair in `slot`, merged: lane i < 16 weighs that of warp i, lane 16 that of the warp in which the pair ends.
  __device__ __forceinline__ Row add_states(int slot, int row) const {
    const int index = lane < C::Warps ? lane : C::Warps + slot;
    const bool mine = lane <= C::Warps && (int)lds32(C::kStateSlot + index * 4) == slot;
    float m = kMaskedMax, l = 0.f;
    if (mine) {
      const std::uint32_t at = C::state(index) + S::Rows * C::RowStride + row * 8;
      m = lds_f32(at);
      l = lds_f32(at + 4);
    }
    Row sum{m, 0.f, {}};
#pragma unroll
    for (int o = 16; o; o >>= 1) sum.m = fmaxf(sum.m, __shfl_xor_sync(~0u, sum.m, o));
    const float weight = mine ? exp2_fast(m - sum.m) : 0.f;
    const std::uint32_t at = C::state(mine ? index : 0) + row * C::RowStride;
    const unsigned states = __ballot_sync(~0u, mine);
#pragma unroll 1
    for (int i0 = __ffs(states) - 1; states >> i0; i0 += 6) {  // lanes of a pair follow each other
      float v[6][LaneDims];
#pragma unroll
      for (int i = 0; i < 6; ++i) load_dims(__shfl_sync(~0u, at, i0 + i), row, v[i]);
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        const float w = __shfl_sync(~0u, weight, i0 + i);
#pragma unroll
        for (int d = 0; d < LaneDims; ++d) sum.o[d] += w * (w != 0.f ? v[i][d] : 0.f);  // beyond the states lies anything
      }
    }
    sum.l = l * weight;
#pragma unroll
    for (int o = 16; o; o >>= 1) sum.l += __shfl_xor_sync(~0u, sum.l, o);
    return sum;
  }

  /// The states of a round become finished rows in shared memory (normalised, for the rotation), or this block's part of a pair that goes on in the next
  /// block: that one first, others wait for it.
  __device__ __forceinline__ void merge_round(int pairs) const {
#pragma unroll 1
    for (int i = warp; i < pairs * S::Rows; i += C::Warps) {
      const int slot = pairs - 1 - (int)((unsigned)i / S::Rows), row = (unsigned)i % S::Rows;
      if (row >= rows()) continue;
      Row sum = add_states(slot, row);
      if (!pair_word(slot, 2)) {
        write_part(sum, lane, part_row(blockIdx.x, row), part_sums(blockIdx.x, row));
        continue;
      }
      const int begin = pair_word(slot, 4);
      Round round;
      round.wake(C::kRound);
      if (begin < round.piece_begin) {
        constexpr int kAtOnce = LaneDims > 4 ? 4 : 8;
        add_parts<kAtOnce>(
            block_of(begin, round.length, late_units<C::Warps>(round.length)), blockIdx.x, 1, lane, sum,
            [&](int block) { return part_row(block, row); }, [&](int block) { return part_sums(block, row); });
      }
      const float unit = sum.l > 0.f ? 1.f / sum.l : 0.f;
#pragma unroll
      for (int d = 0; d < LaneDims; d += 2)
        sts32(C::half_at(C::kRotated, slot * S::Rows + row, lane_dim() + d), pack_half2(sum.o[d] * unit, sum.o[d + 1] * unit));
      if (p.lse) write_lse(pair_word(slot, 0), pair_word(slot, 1), row, sum.m, sum.l);
    }
  }
};

}  // namespace tq4::gpu::fused
