// What a warp of the fused kernel does with the units in its ring: queries as operands, tiles of compressed tokens, rows of exact ones. The arithmetic between
// registers is fused_tile.cuh and fused_tall.cuh; which unit comes when is the kernel's.
#pragma once

#include "cuda/decode_attention/fused_merge.cuh"

namespace tq4::gpu::fused {

template <class C>
struct Units : Merges<C> {
  using Base = Merges<C>;
  using Base::D;
  using Base::g;
  using Base::lane;
  using Base::p;
  using Base::rows;
  using Base::t;
  using Base::warp;
  using typename Base::S;
  using Key = typename C::Key;
  using Value = typename C::Value;
  using Base::Base;

  std::uint32_t lane_base = 0;                           // this lane's column of the tables
  std::uint32_t key_at = 0, value_at = 0, scale_at = 0;  // what this lane reads of a tile
  std::uint32_t odd_g = 0;                               // whether g is odd, where tiles are read in turned order

  /// What a lane needs for every tile stays in a register (opaque) instead of being worked out again each time.
  __device__ __forceinline__ static std::uint32_t kept(std::uint32_t v) { return C::MemoryBound ? v : opaque(v); }

  /// Queries of one pair as B fragments.
  __device__ __forceinline__ void query_fragments(int slot, QueryFragments<S>& q) const {
    // Tall: words of two rows take turns as operand A. Without something done to them they would stay where the loads put them and be moved at every tile.
    const std::uint32_t zero = S::Tall ? lds32(C::kRound + 24) >> 31 : 0;  // of Round::number
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n) {
      const int row = slot * S::Rows + (S::Packed ? g / 2 : n * 8 + g);
      const bool live = !S::Packed || g % 2 == 0;
#pragma unroll
      for (int i = 0; i < S::Steps; i += 2) {  // 4 pairs of a chunk lie together
        std::uint32_t v[4];
        lds128(C::half_at(C::kRotated, row, KeyOrder<D>::dim(0, 2 * i) + t * KeyOrder<D>::kChunk), v);
#pragma unroll
        for (int e = 0; e < 4; ++e) q.b[n][i + e / 2][e % 2] = live ? S::Tall ? v[e] ^ zero : v[e] : 0;
      }
    }
  }
  /// N tiles of compressed tokens, already in shared memory at `at`. edge: whether one of them needs a mask. Raw codes go to registers first, so that `refill` can
  /// reuse their slots.
  template <int N, class Refill>
  __device__ __forceinline__ void compressed_tiles(RowState<S>& st, const QueryFragments<S>& q, const std::uint32_t (&at)[N], int seq_len,
                                                   int first, bool edge, std::uint32_t select0, std::uint32_t select1, Refill&& refill) {
    const bool turned = odd_g != 0;
    typename Key::Raw k[N];
    typename Value::Raw v[N];
    float k_scale[N][2], v_scale[N][2], v_zero[N][2] = {}, s[N][2][S::LaneRows];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Key::load(k[n], at[n] + key_at, turned);
      std::uint32_t scales[2];
      lds64(at[n] + scale_at, scales);
      if constexpr (!C::ValuesLate) Value::load(v[n], at[n] + value_at, turned);
      if constexpr (Value::kZero) {
        const std::uint32_t zeros = lds32(at[n] + C::CodeBytes + 64 + g * 4);
        v_zero[n][0] = half_bits_to_float(zeros & 0xffff);
        v_zero[n][1] = half_bits_to_float(zeros >> 16);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        k_scale[n][h] = half_bits_to_float(h ? scales[0] >> 16 : scales[0] & 0xffff);
        v_scale[n][h] = half_bits_to_float(h ? scales[1] >> 16 : scales[1] & 0xffff);
      }
    }
    if constexpr (!C::ValuesLate) {
      __syncwarp();
      refill();
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      logits_tile<S>(
          q, [&](int h, int i) { return Key::pair(k[n], h, i, lane_base); }, k_scale[n], s[n]);
      if constexpr (!Key::kTable) {
#pragma unroll
        for (int r = 0; r < S::LaneRows; ++r) s[n][0][r] *= p.k_table_scale, s[n][1][r] *= p.k_table_scale;
      }
    }
    if (edge) {
      const Tokens tokens(p, seq_len);
#pragma unroll
      for (int n = 0; n < N; ++n)
        mask_tile<S>(Mask{seq_len, p.q_len, p.window, tokens.begin, tokens.end}, first + n * kTile, g, t, p.group_reciprocal, s[n],
                     v_scale[n], v_zero[n]);
    }
    if constexpr (C::ValuesLate) {
#pragma unroll
      for (int n = 0; n < N; ++n) Value::load(v[n], at[n] + value_at, turned);
      __syncwarp();
      refill();
    }
    raise_maximum<N>(st, s, v_scale);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      std::uint32_t b[S::Tiles][2][S::Parities][2];
      weigh_tile<S, Value::kZero>(st, s[n], v_scale[n], v_zero[n], select0, select1, b);
      values_tile<S>(st, b, [&](int h, int odd, int i) {
        return odd ? Value::template pair<1>(v[n], h, i, lane_base) : Value::template pair<0>(v[n], h, i, lane_base);
      });
    }
  }
  /// The same for 16 rows.
  template <int N, class Refill>
  __device__ __forceinline__ void tall_tiles(RowState<S>& st, const QueryFragments<S>& q, const std::uint32_t (&at)[N], int seq_len,
                                             int first, bool edge, Refill&& refill) {
    static_assert(!Value::kZero && Key::kTable && C::ValuesLate);
    typename Key::Raw k[N];
    TallScales scales[N];
    float s[N][2][2][2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Key::load(k[n], at[n] + key_at, false);
      scales[n].load(at[n] + scale_at);
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
      logits_tall<S>(
          q, [&](int h, int i) { return Key::pair(k[n], h, i, lane_base); }, scales[n], st.m, s[n]);
    if (edge) {
      const Tokens tokens(p, seq_len);
#pragma unroll
      for (int n = 0; n < N; ++n)
        mask_tall(Mask{seq_len, p.q_len, p.window, tokens.begin, tokens.end}, first + n * kTile, g, t, p.group_reciprocal, s[n], scales[n]);
    }
    typename Value::Raw v[N];
#pragma unroll
    for (int n = 0; n < N; ++n) Value::load(v[n], at[n] + value_at, false);
    __syncwarp();
    refill();
    std::uint32_t a[N][4];
    softmax_tall(st, s, scales, a);
#pragma unroll
    for (int n = 0; n < N; ++n)
      values_tall<S>(st, a[n], [&](int h, int odd, int i) {
        return odd ? Value::template pair<1>(v[n], h, i, lane_base) : Value::template pair<0>(v[n], h, i, lane_base);
      });
  }

  /// Exact unit `unit` of a pair, already in shared memory at `at`: kExact rows of K, then of V, fp16 in the rotated space. They are the first rows of
  /// the products, whose other rows are none.
  template <class Refill>
  __device__ __forceinline__ void exact_unit(RowState<S>& st, const QueryFragments<S>& q, std::uint32_t at, int seq_len, int unit,
                                             std::uint32_t select0, std::uint32_t select1, Refill&& refill) {
    constexpr int kRow = D * 2, kChunk = KeyOrder<D>::kChunk * 2;
    const Tokens tokens(p, seq_len);
    const int sink_units = tokens.sink_units();
    const bool sink = unit < sink_units;
    // Row r holds the last position of those that are r modulo the ring's rows.
    const int first = (sink ? unit : unit - sink_units) * kExact, last = seq_len - 1, last_row = sink ? 0 : last % p.recent;
    const auto position = [&](int i) {
      const int row = first + i;
      if (sink) return row;
      return row < p.recent ? last - last_row + row - (row > last_row ? p.recent : 0) : -1;
    };
    const Mask mask{seq_len, p.q_len, p.window, sink ? 0 : tokens.recent, sink ? tokens.sinks : seq_len};
    std::uint32_t k[D / 8];
#pragma unroll
    for (int c = 0; c < KeyOrder<D>::kChunks; ++c) load_bytes<kChunk>(at + g % kExact * kRow + (c * 4 + t) * kChunk, k + c * kChunk / 4);
    const float k_scale[2] = {p.k_table_scale, p.k_table_scale};
    float v_scale[2] = {1.f, 0.f}, v_zero[2] = {0.f, 0.f};
    float s[2][S::LaneRows];
    logits_tile<S>(
        q, [&](int h, int i) { return h == 0 ? k[i] : 0; }, k_scale, s);
    mask_rows<S>(mask, 0, g < kExact ? position(g) : -1, t, p.group_reciprocal, s, v_scale, v_zero);
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) s[1][r] = -INFINITY;
    std::uint32_t b[S::Tiles][2][S::Parities][2];
    softmax_tile<S, Value::kZero>(st, s, v_scale, v_zero, select0, select1, b);
    std::uint32_t v[2][D / 16];
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      load_bytes<D / 8>(at + kExact * kRow + (2 * t + odd) % kExact * kRow + g * (D / 4), v[odd]);
      load_bytes<D / 8>(at + kExact * kRow + (2 * t + odd) % kExact * kRow + g * (D / 4) + D / 8, v[odd] + D / 32);
      const int pos = t < kExact / 2 ? position(2 * t + odd) : -1;
      const bool live = pos >= mask.begin && pos < mask.end;  // bytes nobody wrote may be no numbers
#pragma unroll
      for (int i = 0; i < D / 16; ++i) v[odd][i] = live ? v[odd][i] : 0;
    }
    __syncwarp();
    refill();
    values_half<S>(st, b, 0, [&](int, int odd, int i) { return v[odd][i]; });
  }
};

}  // namespace tq4::gpu::fused
