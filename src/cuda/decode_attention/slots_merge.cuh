// The end of a sequence in a block of the slots kernel: the states that the warps of a head have of it become outputs, merged with the
// parts that blocks before left in the workspace (parts.cuh), or such a part. All by log-sum-exp, a warp a row, a lane D / 32 dims of it.
// Values of these layouts are not rotated: a merged row is the output. Other heads and the ring of units do not wait for it. A sequence
// that began in lower blocks and ends in the middle of the piece waits for their parts at the end of the piece only, or every block would
// wait for the one before it. As a unit is all heads, one long sequence has a part from every block: every kFan-th of its blocks first
// merges the ones before it, so that none reads all of many.
#pragma once

#include "cuda/decode_attention/fused_config.cuh"
#include "cuda/decode_attention/parts.cuh"
#include "cuda/decode_attention/slots_feed.cuh"

namespace tq4::gpu::fused {

template <class C>
struct SlotMerge : SlotFeed<C> {
  using Base = SlotFeed<C>;
  using Base::g;
  using Base::lane;
  using Base::p;
  using Base::rows;
  using Base::t;
  using Base::warp;
  using S = typename C::S;
  using Value = typename C::Value;
  static constexpr int D = C::D;
  static constexpr int LaneDims = D / 32;
  static constexpr int kFan = 8;  // parts at a time, and a leader every so many blocks of a sequence

  using Base::Base;

  // States on their way between the warps of a head, 4 rows of a warp at a time: row 4 * warp + slot of D floats in units of the values,
  // and of each its largest logit (log2) and the sum of its weights.

  __device__ __forceinline__ static std::uint32_t state_at(int row, int dim) {
    const int word = row * D + (dim ^ ((row & 1) * 4 + (row & 2) * 8));  // no two lanes meet in a bank
    return C::kStates + (C::kHoles ? word / 32 * 256 + word % 32 * 4 : word * 4);
  }
  /// Of row `row` of this warp's queries (fp16, 4 dims beside each other) on their way between its lanes, in the same place: where dim
  /// `dim` lies.
  __device__ __forceinline__ std::uint32_t query_word(int row, int dim) const {
    const int word = warp * 4 * D + row * (D / 2) + ((dim ^ ((row & 1) * 32 + (row & 2) * 2)) >> 1);
    return C::kStates + (C::kHoles ? word / 32 * 256 + word % 32 * 4 : word * 4);
  }
  template <int Pass>
  __device__ __forceinline__ void write_rows(const RowState<S>& st, bool v_odd) const {
    constexpr int n = Pass / 2, c = Pass % 2;
    if (S::row(t, Pass) >= rows()) return;
    const float unit = st.v_unit > 0.f ? 1.f / st.v_unit : 0.f;
#pragma unroll
    for (int i = 0; i < D / 32; ++i) {
      float out[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int pair = Value::chunk_pair(i, j), second = Value::chunk_second(i, j);
        const float o = S::Packed ? st.o[0][0][pair / 2][pair % 2 * 2 + second] : st.o[n][second][pair / 2][pair % 2 * 2 + c];
        out[j] = o * (unit * Value::unit(pair)) + st.z[Pass];
      }
      sts128(state_at(warp * 4 + t, Value::chunk_dim(g, i, v_odd)), out[0], out[1], out[2], out[3]);
    }
    if (g == 0) {
      sts32(C::kSums + (warp * 4 + t) * 8, __float_as_uint(st.m[Pass]));
      sts32(C::kSums + (warp * 4 + t) * 8 + 4, __float_as_uint(st.l[Pass]));
    }
  }

  using Row = MergedRow<LaneDims>;
  /// The states that the groups have of a row.
  __device__ __forceinline__ Row add_states(int head, int slot) const {
    const bool mine = lane < p.groups;
    const std::uint32_t at = C::kSums + ((mine ? lane * p.heads : 0) + head) * 32 + slot * 8;
    const float m = lds_f32(at), l = lds_f32(at + 4);
    Row sum{mine ? m : kMaskedMax, 0.f, {}};
#pragma unroll
    for (int o = 8; o; o >>= 1) sum.m = fmaxf(sum.m, __shfl_xor_sync(~0u, sum.m, o));
    sum.m = __shfl_sync(~0u, sum.m, 0);
    const float weight = mine ? exp2_fast(m - sum.m) : 0.f;
    sum.l = mine ? l * weight : 0.f;
#pragma unroll
    for (int o = 8; o; o >>= 1) sum.l += __shfl_xor_sync(~0u, sum.l, o);
    sum.l = __shfl_sync(~0u, sum.l, 0);
#pragma unroll 2
    for (int e = 0; e < p.groups; ++e) {
      const int row = (e * p.heads + head) * 4 + slot;
      const float w = __shfl_sync(~0u, weight, e);
#pragma unroll
      for (int d = 0; d < LaneDims; d += 4) {
        float v[LaneDims < 4 ? LaneDims : 4];
        load_floats(state_at(row, lane * LaneDims + d), v);
#pragma unroll
        for (int k = 0; k < (LaneDims < 4 ? LaneDims : 4); ++k) sum.o[d + k] += w * v[k];
      }
    }
    return sum;
  }

  __device__ __forceinline__ std::uint32_t* part(int block) const { return p.parts + (std::int64_t)block * p.part_words; }
  __device__ __forceinline__ std::uint32_t* part_row(int block, int row) const { return part(block) + row * D + lane * LaneDims; }
  __device__ __forceinline__ std::uint32_t* part_sums(int block, int row) const { return part(block) + p.heads * rows() * D + 2 * row; }
  __device__ __forceinline__ void write_output(int seq, int head, int row, const Row& sum) const {
    const int token = row * p.group_reciprocal >> 16;
    const std::int64_t to = ((std::int64_t)seq * p.q_len + token) * (p.heads * p.group) + head * p.group + row - token * p.group;
    const float unit = sum.l > 0.f ? 1.f / sum.l : 0.f;
    std::uint32_t* out = static_cast<std::uint32_t*>(p.out) + (to * D + lane * LaneDims) / 2;
#pragma unroll
    for (int d = 0; d < LaneDims; d += 2)
      out[d / 2] = p.q_is_bf16 ? bf16x2_bits(sum.o[d] * unit, sum.o[d + 1] * unit) : pack_half2(sum.o[d] * unit, sum.o[d + 1] * unit);
    if (lane == 0 && p.lse) p.lse[to] = sum.l > 0.f ? (sum.m + log2f(sum.l)) * 0.69314718056f : -INFINITY;
  }

  /// Where a block keeps its rows of the sequence with which its piece begins until it may wait for lower blocks; values of this lane.
  __device__ __forceinline__ float* opening_row(int row) const {
    return p.openings + (std::int64_t)blockIdx.x * p.part_words + row * D + lane * LaneDims;
  }
  __device__ __forceinline__ float* opening_sums(int row) const {
    return p.openings + (std::int64_t)blockIdx.x * p.part_words + p.heads * rows() * D + 2 * row;
  }

  /// What a row of the sequence that begins at unit `begin`, in lower blocks, lacks: their parts.
  __device__ __forceinline__ void add_lower(const Plan& plan, int begin, bool ends, int row, Row& sum) const {
    const int first = divide(begin, (int)lds32(C::kOpening)), before = blockIdx.x - first;
    const int led = before / kFan * kFan;  // of the blocks before, so many have a leader
#pragma unroll 1
    for (int leaders = 0; leaders <= ends; ++leaders) {
      if (!ends && before % kFan != kFan - 1) return;
      add_parts<kFan>(
          first + (leaders ? kFan - 1 : led), leaders ? first + led : blockIdx.x, leaders ? kFan : 1, lane, sum,
          [&](int block) { return part_row(block, row); }, [&](int block) { return part_sums(block, row); });
    }
  }

  /// The warps of a head wait for each other.
  __device__ __forceinline__ void meet(int head) const {
    if (p.groups > 1) {
      named_barrier_sync(1 + head, p.groups * 32);
    } else {
      __syncwarp();
    }
  }

  /// A warp is through with its units of a sequence.
  __device__ __forceinline__ void finish(RowState<S>& st, const Plan& plan, const Pair& pair, int head, int group, bool v_odd) const {
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r)
#pragma unroll
      for (int o = 4; o < 32; o <<= 1) {
        st.l[r] += __shfl_xor_sync(~0u, st.l[r], o);
        st.z[r] += __shfl_xor_sync(~0u, st.z[r], o);
      }
#pragma unroll 1
    for (int pass = 0; pass < S::LaneRows; ++pass) {
      if (pass > 0) meet(head);  // what was there has been read
      if (pass == 0) {
        write_rows<0>(st, v_odd);
      } else {
        write_rows<S::LaneRows - 1>(st, v_odd);
      }
      meet(head);
#pragma unroll 1
      for (int slot = group; slot < 4; slot += p.groups) {
        const int row = S::row(slot, pass), i = head * rows() + row;
        if (row >= rows()) continue;
        Row sum = add_states(head, slot);
        const bool begins = pair.begin >= plan.begin, ends = pair.end() <= plan.end;
        if (!begins && ends && pair.end() < plan.end) {
#pragma unroll
          for (int d = 0; d < LaneDims; ++d) opening_row(i)[d] = sum.o[d];
          if (lane == 0) opening_sums(i)[0] = sum.m, opening_sums(i)[1] = sum.l;
          continue;
        }
        if (!begins) add_lower(plan, pair.begin, ends, i, sum);
        if (ends) {
          write_output(pair.seq, head, row, sum);
        } else {
          write_part(sum, lane, part_row(blockIdx.x, i), part_sums(blockIdx.x, i));
        }
      }
    }
  }
  /// A warp is through with the piece: rows that had to wait become outputs.
  __device__ __forceinline__ void finish_opening(const Plan& plan, int head, int group) const {
    int length, seq, begin, end;
    lds128_ordered<0>(C::kOpening, length, seq, begin, end);
    if (begin >= plan.begin || end >= plan.end) return;
    __syncwarp();
#pragma unroll 1
    for (int pass = 0; pass < S::LaneRows; ++pass)
#pragma unroll 1
      for (int slot = group; slot < 4; slot += p.groups) {
        const int row = S::row(slot, pass), i = head * rows() + row;
        if (row >= rows()) continue;
        Row sum{opening_sums(i)[0], opening_sums(i)[1], {}};
#pragma unroll
        for (int d = 0; d < LaneDims; ++d) sum.o[d] = opening_row(i)[d];
        add_lower(plan, begin, true, i, sum);
        write_output(seq, head, row, sum);
      }
  }
};

}  // namespace tq4::gpu::fused
