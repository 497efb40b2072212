// Codes to fp16: tables in shared memory and the filling of a 16-token tile from staged raw bytes. A warp owns a tile; lane l works for
// token l % 16 and for one half of its coordinates, in groups of 8 coordinates (8 coordinates of b bits are b whole bytes).
#pragma once

#include <cuda_fp16.h>

#include "cuda/mma.cuh"
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

/// Where a warp's staged bytes of one side of 16 tokens lie.
struct Stage {
  const unsigned* words;   ///< shared memory
  int offset;              ///< of this lane's token's first code byte (row layouts)
  int native_v_piece;      ///< > 0: bytes are in the order of a native tile's V; 0: token rows
};

/// Units of tokens 0..15, coordinates [first, first + count), to tile[token][coordinate - first] (pitch in halves, multiple of 8).
/// Returns the lane's token's sum of squares over all coordinates when asked for. Tokens that are not valid become 0.
__device__ inline float fill_tile(const SideView& side, const void* table, const Stage& stage, int head_dim, int first, int count, bool valid,
                                  __half* tile, int pitch, int lane) {
  const int token = lane & 15;
  const int groups = head_dim >> 3, half_groups = (groups + 1) >> 1, base = (lane >> 4) * half_groups;
  const int bytes = side.row_bits;  // of a group
  int turn = (token >> 1) % half_groups;
  float sum = 0.0f;
  for (int i = 0; i < half_groups; ++i) {
    const int g = base + turn;
    if (++turn == half_groups) turn = 0;
    if (g >= groups) continue;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) {
      unsigned low, high = 0;
      if (stage.native_v_piece == 0 || stage.native_v_piece % bytes == 0) {
        const int o = stage.native_v_piece == 0 ? stage.offset + g * bytes : native_v_byte(stage.native_v_piece, token, g * bytes);
        low = shared_word(stage.words, o);
        if (side.mode == kSingle) high = shared_word(stage.words, o + 4);
      } else {  // a group lies in two pieces
        unsigned long long bits = 0;
        const auto* raw = reinterpret_cast<const unsigned char*>(stage.words);
        for (int b = 0; b < bytes; ++b) {
          bits |= static_cast<unsigned long long>(raw[native_v_byte(stage.native_v_piece, token, g * bytes + b)]) << (8 * b);
        }
        low = static_cast<unsigned>(bits);
        high = static_cast<unsigned>(bits >> 32);
      }
      v = units_of(side, table, low, high);
      if (side.norm_correction) sum += square_sum(v);
    }
    const int column = g * 8 - first;
    if (column >= 0 && column < count) *reinterpret_cast<uint4*>(tile + token * pitch + column) = v;
  }
  return sum;
}

}  // namespace tq4::gpu
