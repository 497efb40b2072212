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
  using typename Base::Rotate;
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
  static constexpr int LaneDims = D / 32;  // dims of a row a lane merges when a warp takes a whole row

  // A row is merged by one warp, or, where rows are few, in pieces of 32 dims by several: Dims = dims a lane takes, LaneDims or 1.
  template <int Dims>
  struct Piece {
    int row, column;  // the lane's first dim
    __device__ __forceinline__ Piece(int job, int lane)
        : row(job / (LaneDims / Dims)), column((job % (LaneDims / Dims) * 32 + lane) * Dims) {}
    __device__ __forceinline__ bool first() const { return column < 32 * Dims; }
  };
  static constexpr int kPieceDims = S::Rows * LaneDims <= kWarps ? 1 : LaneDims;  // where only the rows of one pair are merged

  /// A finished row (or piece): normalised to shared memory, for the rotation.
  template <int Dims>
  __device__ __forceinline__ void finish_row(int slot, int r, const Piece<Dims>& piece, float m, float l, const float (&o)[Dims]) const {
    const float unit = l > 0.f ? 1.f / l : 0.f;
#pragma unroll
    for (int i = 0; i < Dims; ++i)
      sts16(C::kRotated + (slot * S::Rows + r) * C::HalfStride + (piece.column + i) * 2, __half_as_ushort(__float2half_rn(o[i] * unit)));
    if (p.lse && r < rows() && piece.first()) write_lse(pair_word(slot, 0), pair_word(slot, 1), r, m, l);
  }
  __device__ __forceinline__ float* partial_row(int index, int r) const {
    return p.partial + (std::int64_t)index * C::PartialFloats + r * D;
  }
  __device__ __forceinline__ float2* partial_sums(int index, int r) const {
    return reinterpret_cast<float2*>(p.partial + (std::int64_t)index * C::PartialFloats + S::Rows * D) + r;
  }
  /// Weights of up to 32 softmax states (max and sum m, l; a lane each) for their merge: the lane's weight, relative to the highest of them
  /// and of `floor`; that maximum and the sum.
  __device__ __forceinline__ static float merge_weights(float m, float l, float floor, float& top, float& sum) {
    top = fmaxf(m, floor);
#pragma unroll
    for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    const float weight = exp2_fast(m - top);
    sum = l * weight;
#pragma unroll
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    return weight;
  }

  /// Merges the states that the block's warps left in shared memory; take(slot, row, piece, m, l, o) gets every row of the round.
  template <int Dims, class Take>
  __device__ __forceinline__ void merge_states(int pairs, Take&& take) const {
#pragma unroll 1
    for (int job = warp; job < pairs * S::Rows * (LaneDims / Dims); job += kWarps) {
      const Piece<Dims> piece(job, lane);
      const int slot = piece.row / S::Rows, r = piece.row % S::Rows;
      const bool mine = lane < C::States && (int)lds32(C::kStateSlot + min(lane, C::States - 1) * 4) == slot;
      float m = kMaskedMax, l = 0.f;
      if (mine) {
        const std::uint32_t at = C::state(lane) + S::Rows * C::RowStride + r * 8;
        m = lds_f32(at);
        l = lds_f32(at + 4);
      }
      float top, sum;
      const float weight = merge_weights(m, l, kMaskedMax, top, sum);
      float out[Dims] = {};
      unsigned states = __ballot_sync(~0u, mine);
      while (states) {  // four at a time, so that their loads overlap
        float v[4][Dims], w[4];
        int i = 0;
#pragma unroll
        for (int u = 0; u < 4; ++u) {  // past the last state: that state again, with weight 0
          const bool more = states != 0;
          if (more) i = __ffs(states) - 1;
          states &= states - 1;
          const float other = __shfl_sync(~0u, weight, i);
          w[u] = more ? other : 0.f;
          load_floats(C::state(i) + r * C::RowStride + piece.column * 4, v[u]);
        }
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
          for (int k = 0; k < Dims; ++k) out[k] += w[u] * v[u][k];
      }
      take(slot, r, piece, top, sum, out);
    }
  }
  /// merge_states with finished rows to shared memory and rows of pairs that span blocks to the workspace.
  __device__ __forceinline__ void merge_round(int pairs, int partial_first, int partial_last) const {
    constexpr int Dims = LaneDims;
    merge_states<Dims>(pairs, [&](int slot, int r, const Piece<Dims>& piece, float m, float l, const float(&o)[Dims]) {
      if (slot != partial_first && slot != partial_last) {
        finish_row<Dims>(slot, r, piece, m, l, o);
        return;
      }
      const int index = 2 * blockIdx.x + (slot == partial_first ? 0 : 1);  // a block has at most two partial pairs: its first and its last
#pragma unroll
      for (int k = 0; k < Dims; ++k) __stcg(partial_row(index, r) + piece.column + k, o[k]);
      if (piece.first() && lane == 0) __stcg(partial_sums(index, r), make_float2(m, l));
    });
  }
  template <int Dims>
  __device__ __forceinline__ static void load_global(const float* at, float (&v)[Dims]) {
    if constexpr (Dims % 4 == 0) {
#pragma unroll
      for (int d = 0; d < Dims; d += 4) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(at + d));
        v[d] = four.x, v[d + 1] = four.y, v[d + 2] = four.z, v[d + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int d = 0; d < Dims; ++d) v[d] = __ldcg(at + d);
    }
  }
  /// Merges a pair's parts from the workspace: of blocks first_block .. first_block + parts - 1.
  template <int Dims>
  __device__ __forceinline__ void merge_parts(int slot, int first_block, int parts, bool first_is_opening) const {
    constexpr int kAtOnce = 8;
    const auto index = [&](int k) { return 2 * (first_block + k) + (k == 0 && !first_is_opening ? 1 : 0); };
#pragma unroll 1
    for (int job = warp; job < min(rows(), S::Rows) * (LaneDims / Dims); job += kWarps) {
      const Piece<Dims> piece(job, lane);
      const int r = piece.row;
      float top = kMaskedMax, sum = 0.f, out[Dims] = {};
#pragma unroll 1
      for (int k0 = 0; k0 < parts; k0 += 32) {
        const int count = min(parts - k0, 32);
        float2 ml = make_float2(kMaskedMax, 0.f);
        if (lane < count) ml = __ldcg(partial_sums(index(k0 + lane), r));
        float v[kAtOnce][Dims];
        const auto ask = [&](int k1) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i)  // past the last part: that part again, with weight 0
            load_global(partial_row(index(k0 + min(k1 + i, count - 1)), r) + piece.column, v[i]);
        };
        ask(0);  // on their way while the weights are worked out
        float next, s;
        const float weight = merge_weights(ml.x, lane < count ? ml.y : 0.f, top, next, s);
        const float old = exp2_fast(top - next);
        top = next;
        sum = sum * old + s;
#pragma unroll
        for (int i = 0; i < Dims; ++i) out[i] *= old;
#pragma unroll 1
        for (int k1 = 0;;) {
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const float w = __shfl_sync(~0u, weight, min(k1 + i, 31));
#pragma unroll
            for (int d = 0; d < Dims; ++d) out[d] += (k1 + i < count ? w : 0.f) * v[i][d];
          }
          if ((k1 += kAtOnce) >= count) break;
          ask(k1);
        }
      }
      finish_row<Dims>(slot, r, piece, top, sum, out);
    }
  }

  /// Which blocks have parts of the round's first and last pair, worked out while tiles are on their way: words 6 and 7 of the pair table.
  __device__ __forceinline__ void note_blocks(const Plan& plan, int pairs) const {
    if (warp != kWarps - 1 || lane > 1) return;
    const int slot = lane == 0 ? 0 : pairs - 1;
    const Pair pair = pair_at(slot);
    const int first_block = divide(pair.begin, plan.length);
    sts32(C::kPairTable + slot * 32 + 24, first_block);
    sts32(C::kPairTable + slot * 32 + 28, divide(pair.end() - 1, plan.length) - first_block + 1);
  }
  /// One more part of the pair is in the workspace: whether it was the last one.
  __device__ __forceinline__ bool count_part(int slot) const {
    std::uint32_t* counter = p.counters + pair_word(slot, 0) * p.num_kv_heads + pair_word(slot, 1);
    // Releases this block's part (ordered by the barrier) and acquires the others'.
    if ((int)count_acq_rel(counter) + 1 != pair_word(slot, 7)) return false;
    *counter = 0;
    return true;
  }
  /// The states of a round become outputs of its pairs, or parts of the two that span blocks: the first of the piece and its last.
  __device__ __forceinline__ void finish_round(const Plan& plan, bool first_round, bool last_round, int pairs) const {
    const Pair first = pair_at(0), last = pair_at(pairs - 1);
    const bool opens = first_round && (first.begin < plan.begin || first.end() > plan.end);
    const bool closes = last_round && last.end() > plan.end && !(first_round && pairs == 1);
    merge_round(pairs, opens ? 0 : -1, closes ? pairs - 1 : -1);
    __syncthreads();
    if (opens || closes) {
      if (warp == 0) {  // both counters at once, a lane each
        const bool mine = lane == 0 ? opens : lane == 1 && closes;
        const int slot = lane == 0 ? 0 : pairs - 1;
        if (mine) sts32(C::kPairTable + slot * 32 + 8, count_part(slot));
      }
      __syncthreads();
      bool merged = false;
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        const int slot = i == 0 ? 0 : pairs - 1;
        if (!(i == 0 ? opens : closes) || !pair_word(slot, 2)) continue;
        const int first_block = pair_word(slot, 6);
        const bool first_is_opening = (i == 0 ? first : last).begin == first_block * plan.length;
        merge_parts<kPieceDims>(slot, first_block, pair_word(slot, 7), first_is_opening);
        merged = true;
      }
      if (merged) __syncthreads();
    }
  }
  /// The states of the blocks of a cluster, which share one pair, become its output in the first of them.
  __device__ __forceinline__ void finish_cluster(Rotate& rotate) const {
    constexpr std::uint32_t kState = C::kPairStates;  // the block's own merged state
    merge_states<kPieceDims>(1, [&](int, int r, const auto& piece, float m, float l, const auto& o) {
      constexpr int kDims = sizeof(o) / sizeof(float);
#pragma unroll
      for (int k = 0; k < kDims; ++k) sts32(kState + r * C::RowStride + (piece.column + k) * 4, __float_as_uint(o[k]));
      if (piece.first() && lane == 0) {
        sts32(kState + S::Rows * C::RowStride + r * 8, __float_as_uint(m));
        sts32(kState + S::Rows * C::RowStride + r * 8 + 4, __float_as_uint(l));
      }
    });
    cluster_arrive();
    cluster_wait();
    if (cluster_rank() == 0) {
      const int blocks = cluster_blocks();
#pragma unroll 1
      for (int job = warp; job < min(rows(), S::Rows) * LaneDims; job += kWarps) {
        const Piece<1> piece(job, lane);
        const std::uint32_t row = kState + piece.row * C::RowStride + piece.column * 4;
        float v[kMaxCluster];
#pragma unroll
        for (int i = 0; i < kMaxCluster; ++i) v[i] = lds_cluster(row, min(i, blocks - 1));
        const std::uint32_t sums = kState + S::Rows * C::RowStride + piece.row * 8;
        float m = kMaskedMax, l = 0.f, top, sum, out[1] = {};
        if (lane < blocks) m = lds_cluster(sums, lane), l = lds_cluster(sums + 4, lane);
        const float weight = merge_weights(m, l, kMaskedMax, top, sum);
#pragma unroll
        for (int i = 0; i < kMaxCluster; ++i) out[0] += (i < blocks ? __shfl_sync(~0u, weight, i) : 0.f) * v[i];
        finish_row<1>(0, piece.row, piece, top, sum, out);
      }
      cluster_arrive();  // the others may leave
      __syncthreads();
      write_outputs(rotate, 1);
    } else {
      cluster_arrive();
    }
    cluster_wait();
  }
};

}  // namespace tq4::gpu::fused
