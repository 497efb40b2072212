// The end of a round of the fused kernel: the warps' states become the outputs of pairs that lie in the block, or parts in the workspace of
// those that span blocks, which the block that brings the last part merges. All by log-sum-exp.
#pragma once

#include "cuda/decode_attention/fused_rotate.cuh"

namespace tq4::gpu::fused {

__device__ __forceinline__ float warp_max(float x) {  // as integers of the same order: one instruction
  const int i = __float_as_int(x), j = __reduce_max_sync(~0u, i ^ (i >> 31 & 0x7fffffff));
  return __int_as_float(j ^ (j >> 31 & 0x7fffffff));
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

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
  /// Part `index` of the workspace: [Rows, D] accumulators, then [Rows] (max, sum).
  __device__ __forceinline__ float* part(int index) const { return p.partial + (std::int64_t)index * C::PartialFloats; }
  static constexpr int LaneDims = D / 32;  // dims of a row a lane merges in merge_states

  /// Merges the states of the block, a warp a row: finished rows to shared memory (normalised, for the rotation), rows of pairs that span blocks to
  /// the workspace. Every instruction here is issued by all warps of the block: few and wide ones.
  __device__ __forceinline__ void merge_states(int pairs, int partial_first, int partial_last) const {
#pragma unroll 1
    for (int row = warp; row < pairs * S::Rows; row += kWarps) {
      const int slot = row / S::Rows, r = row % S::Rows;
      const int state = lane < kWarps ? lane : kWarps + slot;  // lane kWarps: the warp in which the pair ends
      const bool mine = lane <= kWarps && (int)lds32(C::kStateSlot + state * 4) == slot;
      float m = kMaskedMax, l = 0.f;
      if (mine) {
        const std::uint32_t at = C::state(state) + S::Rows * C::RowStride + r * 8;
        m = lds_f32(at);
        l = lds_f32(at + 4);
      }
      const float top = warp_max(m);
      const float weight = mine ? exp2_fast(m - top) : 0.f;
      const unsigned states = __ballot_sync(~0u, mine);
      const std::uint32_t at = r * C::RowStride + lane * LaneDims * 4;
      float out[LaneDims] = {};
#pragma unroll
      for (int i = 0; i <= kWarps; ++i) {
        if (states >> i & 1) {
          float v[LaneDims];
          load_floats((i < kWarps ? C::state(i) : C::state(kWarps + slot)) + at, v);
          const float w = __shfl_sync(~0u, weight, i);
#pragma unroll
          for (int k = 0; k < LaneDims; ++k) out[k] += w * v[k];
        }
      }
      const float sum = warp_sum(l * weight);
      if (slot != partial_first && slot != partial_last) {
        const float unit = sum > 0.f ? 1.f / sum : 0.f;
#pragma unroll
        for (int k = 0; k < LaneDims; ++k)
          sts16(C::kRotated + row * C::HalfStride + (lane * LaneDims + k) * 2, __half_as_ushort(__float2half_rn(out[k] * unit)));
        if (p.lse && r < rows()) write_lse(pair_word(slot, 0), pair_word(slot, 1), r, top, sum);
        continue;
      }
      float* to = part(2 * blockIdx.x + (slot == partial_first ? 0 : 1));  // a block has at most two partial pairs: its first and its last
      store_floats(to + r * D + lane * LaneDims, out);
      if (lane == 0) __stcg(reinterpret_cast<float2*>(to + S::Rows * D) + r, make_float2(top, sum));
    }
  }
  /// Merges a pair's parts from the workspace. A warp takes 32 dims of a row, a lane one, so that all parts are asked for at once.
  __device__ __forceinline__ void merge_parts(int slot) const {
    constexpr int Chunks = D / 32, Batch = 24;
    const int first = pair_word(slot, 6), parts = pair_word(slot, 7);
    const float* opening = part(first);
    const float* others = part(first & ~1);  // part k > 0 is the first of its block
#pragma unroll 1
    for (int job = warp; job < min(rows(), S::Rows) * Chunks; job += kWarps) {
      const int r = job / Chunks, dim = job % Chunks * 32 + lane;
      float top = kMaskedMax, sum = 0.f, out = 0.f;
#pragma unroll 1
      for (int k0 = 0; k0 < parts; k0 += Batch) {
        const int count = min(parts - k0, Batch);
        const float* base = others + k0 * 2 * C::PartialFloats;
        float2 ml = make_float2(kMaskedMax, 0.f);
        if (lane < count)
          ml = __ldcg(reinterpret_cast<const float2*>((k0 + lane ? base + lane * 2 * C::PartialFloats : opening) + S::Rows * D) + r);
        float v[Batch];
#pragma unroll
        for (int j = 0; j < Batch; j += 4) {
          if (j < count) {
#pragma unroll
            for (int i = j; i < j + 4; ++i)
              v[i] = i < count ? __ldcg((i == 0 && k0 == 0 ? opening : base + i * 2 * C::PartialFloats) + r * D + dim) : 0.f;
          }
        }
        const float next = fmaxf(top, warp_max(ml.x));
        const float old = exp2_fast(top - next);
        top = next;
        const float weight = lane < count ? exp2_fast(ml.x - next) : 0.f;
        out *= old;
#pragma unroll
        for (int j = 0; j < Batch; j += 4) {
          if (j < count) {
#pragma unroll
            for (int i = j; i < j + 4; ++i) out += __shfl_sync(~0u, weight, i) * v[i];
          }
        }
        sum = sum * old + warp_sum(ml.y * weight);
      }
      sts16(C::kRotated + (slot * S::Rows + r) * C::HalfStride + dim * 2, __half_as_ushort(__float2half_rn(sum > 0.f ? out / sum : 0.f)));
      if (p.lse && dim < 32) write_lse(pair_word(slot, 0), pair_word(slot, 1), r, top, sum);
    }
  }

  /// One more part of the pair is in the workspace: whether it was the last one.
  __device__ __forceinline__ bool count_part(int slot) const {
    std::uint32_t* counter = p.counters + pair_word(slot, 0) * p.num_kv_heads + pair_word(slot, 1);
    const std::uint32_t before = count_acq_rel(counter);  // releases this block's part (ordered by the barrier) and acquires the others'
    if (before + 1 != (std::uint32_t)pair_word(slot, 7)) return false;
    *counter = 0;
    return true;
  }
  /// The states of a round become outputs of its pairs, or parts of the two that span blocks: the first of the piece and its last.
  __device__ __forceinline__ void finish_round(const Round& round) const {
    const int pairs = round.pairs, last = pairs - 1;
    const bool opens = round.first() && (pair_word(0, 4) < round.plan.begin || pair_word(0, 4) + pair_word(0, 5) > round.plan.end);
    const bool closes = round.last() && pair_word(last, 4) + pair_word(last, 5) > round.plan.end && !(round.first() && pairs == 1);
    merge_states(pairs, opens ? 0 : -1, closes ? last : -1);
    __syncthreads();
    if (opens || closes) {
      if (warp == 0 && (lane == 0 ? opens : lane == 1 && closes)) {  // both counters at once, a lane each
        const int slot = lane == 0 ? 0 : last;
        sts32(C::kPairTable + slot * 32 + 8, count_part(slot));
      }
      __syncthreads();
      bool merged = false;
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const int slot = i == 0 ? 0 : last;
        if (!(i == 0 ? opens : closes) || !pair_word(slot, 2)) continue;
        merge_parts(slot);
        merged = true;
      }
      if (merged) __syncthreads();
    }
    if (__any_sync(~0u, lane < pairs && pair_word(lane, 2))) write_outputs(pairs);
  }
};

}  // namespace tq4::gpu::fused
