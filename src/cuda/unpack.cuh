// Codes to fp16: tables in shared memory and the filling of a 16-token tile from staged raw bytes. A warp owns a tile; lane l works for
// token l % 16 and for one half of its coordinates, in groups of 8 coordinates (8 coordinates of b bits are b whole bytes).
#pragma once

#include <cuda_fp16.h>

#include "cuda/ptx.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {

constexpr int kTableBytes = 1024;  ///< 256 half2 (pairs of 4-bit codes) or 256 halves

/// Fills a side's table; all threads of the block take part, the caller synchronises.
/// kPair: entry e = (even, odd) coordinate for codes (e & mask, e >> row_bits). kSingle: entry e = unit of code e.
__device__ inline void build_table(const SideView& side, void* table, int thread, int threads) {
  if (side.mode == kHalf) return;
  if (side.mode == kPair) {
    auto* pairs = static_cast<__half2*>(table);
    const int mask = (1 << side.row_bits) - 1, codes = 1 << side.code_bits;
    for (int e = thread; e < 1 << (2 * side.row_bits); e += threads) {
      int even = e & mask, odd = e >> side.row_bits;
      if (side.high_first) {
        const int swap = even;
        even = odd;
        odd = swap;
      }
      __half2 value = __float2half2_rn(0.0f);
      if (even < codes && odd < codes) {
        if (side.has_zero) {
          value = __floats2half2_rn(static_cast<float>(even) - side.level_offset, static_cast<float>(odd) - side.level_offset);
        } else {
          const unsigned bits = side.pair_half2[even | odd << side.code_bits];
          value = *reinterpret_cast<const __half2*>(&bits);
        }
      }
      pairs[e] = value;
    }
    return;
  }
  auto* units = static_cast<__half*>(table);
  for (int e = thread; e < 1 << side.code_bits; e += threads) {
    float value;
    if (side.kind == static_cast<int>(CodeKind::Fp8)) {
      value = fp8_value(side.fp8, static_cast<unsigned>(e));
    } else {
      value = side.has_zero ? static_cast<float>(e) - side.level_offset : side.centroids[e];
    }
    units[e] = __float2half_rn(value);
  }
}

/// 4 bytes at any byte offset of 4-byte aligned shared memory (reads the word after, too).
__device__ __forceinline__ unsigned shared_word(const unsigned* words, int offset) {
  const int w = offset >> 2;
  return __funnelshift_r(words[w], words[w + 1], (offset & 3) * 8);
}

/// Eight units (coordinates 8g .. 8g+7 of one token) as four half2.
__device__ __forceinline__ uint4 units_of(const SideView& side, const void* table, unsigned low, unsigned high) {
  unsigned r[4];
  if (side.mode == kPair) {
    const auto* pairs = static_cast<const unsigned*>(table);
    const int width = 2 * side.row_bits;
    const unsigned mask = (1u << width) - 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r[i] = pairs[low & mask];
      low >>= width;
    }
  } else {
    const auto* units = static_cast<const unsigned short*>(table);
    const unsigned mask = (1u << side.row_bits) - 1;
    unsigned long long bits = low | static_cast<unsigned long long>(high) << 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned a = units[static_cast<unsigned>(bits) & mask];
      bits >>= side.row_bits;
      const unsigned b = units[static_cast<unsigned>(bits) & mask];
      bits >>= side.row_bits;
      r[i] = a | b << 16;
    }
  }
  return make_uint4(r[0], r[1], r[2], r[3]);
}

__device__ __forceinline__ float square_sum(const uint4& v) {
  const unsigned r[4] = {v.x, v.y, v.z, v.w};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&r[i]));
    sum = fmaf(f.x, f.x, fmaf(f.y, f.y, sum));
  }
  return sum;
}

/// Where a lane's token's bytes of one side are staged: byte 0 of group g lies at offset + g * bytes + (g / per_piece) * piece_skip. Rows have
/// piece_skip 0; in a native tile's V a piece holds per_piece groups and the next piece of the token comes piece_skip bytes further on.
struct Stage {
  const unsigned* words;  ///< shared memory
  int offset;
  int piece_skip;
  unsigned piece_inverse;  ///< 65536 / per_piece, rounded up
  int split_v_piece;       ///< > 0: groups lie in two pieces of this many bytes; the fields above but `words` do not count
  int units = 0;           ///< a tile's codes in units (core/units.h), 1: of K, 2: of V; the fields above but `words` do not count
};

__device__ __forceinline__ Stage row_stage(const unsigned char* memory, int offset) {
  return {reinterpret_cast<const unsigned*>(memory), offset, 0, 0, 0};
}
__device__ __forceinline__ Stage unit_stage(const unsigned char* memory, bool key) {
  return {reinterpret_cast<const unsigned*>(memory), 0, 0, 0, 0, key ? 1 : 2};
}
/// The 24 bits of eight 3-bit codes of a token in units.
__device__ __forceinline__ unsigned unit_group(const Stage& stage, int head_dim, int token, int g) {
  return get_unit_group(reinterpret_cast<const std::uint8_t*>(stage.words) + unit_byte(head_dim, stage.units == 1, token, g));
}
__device__ __forceinline__ Stage native_v_stage(const unsigned char* memory, int v_piece, int bytes, int token) {
  const auto* words = reinterpret_cast<const unsigned*>(memory);
  if (v_piece % bytes != 0) return {words, 0, 0, 0, v_piece};
  const unsigned per_piece = static_cast<unsigned>(v_piece / bytes);
  return {words, native_v_byte(v_piece, token, 0), 7 * v_piece, (65536u + per_piece - 1) / per_piece, 0};
}

/// A destination of unpacking: tile[token][coordinate - first] for coordinates [first, first + count); pitch in halves, a multiple of 8.
struct TileOut {
  __half* tile;
  int pitch, first, count;
};

/// Groups of one lane, Bits (2, 3, 4: pairs; 8: single) known when compiled and every coordinate wanted; Squares: their sum of squares too.
template <int Bits, bool Squares>
__device__ __forceinline__ float fill_groups(const void* table, const Stage& stage, int groups, const TileOut& out, int token, int base,
                                             int half_groups) {
  float sum = 0.0f;
  int turn = (token >> 1) % half_groups;
  __half* row = out.tile + token * out.pitch;
#pragma unroll 4
  for (int i = 0; i < half_groups; ++i) {
    const int g = base + turn;
    turn = turn + 1 == half_groups ? 0 : turn + 1;
    if (g < groups) {
      const int o = stage.offset + g * Bits + static_cast<int>((static_cast<unsigned>(g) * stage.piece_inverse) >> 16) * stage.piece_skip;
      unsigned low = Bits == 3 && stage.units > 0 ? unit_group(stage, groups * 8, token, g) : shared_word(stage.words, o);
      unsigned r[4];
      if constexpr (Bits == 8) {
        const unsigned high = shared_word(stage.words, o + 4);
        const auto* units = static_cast<const unsigned short*>(table);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const unsigned pair = (k < 2 ? low : high) >> (16 * (k & 1));
          r[k] = units[pair & 0xffu] | static_cast<unsigned>(units[(pair >> 8) & 0xffu]) << 16;
        }
      } else {
        const auto* pairs = static_cast<const unsigned*>(table);
#pragma unroll
        for (int k = 0; k < 4; ++k) r[k] = pairs[(low >> (2 * Bits * k)) & ((1u << (2 * Bits)) - 1)];
      }
      const uint4 v = make_uint4(r[0], r[1], r[2], r[3]);
      if constexpr (Squares) sum += square_sum(v);
      *reinterpret_cast<uint4*>(row + g * 8) = v;
    }
  }
  return sum;
}

/// Any width, groups in two pieces, only some coordinates wanted.
__device__ inline float fill_groups_any(const SideView& side, const void* table, const Stage& stage, int groups, const TileOut& out,
                                        int token, int base, int half_groups) {
  const int bytes = side.row_bits;  // of a group
  float sum = 0.0f;
  for (int i = 0; i < half_groups && base + i < groups; ++i) {
    const int g = base + i;
    unsigned long long bits = 0;
    if (stage.units > 0) {
      bits = unit_group(stage, groups * 8, token, g);
    } else if (stage.split_v_piece > 0) {
      const auto* raw = reinterpret_cast<const unsigned char*>(stage.words);
      for (int b = 0; b < bytes; ++b)
        bits |= static_cast<unsigned long long>(raw[native_v_byte(stage.split_v_piece, token, g * bytes + b)]) << (8 * b);
    } else {
      const int o = stage.offset + g * bytes + static_cast<int>((static_cast<unsigned>(g) * stage.piece_inverse) >> 16) * stage.piece_skip;
      bits = shared_word(stage.words, o);
      if (side.mode == kSingle) bits |= static_cast<unsigned long long>(shared_word(stage.words, o + 4)) << 32;
    }
    const uint4 v = units_of(side, table, static_cast<unsigned>(bits), static_cast<unsigned>(bits >> 32));
    if (side.norm_correction) sum += square_sum(v);
    const int column = g * 8 - out.first;
    if (column >= 0 && column < out.count) *reinterpret_cast<uint4*>(out.tile + token * out.pitch + column) = v;
  }
  return sum;
}

/// Units of tokens 0..15 to a tile. Returns the sum of squares over all coordinates of the lane's token's half (norm correction only). Tokens
/// that are not valid become 0.
__device__ inline float fill_tile(const SideView& side, const void* table, const Stage& stage, int head_dim, const TileOut& out, bool valid,
                                  int lane) {
  const int token = lane & 15, groups = head_dim >> 3, half_groups = (groups + 1) >> 1, base = (lane >> 4) * half_groups;
  if (!valid) {
    for (int g = base; g < min(base + half_groups, groups); ++g) {
      const int column = g * 8 - out.first;
      if (column >= 0 && column < out.count) *reinterpret_cast<uint4*>(out.tile + token * out.pitch + column) = make_uint4(0, 0, 0, 0);
    }
    return 0.0f;
  }
  if (out.count == head_dim && stage.split_v_piece == 0) {
    if (side.row_bits == 4) {
      return side.norm_correction ? fill_groups<4, true>(table, stage, groups, out, token, base, half_groups)
                                  : fill_groups<4, false>(table, stage, groups, out, token, base, half_groups);
    }
    if (side.row_bits == 3) {
      return side.norm_correction ? fill_groups<3, true>(table, stage, groups, out, token, base, half_groups)
                                  : fill_groups<3, false>(table, stage, groups, out, token, base, half_groups);
    }
    if (side.row_bits == 2 && !side.norm_correction) return fill_groups<2, false>(table, stage, groups, out, token, base, half_groups);
    if (side.row_bits == 8 && !side.norm_correction) return fill_groups<8, false>(table, stage, groups, out, token, base, half_groups);
  }
  return fill_groups_any(side, table, stage, groups, out, token, base, half_groups);
}

}  // namespace tq4::gpu
