// The arithmetic on one tile of 16 tokens of one kv head, by one warp: logits, online softmax, weighted values. Rows are query rows of the kv
// head: row = (query token) * group + (query head within the group).
//   Packed (at most 4 rows): row t sits in MMA columns 2t and 2t + 1. For the logits only column 2t is filled, so that every lane owns one
//     live row; for the values the two columns collect the even and the odd dims (fused_dequant.cuh).
//   Wide (8 rows per column tile, Tiles of them): row = column; the values take two MMAs, for the even and the odd dims.
//   Tall (16 rows): fused_tall.cuh.
// The running maximum is lazy: a tile raises it only when a logit passes it by kSlack (in log2), so that p <= 2^kSlack and the common
// tile pays one vote instead of shuffles and rescaling.
#pragma once

#include "cuda/decode_attention/fused_dequant.cuh"

namespace tq4::gpu::fused {

constexpr float kSlack = 4.f;
constexpr float kMaskedMax = -1e30f;  // "no logit yet": finite, so that differences stay numbers

__device__ __forceinline__ std::uint32_t pack_half2(float lo, float hi) {
  const __half2 h = __floats2half2_rn(lo, hi);
  return *reinterpret_cast<const std::uint32_t*>(&h);
}

/// Shape of the work of a warp.
template <int D_, int Tiles_, bool Packed_, bool Tall_ = false>
struct Shape {
  static constexpr int D = D_;
  static constexpr int Tiles = Tiles_;  // column tiles of 8 query rows
  static constexpr bool Packed = Packed_;
  static constexpr bool Tall = Tall_;
  static constexpr int Rows = Packed ? 4 : 8 * Tiles;                 // query rows there is room for
  static constexpr int LaneRows = Packed ? 1 : Tall ? 2 : 2 * Tiles;  // rows whose softmax state a lane keeps
  static constexpr int Parities = Packed ? 1 : 2;                     // separate accumulators for even and odd dims
  static constexpr int Steps = D / 16;                                // k steps of the logits
  static constexpr int Blocks = D / 32;                               // blocks of 16 dim pairs of the values
  /// Which of a lane's rows word c of accumulator n of the values belongs to.
  __device__ static constexpr int row_of(int n, int c) { return Packed ? 0 : Tall ? c / 2 : 2 * n + c % 2; }
  /// Row of slot r of lane t (of lane (g, t) where rows are those of the products).
  __device__ static constexpr int row(int t, int r) { return Packed ? t : (r / 2) * 8 + 2 * t + r % 2; }
  __device__ static constexpr int row(int g, int t, int r) { return Tall ? g + 8 * r : row(t, r); }
};

template <class S>
struct RowState {
  float m[S::LaneRows];      // running maximum (log2), lazy
  float slack[S::LaneRows];  // Tall: by how much a logit may pass it; -inf: m is none yet
  float l[S::LaneRows];      // this lane's share of the sum of p
  float z[S::LaneRows];      // this lane's share of the sum of p * zero (uniform values)
  float o[S::Tiles][S::Parities][S::Blocks][4];
  float v_unit;  // p * (V scale) is stored in fp16 as a multiple of this: 1 / v_unit is a V scale already seen

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) m[r] = S::Tall ? 0.f : kMaskedMax, slack[r] = -INFINITY, l[r] = 0.f, z[r] = 0.f;
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int e = 0; e < S::Parities; ++e)
#pragma unroll
        for (int j = 0; j < S::Blocks; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) o[n][e][j][c] = 0.f;
    v_unit = 0.f;
  }
  /// v_unit for a tile whose largest V scale is v_top; what was gathered so far is to be multiplied by the result.
  __device__ __forceinline__ float raise_unit(float v_top) {
    float unit = v_top > 0.f ? __fdividef(1.f, v_top) : 1.f;  // an exact division would be a call, with registers spilled around it
    float values = 1.f;
    if (v_unit > 0.f) {
      unit = fminf(unit, v_unit);
      values = __fdividef(unit, v_unit);
    }
    v_unit = v_top > 0.f || v_unit > 0.f ? unit : 0.f;
    return values;
  }
  /// Multiply what was gathered so far by f[row] (and `values` for the accumulators' unit).
  __device__ __forceinline__ void scale(const float (&f)[S::LaneRows], float values) {
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) l[r] *= f[r], z[r] *= f[r];
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int e = 0; e < S::Parities; ++e)
#pragma unroll
        for (int j = 0; j < S::Blocks; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) o[n][e][j][c] *= values * f[S::row_of(n, c)];
  }
};

template <class S>
struct QueryFragments {
  std::uint32_t b[S::Tiles][S::Steps][2];
};

/// Raises the running maximum and the unit of values where the logits of N tiles, s[tile][token half][row slot], and their V scales ask for it.
template <int N, class S>
__device__ __forceinline__ void raise_maximum(RowState<S>& st, const float (*s)[2][S::LaneRows], const float (*v_scale)[2]) {
  float v_top = fmaxf(v_scale[0][0], v_scale[0][1]);
#pragma unroll
  for (int n = 1; n < N; ++n) v_top = fmaxf(v_top, fmaxf(v_scale[n][0], v_scale[n][1]));
  const auto largest = [&](int r) {
    float top = fmaxf(s[0][0][r], s[0][1][r]);
#pragma unroll
    for (int n = 1; n < N; ++n) top = fmaxf(top, fmaxf(s[n][0][r], s[n][1][r]));
    return top;
  };
  bool raise = v_top * st.v_unit > 16.f || st.v_unit == 0.f;
#pragma unroll
  for (int r = 0; r < S::LaneRows; ++r) raise |= largest(r) > st.m[r] + kSlack;
  if (!__any_sync(~0u, raise)) return;
  float f[S::LaneRows];
#pragma unroll
  for (int r = 0; r < S::LaneRows; ++r) {
    float top = largest(r);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 4));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
    top = fmaxf(top, st.m[r]);
    f[r] = exp2_fast(st.m[r] - top);
    st.m[r] = top;
  }
  v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, 4));
  v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, 8));
  v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, 16));
  st.scale(f, st.raise_unit(v_top));
}

/// The weights of a tile whose logits s[token half][row slot] the running maximum suits, as the values' operand B:
/// b[column tile][token half][parity][2]. v_scale, v_zero: of tokens g and g + 8.
template <class S, bool Zero>
__device__ __forceinline__ void weigh_tile(RowState<S>& st, float (&s)[2][S::LaneRows], const float (&v_scale)[2], const float (&v_zero)[2],
                                           std::uint32_t select0, std::uint32_t select1, std::uint32_t (&b)[S::Tiles][2][S::Parities][2]) {
  const float unit0 = v_scale[0] * st.v_unit, unit1 = v_scale[1] * st.v_unit;
#pragma unroll
  for (int r = 0; r < S::LaneRows; ++r) {
    const float p0 = exp2_fast(s[0][r] - st.m[r]);
    const float p1 = exp2_fast(s[1][r] - st.m[r]);
    st.l[r] += p0 + p1;
    if constexpr (Zero) st.z[r] += p0 * v_zero[0] + p1 * v_zero[1];
    s[0][r] = p0 * unit0;
    s[1][r] = p1 * unit1;
  }
#pragma unroll
  for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // After the transpose lane (g, t) holds column g of tokens 2t and 2t + 1 of this half.
      const std::uint32_t x =
          transpose8x8(S::Packed ? pack_half2(s[h][0], s[h][0]) : pack_half2(s[h][2 * n % S::LaneRows], s[h][(2 * n + 1) % S::LaneRows]));
      if constexpr (S::Packed) {
        b[n][h][0][0] = __byte_perm(x, 0, select0);
        b[n][h][0][1] = __byte_perm(x, 0, select1);
      } else {
        b[n][h][0][0] = x & 0xffffu;
        b[n][h][0][1] = x >> 16;
        b[n][h][S::Parities - 1][0] = x << 16;
        b[n][h][S::Parities - 1][1] = x & 0xffff0000u;
      }
    }
}

/// Softmax of one tile: both.
template <class S, bool Zero>
__device__ __forceinline__ void softmax_tile(RowState<S>& st, float (&s)[2][S::LaneRows], const float (&v_scale)[2],
                                             const float (&v_zero)[2], std::uint32_t select0, std::uint32_t select1,
                                             std::uint32_t (&b)[S::Tiles][2][S::Parities][2]) {
  raise_maximum<1>(st, &s, &v_scale);
  weigh_tile<S, Zero>(st, s, v_scale, v_zero, select0, select1, b);
}

/// Logits of 16 tokens: key(half, pair) gives the half2 of pair `pair` of token g + 8 * half; k_scale of tokens g and g + 8.
template <class S, class KeyPair>
__device__ __forceinline__ void logits_tile(const QueryFragments<S>& q, KeyPair&& key, const float (&k_scale)[2],
                                            float (&s)[2][S::LaneRows]) {
  float acc[S::Tiles][2][4];
#pragma unroll
  for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[n][e][c] = 0.f;
#pragma unroll
  for (int i = 0; i < S::Steps; ++i) {
    const std::uint32_t a0 = key(0, 2 * i), a1 = key(1, 2 * i), a2 = key(0, 2 * i + 1), a3 = key(1, 2 * i + 1);
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n) mma(acc[n][i & 1], a0, a1, a2, a3, q.b[n][i][0], q.b[n][i][1]);
  }
#pragma unroll
  for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (S::Packed) {
        s[h][0] = (acc[n][0][2 * h] + acc[n][1][2 * h]) * k_scale[h];
      } else {
        s[h][(2 * n) % S::LaneRows] = (acc[n][0][2 * h] + acc[n][1][2 * h]) * k_scale[h];
        s[h][(2 * n + 1) % S::LaneRows] = (acc[n][0][2 * h + 1] + acc[n][1][2 * h + 1]) * k_scale[h];
      }
    }
}

/// o += p V of half `h` of the tile's tokens: value(half, odd, pair) gives the half2 of pair `pair` of piece g of token 8 * half + 2t + odd.
template <class S, class ValuePair>
__device__ __forceinline__ void values_half(RowState<S>& st, const std::uint32_t (&b)[S::Tiles][2][S::Parities][2], int h,
                                            ValuePair&& value) {
#pragma unroll
  for (int j = 0; j < S::Blocks; ++j) {
    const std::uint32_t a0 = value(h, 0, 2 * j), a1 = value(h, 0, 2 * j + 1), a2 = value(h, 1, 2 * j), a3 = value(h, 1, 2 * j + 1);
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int e = 0; e < S::Parities; ++e) mma(st.o[n][e][j], a0, a1, a2, a3, b[n][h][e][0], b[n][h][e][1]);
  }
}
/// Of both halves.
template <class S, class ValuePair>
__device__ __forceinline__ void values_tile(RowState<S>& st, const std::uint32_t (&b)[S::Tiles][2][S::Parities][2], ValuePair&& value) {
#pragma unroll
  for (int h = 0; h < 2; ++h) values_half<S>(st, b, h, value);
}

/// Which logits of a tile do not count: key position `pos`, seen by query token qi when first(qi) <= pos <= last(qi).
struct Mask {
  int seq_len, q_len, window, begin, end;  // [begin, end): the tokens this part covers
  __device__ __forceinline__ bool visible(int pos, int qi) const {
    const int own = seq_len - q_len + qi;
    return pos >= begin && pos < end && pos <= own && (window == 0 || pos > own - window);
  }
  /// Tiles [first, first + count) need no mask.
  __device__ __forceinline__ void safe_tiles(int& first, int& count) const {
    first = (max(begin, window > 0 ? seq_len - window : 0) + 15) / 16;
    count = max(min(end, seq_len - q_len + 1) / 16 - first, 0);
  }
};
/// Of this lane's token of half h, at position `pos`.
template <class S>
__device__ __forceinline__ void mask_rows(const Mask& mask, int h, int pos, int t, int group_reciprocal, float (&s)[2][S::LaneRows],
                                          float (&v_scale)[2], float (&v_zero)[2]) {
  if (pos < mask.begin || pos >= mask.end) v_scale[h] = v_zero[h] = 0.f;  // bytes nobody wrote may hold anything, NaN included
#pragma unroll
  for (int r = 0; r < S::LaneRows; ++r)
    if (!mask.visible(pos, S::row(t, r) * group_reciprocal >> 16)) s[h][r] = -INFINITY;
}
template <class S>
__device__ __forceinline__ void mask_tile(const Mask& mask, int first, int g, int t, int group_reciprocal, float (&s)[2][S::LaneRows],
                                          float (&v_scale)[2], float (&v_zero)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) mask_rows<S>(mask, h, first + g + 8 * h, t, group_reciprocal, s, v_scale, v_zero);
}

}  // namespace tq4::gpu::fused
