// The end of a round of the fused kernel: the warps' states become the outputs of pairs that lie in the block, or parts in the workspace of
// those that span blocks, which the block that brings the last part merges. All by log-sum-exp.
#pragma once

#include "cuda/decode_attention/fused_rotate.cuh"

namespace tq4::gpu::fused {

template <class C>
struct Merges : Rotations<C> {
  using Base = Rotations<C>;
  using Base::D;
  using Base::g;
  using Base::lane;
  using Base::p;
  using Base::pair_at;
  using Base::pair_word;
  using Base::row_offset;
  using Base::rows;
  using Base::t;
  using Base::warp;
  using Base::write_outputs;
  using typename Base::S;
  using Value = typename C::Value;
  using Base::Base;

  /// Sums of l and z over the lanes of a row, accumulators in units of V itself.
  __device__ __forceinline__ void finish_rows(RowState<S>& st) const {
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) {
#pragma unroll
      for (int o = 4; o < 32; o <<= 1) {
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
            if constexpr (Value::kZero) add = st.z[S::Packed ? 0 : 2 * n + c % 2];
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
        if constexpr (S::Packed) {
          sts128(slot + t * C::RowStride + dim * 4, st.o[n][0][j][0], st.o[n][0][j][1], st.o[n][0][j][2], st.o[n][0][j][3]);
        } else {
#pragma unroll
          for (int c = 0; c < 2; ++c)
            sts128(slot + S::row(t, 2 * n + c) * C::RowStride + dim * 4, st.o[n][0][j][c], st.o[n][S::Parities - 1][j][c],
                   st.o[n][0][j][2 + c], st.o[n][S::Parities - 1][j][2 + c]);
        }
      }
    if (g == 0) {
#pragma unroll
      for (int r = 0; r < S::LaneRows; ++r) {
        const std::uint32_t at = slot + S::Rows * C::RowStride + S::row(t, r) * 8;
        sts32(at, __float_as_uint(st.m[r]));
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
  static constexpr int LaneDims = D / 32;  // dims of a row a lane merges

  /// A finished row: normalised to shared memory, for the rotation.
  __device__ __forceinline__ void finish_row(int slot, int r, float m, float l, const float (&o)[LaneDims]) const {
    const float unit = l > 0.f ? 1.f / l : 0.f;
#pragma unroll
    for (int i = 0; i < LaneDims; ++i)
      sts16(C::kRotated + (slot * S::Rows + r) * C::HalfStride + (lane * LaneDims + i) * 2, __half_as_ushort(__float2half_rn(o[i] * unit)));
    if (p.lse && r < rows()) write_lse(pair_word(slot, 0), pair_word(slot, 1), r, m, l);
  }
  __device__ __forceinline__ float* partial_row(int index, int r) const {
    return p.partial + (std::int64_t)index * C::PartialFloats + r * D + lane * LaneDims;
  }
  __device__ __forceinline__ float2* partial_sums(int index, int r) const {
    return reinterpret_cast<float2*>(p.partial + (std::int64_t)index * C::PartialFloats + S::Rows * D) + r;
  }

  /// Merges the states of the block, a warp a row: finished rows to shared memory, rows of pairs that span blocks to the workspace.
  __device__ __forceinline__ void merge_states(int pairs, int partial_first, int partial_last) const {
#pragma unroll 1
    for (int row = warp; row < pairs * S::Rows; row += kWarps) {
      const int slot = row / S::Rows, r = row % S::Rows;
      const bool mine = lane < C::States && (int)lds32(C::kStateSlot + min(lane, C::States - 1) * 4) == slot;
      float m = kMaskedMax, l = 0.f;
      if (mine) {
        const std::uint32_t at = C::state(lane) + S::Rows * C::RowStride + r * 8;
        m = lds_f32(at);
        l = lds_f32(at + 4);
      }
      float top = m;
#pragma unroll
      for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
      const float weight = mine ? exp2_fast(m - top) : 0.f;
      float sum = l * weight;
#pragma unroll
      for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
      float out[LaneDims] = {};
      unsigned states = __ballot_sync(~0u, mine);
      while (states) {
        const int i = __ffs(states) - 1;
        states &= states - 1;
        const float w = __shfl_sync(~0u, weight, i);
        float v[LaneDims];
        load_floats(C::state(i) + r * C::RowStride + lane * LaneDims * 4, v);
#pragma unroll
        for (int k = 0; k < LaneDims; ++k) out[k] += w * v[k];
      }
      if (slot != partial_first && slot != partial_last) {
        finish_row(slot, r, top, sum, out);
        continue;
      }
      const int index = 2 * blockIdx.x + (slot == partial_first ? 0 : 1);  // a block has at most two partial pairs: its first and its last
#pragma unroll
      for (int k = 0; k < LaneDims; ++k) __stcg(partial_row(index, r) + k, out[k]);
      if (lane == 0) __stcg(partial_sums(index, r), make_float2(top, sum));
    }
  }
  /// Merges a pair's parts from the workspace: of blocks first_block .. first_block + parts - 1.
  __device__ __forceinline__ void merge_parts(int slot, int first_block, int parts, bool first_is_opening) const {
    const auto index = [&](int k) { return 2 * (first_block + k) + (k == 0 && !first_is_opening ? 1 : 0); };
#pragma unroll 1
    for (int r = warp; r < min(rows(), S::Rows); r += kWarps) {
      float top = kMaskedMax, sum = 0.f, out[LaneDims] = {};
#pragma unroll 1
      for (int k0 = 0; k0 < parts; k0 += 32) {
        const int count = min(parts - k0, 32);
        float2 ml = make_float2(kMaskedMax, 0.f);
        if (lane < count) ml = __ldcg(partial_sums(index(k0 + lane), r));
        float next = fmaxf(top, ml.x);
#pragma unroll
        for (int o = 16; o; o >>= 1) next = fmaxf(next, __shfl_xor_sync(~0u, next, o));
        const float old = exp2_fast(top - next);
        top = next;
        const float weight = lane < count ? exp2_fast(ml.x - next) : 0.f;
        float s = ml.y * weight;
#pragma unroll
        for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
        sum = sum * old + s;
#pragma unroll
        for (int i = 0; i < LaneDims; ++i) out[i] *= old;
#pragma unroll 1
        for (int k1 = 0; k1 < count; k1 += 8) {
          float v[8][LaneDims];
#pragma unroll
          for (int i = 0; i < 8; ++i) {  // past the last part: that part again, with weight 0
            const float* row = partial_row(index(k0 + min(k1 + i, count - 1)), r);
            if constexpr (LaneDims % 4 == 0) {
#pragma unroll
              for (int d = 0; d < LaneDims; d += 4) {
                const float4 four = __ldcg(reinterpret_cast<const float4*>(row + d));
                v[i][d] = four.x, v[i][d + 1] = four.y, v[i][d + 2] = four.z, v[i][d + 3] = four.w;
              }
            } else {
#pragma unroll
              for (int d = 0; d < LaneDims; ++d) v[i][d] = __ldcg(row + d);
            }
          }
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float w = __shfl_sync(~0u, weight, min(k1 + i, 31));
#pragma unroll
            for (int d = 0; d < LaneDims; ++d) out[d] += (k1 + i < count ? w : 0.f) * v[i][d];
          }
        }
      }
      finish_row(slot, r, top, sum, out);
    }
  }

  /// One more part of the pair is in the workspace: whether it was the last one.
  __device__ __forceinline__ bool count_part(const Plan& plan, const Pair& pair) const {
    const int parts = divide(pair.end() - 1, plan.length) - divide(pair.begin, plan.length) + 1;
    std::uint32_t* counter = p.counters + pair.seq * p.num_kv_heads + pair.head;
    const std::uint32_t before = count_acq_rel(counter);  // releases this block's part (ordered by the barrier) and acquires the others'
    if (before + 1 != (std::uint32_t)parts) return false;
    *counter = 0;
    return true;
  }
  /// The states of a round become outputs of its pairs, or parts of the two that span blocks: the first of the piece and its last.
  __device__ __forceinline__ void finish_round(const Plan& plan, bool first_round, bool last_round, int pairs) {
    const Pair first = pair_at(0), last = pair_at(pairs - 1);
    const bool opens = first_round && (first.begin < plan.begin || first.end() > plan.end);
    const bool closes = last_round && last.end() > plan.end && !(first_round && pairs == 1);
    merge_states(pairs, opens ? 0 : -1, closes ? pairs - 1 : -1);
    __syncthreads();
    if (opens || closes) {
      if (warp == 0) {  // both counters at once, a lane each
        const bool mine = lane == 0 ? opens : lane == 1 && closes;
        if (mine) sts32(C::kPairTable + (lane == 0 ? 0 : pairs - 1) * 32 + 8, count_part(plan, lane == 0 ? first : last));
      }
      __syncthreads();
      bool merged = false;
      for (int i = 0; i < 2; ++i) {
        const int slot = i == 0 ? 0 : pairs - 1;
        if (!(i == 0 ? opens : closes) || !pair_word(slot, 2)) continue;
        const Pair& pair = i == 0 ? first : last;
        const int first_block = divide(pair.begin, plan.length);
        merge_parts(slot, first_block, divide(pair.end() - 1, plan.length) - first_block + 1, pair.begin == first_block * plan.length);
        merged = true;
      }
      if (merged) __syncthreads();
    }
    write_outputs(pairs);
  }
};

}  // namespace tq4::gpu::fused
