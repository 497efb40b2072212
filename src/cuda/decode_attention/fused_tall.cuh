// The arithmetic on one tile for 9 to 16 query rows of a kv head (Shape::Tall): query rows are the 16 rows of the products, tokens and dims their columns.
//   Logits: queries are operand A, 8 tokens of K operand B. What comes out, rows g and g + 8 of tokens 2t and 2t + 1, is operand A of the second product as
//     it stands: no transposes, half of the shuffles, no column that stays empty.
//   Values: operand B wants a dim of two tokens in a register, a look-up yields two dims of a token: one PRMT a register puts them together.
// The lanes' parts of K and V are those of fused_dequant.cuh.
#pragma once

#include "cuda/decode_attention/fused_tile.cuh"

namespace tq4::gpu::fused {

/// Of a tile, of this lane's tokens 8 h + 2 t + u: K's and V's scales.
struct TallScales {
  float k[2][2], v[2][2];
  /// at: of tokens 2 t and 2 t + 1; their entries of 8 bytes are (K of the token, K of the token + 8, V, V).
  __device__ __forceinline__ void load(std::uint32_t at) {
    std::uint32_t w[4];
    lds128(at, w);
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const float2 keys = __half22float2(*reinterpret_cast<const __half2*>(&w[2 * u]));
      const float2 values = __half22float2(*reinterpret_cast<const __half2*>(&w[2 * u + 1]));
      k[0][u] = keys.x, k[1][u] = keys.y;
      v[0][u] = values.x, v[1][u] = values.y;
    }
  }
  __device__ __forceinline__ float largest_v() const { return fmaxf(fmaxf(v[0][0], v[0][1]), fmaxf(v[1][0], v[1][1])); }
};

/// Logits of 16 tokens, relative to the running maximum m: s[h][r][u] of row g + 8 r and token 8 h + 2 t + u. key(half, pair) as in logits_tile().
template <class S, class KeyPair>
__device__ __forceinline__ void logits_tall(const QueryFragments<S>& q, KeyPair&& key, const TallScales& scales, const float (&m)[2],
                                            float (&s)[2][2][2]) {
  float acc[2][4] = {};
#pragma unroll
  for (int i = 0; i < S::Steps; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) mma(acc[h], q.b[0][i][0], q.b[1][i][0], q.b[0][i][1], q.b[1][i][1], key(h, 2 * i), key(h, 2 * i + 1));
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int u = 0; u < 2; ++u) s[h][r][u] = fmaf(acc[h][2 * r + u], scales.k[h][u], -m[r]);
}

/// first: position of the tile's first token.
__device__ __forceinline__ void mask_tall(const Mask& mask, int first, int g, int t, int group_reciprocal, float (&s)[2][2][2],
                                          TallScales& scales) {
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const int pos = first + 8 * h + 2 * t + u;
      if (pos < mask.begin || pos >= mask.end) scales.v[h][u] = 0.f;  // bytes nobody wrote may hold anything, NaN included
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (!mask.visible(pos, (g + 8 * r) * group_reciprocal >> 16)) s[h][r][u] = -INFINITY;
    }
}

/// Softmax of the logits of N tiles (logits_tall()); a: the p of each as the values' operand A.
template <int N, class S>
__device__ __forceinline__ void softmax_tall(RowState<S>& st, float (&s)[N][2][2][2], const TallScales (&scales)[N],
                                             std::uint32_t (&a)[N][4]) {
  float top[2] = {-INFINITY, -INFINITY}, v_top = 0.f;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    v_top = fmaxf(v_top, scales[n].largest_v());
#pragma unroll
    for (int r = 0; r < 2; ++r) top[r] = fmaxf(top[r], fmaxf(fmaxf(s[n][0][r][0], s[n][0][r][1]), fmaxf(s[n][1][r][0], s[n][1][r][1])));
  }
  if (__any_sync(~0u, v_top * st.v_unit > 16.f || st.v_unit == 0.f || top[0] > st.slack[0] || top[1] > st.slack[1])) {
    float f[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      const bool none = st.slack[r] < 0.f;  // no logit so far
      const float up = none && top[r] > -INFINITY ? top[r] : fmaxf(top[r], 0.f);
      f[r] = none ? 1.f : exp2_fast(-up);
      st.m[r] += up;
      if (top[r] > -INFINITY) st.slack[r] = kSlack;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int u = 0; u < 2; ++u) s[n][h][r][u] -= up;
    }
    v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, 1));
    v_top = fmaxf(v_top, __shfl_xor_sync(~0u, v_top, 2));
    st.scale(f, st.raise_unit(v_top));
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float w[2][2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float unit = scales[n].v[h][u] * st.v_unit;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float p = exp2_fast(s[n][h][r][u]);
          st.l[r] += p;
          w[h][r][u] = p * unit;
        }
      }
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int r = 0; r < 2; ++r) a[n][2 * h + r] = pack_half2(w[h][r][0], w[h][r][1]);
  }
}

/// o += p V: value(half, odd, pair) as in values_half(). o[i % 2][e][i / 2] gathers dim 2 i + e of pieces 2 t and 2 t + 1 for rows g and g + 8.
template <class S, class ValuePair>
__device__ __forceinline__ void values_tall(RowState<S>& st, const std::uint32_t (&a)[4], ValuePair&& value) {
#pragma unroll
  for (int i = 0; i < S::D / 16; ++i) {
    std::uint32_t b[2][2];  // of half h: even dims, odd dims
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t one = value(h, 0, i), other = value(h, 1, i);
      b[h][0] = __byte_perm(one, other, 0x5410);
      b[h][1] = __byte_perm(one, other, 0x7632);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) mma(st.o[i % 2][e][i / 2], a[0], a[1], a[2], a[3], b[0][e], b[1][e]);
  }
}

}  // namespace tq4::gpu::fused
