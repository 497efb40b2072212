// FlashAttention on Hopper's warpgroup products: a block of 3 warpgroups takes 128 query rows of one kv head. One thread of the first asks for tiles of 128
// keys (one bulk copy each: tiles lie in memory as wgmma reads them), the other two own 64 rows each. The products of a tile's queries and keys run
// while the tile before is weighted: logits(t + 1) and P(t) V(t) are issued together, softmax(t + 1) overlaps P(t) V(t), and the two
// warpgroups take turns so that the softmax of one runs beside the products of the other.
// Rows are (query, head of the group) pairs, as in flash.cu: K and V are read once for the group. Tiles run from the last to the first.
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/prefill_attention/hopper.h"
#include "cuda/views.cuh"
#include "cuda/wgmma.cuh"

namespace tq4::gpu {

template <int HD, bool Int8>
struct HopperTile {
  static constexpr int kGroups = 2, kRows = 64 * kGroups, kThreads = 128 * (1 + kGroups), kStages = 2;
  static constexpr int kQueryBytes = 64 * HD * (Int8 ? 1 : 2);  ///< of a warpgroup
  static constexpr int kKeyBytes = kTileKeys * HD * (Int8 ? 1 : 2), kValueBytes = kTileKeys * HD * 2;
  static constexpr int kScaleBytes = Int8 ? kTileKeys * 4 : 0;
  static constexpr int kKeys = kGroups * 64 * HD * 2;  ///< offset: queries leave room for the output
  static constexpr int kValues = kKeys + kStages * kKeyBytes;
  static constexpr int kScales = kValues + kStages * kValueBytes;
  static constexpr int kBarriers = kScales + kStages * kScaleBytes;
  static constexpr int kBytes = kBarriers + 4 * kStages * 8 + 16 + 1024;  ///< 1024 to align by
};

/// Keys a row sees: [low, high).
struct RowRange {
  int low, high;
};

/// Logits as products of queries and keys give them, times the keys' scales for int8.
__device__ __forceinline__ float (&to_logits(float (&products)[64], float (&)[64], std::uint32_t))[64] { return products; }
__device__ __forceinline__ float (&to_logits(int (&products)[64], float (&s)[64], std::uint32_t scales))[64] {
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    std::uint32_t pair[2];
    lds64(scales + n * 32, pair);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // |product| <= 128 * 127^2 < 2^22: an exact conversion without the slow instruction
      const float exact = __int_as_float(products[4 * n + i] + 0x4b400000) - 12582912.0f;
      s[4 * n + i] = exact * __uint_as_float(pair[i & 1]);
    }
  }
  return s;
}

template <int HD, bool Int8, bool TakeTurns>
__global__ void __launch_bounds__(HopperTile<HD, Int8>::kThreads, 1) hopper_flash_kernel(const __grid_constant__ HopperFlashArgs args) {
  using T = HopperTile<HD, Int8>;
  using Product = std::conditional_t<Int8, int, float>;
  constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
  TQ4_DYNAMIC_SHARED(unsigned char, memory);
  const FlashArgs& a = args.flash;
  const int sequence = blockIdx.z, head = blockIdx.y, group = a.num_q_heads / a.num_kv_heads;
  const int q_begin = a.cu_q[sequence], q_len = a.cu_q[sequence + 1] - q_begin;
  const int rows = q_len * group;
  const int row0 = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * T::kRows;  // long rows of the triangle first
  if (row0 >= rows) return;
  const int kv_len = a.cu_k ? a.cu_k[sequence + 1] - a.cu_k[sequence] : q_len + (a.prefix_lens ? a.prefix_lens[sequence] : 0);
  const int offset = kv_len - q_len;  // position of query 0
  const int first_position = offset + row0 / group, last_position = offset + (min(row0 + T::kRows, rows) - 1) / group;
  const int kv_end = a.causal ? min(kv_len, last_position + 1) : kv_len;
  const int kv_begin = a.window > 0 ? max(0, first_position - a.window + 1) : 0;
  const int tile_begin = kv_begin / kTileKeys, tile_end = max(tile_begin, (kv_end + kTileKeys - 1) / kTileKeys);

  const std::uint32_t base = (shared_address(memory) + 1023) & ~1023u;
  const auto key_full = [&](int stage) { return base + T::kBarriers + stage * 8; };
  const auto value_full = [&](int stage) { return base + T::kBarriers + (T::kStages + stage) * 8; };
  const auto key_empty = [&](int stage) { return base + T::kBarriers + (2 * T::kStages + stage) * 8; };
  const auto value_empty = [&](int stage) { return base + T::kBarriers + (3 * T::kStages + stage) * 8; };
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      mbarrier_init_count(key_full(s), 1);
      mbarrier_init_count(value_full(s), 1);
      mbarrier_init_count(key_empty(s), 4 * T::kGroups);
      mbarrier_init_count(value_empty(s), 4 * T::kGroups);
    }
    fence_mbarrier_init();
    fence_bulk_copies();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 7), 0);
  if (warpgroup == 0) {
    registers_down<24>();
    if (threadIdx.x == 0) {
      const std::int64_t first = (static_cast<std::int64_t>(sequence) * a.num_kv_heads + head) * args.tiles.tiles;
      int stage = 0, parity = 1;  // the first round finds the stages empty
      for (int tile = tile_end - 1; tile >= tile_begin; --tile) {
        const std::int64_t at = first + tile;
        mbarrier_wait(key_empty(stage), parity);
        mbarrier_arrive_expect(key_full(stage), T::kKeyBytes + T::kScaleBytes);
        if constexpr (Int8) {
          bulk_copy(base + T::kKeys + stage * T::kKeyBytes, args.tiles.k8 + at * T::kKeyBytes, T::kKeyBytes, key_full(stage));
          bulk_copy(base + T::kScales + stage * T::kScaleBytes, args.tiles.k8_scale + at * kTileKeys, T::kScaleBytes, key_full(stage));
        } else {
          bulk_copy(base + T::kKeys + stage * T::kKeyBytes, args.tiles.k + at * T::kKeyBytes, T::kKeyBytes, key_full(stage));
        }
        mbarrier_wait(value_empty(stage), parity);
        mbarrier_arrive_expect(value_full(stage), T::kValueBytes);
        bulk_copy(base + T::kValues + stage * T::kValueBytes, args.tiles.v + at * T::kValueBytes, T::kValueBytes, value_full(stage));
        if (++stage == T::kStages) stage = 0, parity ^= 1;
      }
    }
  } else {
    registers_up<240>();
    const int me = warpgroup - 1, thread = static_cast<int>(threadIdx.x) & 127, warp = thread >> 5, lane = thread & 31;
    const std::uint32_t query = base + me * 64 * HD * 2;
    const auto element = [&](int row) {  // of q and out
      return (static_cast<std::int64_t>(q_begin + row / group) * a.num_q_heads + head * group + row % group) * HD;
    };
    // Queries to shared memory, bf16 as fp16.
    constexpr int kChunks = T::kQueryBytes / 64 / 16;  // of a row
#pragma unroll
    for (int i = thread; i < 64 * kChunks; i += 128) {
      const int r = i / kChunks, c = i % kChunks, row = row0 + me * 64 + r;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (row < rows) {
        if constexpr (Int8) {
          v = *reinterpret_cast<const uint4*>(args.tiles.q8 + element(row) + c * 16);
        } else {
          v = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(a.q) + element(row) + c * 8);
          if (a.dtype == static_cast<int>(DType::BF16)) {
            unsigned* w = &v.x;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const __half2 h = __floats2half2_rn(__uint_as_float(w[k] << 16), __uint_as_float(w[k] & 0xffff0000u));
              w[k] = *reinterpret_cast<const unsigned*>(&h);
            }
          }
        }
      }
      sts128_words<0>(query + (c >> 3) * 8192 + r * 128 + ((c & 7) ^ (r & 7)) * 16, static_cast<int>(v.x), static_cast<int>(v.y),
                      static_cast<int>(v.z), static_cast<int>(v.w));
    }
    fence_bulk_copies();
    named_barrier_sync(1 + me, 128);

    float out[HD / 2], maximum[2], sum[2], scale[2];
    std::uint32_t weights[kTileKeys / 16][4];
    RowRange range[2];
#pragma unroll
    for (int i = 0; i < HD / 2; ++i) out[i] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = min(row0 + me * 64 + warp * 16 + (lane >> 2) + 8 * i, rows - 1), position = offset + row / group;
      maximum[i] = -INFINITY;
      sum[i] = 0.0f;
      scale[i] = a.sm_scale * kLog2e;
      if constexpr (Int8) scale[i] *= args.tiles.q8_scale[element(row) / HD];
      range[i] = {a.window > 0 ? position - a.window + 1 : 0, a.causal ? min(kv_len, position + 1) : kv_len};
    }
    const std::uint64_t query_operand = wgmma_rows(query), key_operand = wgmma_rows(base + T::kKeys),
                        value_operand = wgmma_columns(base + T::kValues, kTileKeys * 128);
    const auto multiply_keys = [&](Product(&products)[64], int stage) {
      const std::uint64_t keys = wgmma_further(key_operand, static_cast<std::uint32_t>(stage * T::kKeyBytes));
#pragma unroll
      for (std::uint32_t k = 0; k < HD / (Int8 ? 32 : 16); ++k)
        wgmma_rows_rows(products, wgmma_further(query_operand, (k >> 2) * 8192 + (k & 3) * 32),
                        wgmma_further(keys, (k >> 2) * (kTileKeys * 128) + (k & 3) * 32), k > 0);
      wgmma_commit();
    };
    const auto multiply_values = [&](int stage) {
      const std::uint64_t values = wgmma_further(value_operand, static_cast<std::uint32_t>(stage * T::kValueBytes));
#pragma unroll
      for (std::uint32_t k = 0; k < kTileKeys / 16; ++k) wgmma_registers_columns(out, weights[k], wgmma_further(values, k * 2048));
      wgmma_commit();
    };
    const auto release = [&](std::uint32_t bar) {
      if constexpr (Int8) __syncwarp();  // all lanes have read the keys' scales
      if (lane == 0) mbarrier_arrive(bar);
    };
    /// Logits to weights, not yet normalised; alpha: what the rows' earlier sums are to be multiplied by.
    const auto softmax = [&](float(&s)[64], int tile, float(&alpha)[2]) {
      const int key0 = tile * kTileKeys;
      const bool edge = key0 + kTileKeys > kv_len || (a.causal && key0 + kTileKeys - 1 > first_position) ||
                        (a.window > 0 && key0 <= last_position - a.window);
      if (edge) {
#pragma unroll
        for (int n = 0; n < 16; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = key0 + n * 8 + 2 * (lane & 3) + (i & 1);
            if (key < range[i >> 1].low || key >= range[i >> 1].high) s[4 * n + i] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = fmaxf(s[2 * i], s[2 * i + 1]);
#pragma unroll
        for (int n = 1; n < 16; ++n) largest = fmaxf(largest, fmaxf(s[4 * n + 2 * i], s[4 * n + 2 * i + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float next = fmaxf(maximum[i], largest), anchor = next == -INFINITY ? 0.0f : next * scale[i];
        alpha[i] = exp2_fast(fmaf(maximum[i], scale[i], -anchor));
        maximum[i] = next;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < 16; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& v = s[4 * n + 2 * i + j];
            v = exp2_fast(fmaf(v, scale[i], -anchor));
            total += v;
          }
        }
        sum[i] = fmaf(sum[i], alpha[i], total);
      }
    };
    const auto pack = [&](const float(&s)[64]) {
#pragma unroll
      for (int k = 0; k < kTileKeys / 16; ++k) {
#pragma unroll
        for (int h = 0; h < 4; ++h) {  // (row, key half): (0, 0), (8, 0), (0, 8), (8, 8)
          const __half2 v = __floats2half2_rn(s[4 * (2 * k + (h >> 1)) + 2 * (h & 1)], s[4 * (2 * k + (h >> 1)) + 2 * (h & 1) + 1]);
          weights[k][h] = *reinterpret_cast<const unsigned*>(&v);
        }
      }
    };
    const int my_turn = 3 + me, other_turn = 4 - me;
    if (tile_end > tile_begin) {
      if constexpr (TakeTurns) {
        if (me == 1) named_barrier_arrive(other_turn, 256);  // the first warpgroup begins
      }
      int stage = 0, parity = 0;
      float alpha[2];
      {
        Product products[64];
        float storage[64];
        mbarrier_wait(key_full(0), 0);
        if constexpr (TakeTurns) named_barrier_sync(my_turn, 256);
        wgmma_begin();
        multiply_keys(products, 0);
        if constexpr (TakeTurns) named_barrier_arrive(other_turn, 256);
        wgmma_wait<0>();
        settle(products);
        auto& s = to_logits(products, storage, base + T::kScales + 2 * (lane & 3) * 4);
        release(key_empty(0));
        softmax(s, tile_end - 1, alpha);
        pack(s);
      }
      for (int tile = tile_end - 2; tile >= tile_begin; --tile) {
        const int before = stage, before_parity = parity;
        if (++stage == T::kStages) stage = 0, parity ^= 1;
        Product products[64];
        float storage[64];
        mbarrier_wait(key_full(stage), parity);
        if constexpr (TakeTurns) named_barrier_sync(my_turn, 256);
        settle(out);
        wgmma_begin();
        multiply_keys(products, stage);
        mbarrier_wait(value_full(before), before_parity);
        multiply_values(before);
        if constexpr (TakeTurns) named_barrier_arrive(other_turn, 256);
        wgmma_wait<1>();
        settle(products);
        auto& s = to_logits(products, storage, base + T::kScales + stage * T::kScaleBytes + 2 * (lane & 3) * 4);
        release(key_empty(stage));
        softmax(s, tile, alpha);
        wgmma_wait_all_after(sum[0] + sum[1], base + T::kBarriers + 4 * T::kStages * 8);
        settle(out);
        release(value_empty(before));
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[4 * n + i] *= alpha[i >> 1];
        }
        pack(s);
      }
      if constexpr (TakeTurns) {
        if (me == 0) named_barrier_sync(my_turn, 256);  // the other's last arrival
      }
      mbarrier_wait(value_full(stage), parity);
      settle(out);
      wgmma_begin();
      multiply_values(stage);
      wgmma_wait<0>();
      settle(out);
    }
    // The output leaves by way of the queries' memory, in whole rows.
    named_barrier_sync(1 + me, 128);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float l = sum[i];
      l += __shfl_xor_sync(~0u, l, 1);
      l += __shfl_xor_sync(~0u, l, 2);
      const int r = warp * 16 + (lane >> 2) + 8 * i, row = row0 + me * 64 + r;
      float top = maximum[i] * scale[i], weight = 1.0f;
      if (a.sink_logits) {
        const float sink = a.sink_logits[head * group + row % group] * kLog2e;
        const float higher = fmaxf(top, sink);
        weight = exp2f(top - higher);
        l = fmaf(l, weight, exp2f(sink - higher));
        top = higher;
      }
      const float inverse = l > 0.0f ? weight / l : 0.0f;
      if (a.lse && (lane & 3) == 0 && row < rows) a.lse[element(row) / HD] = l > 0.0f ? (top + log2f(l)) * kLn2 : -INFINITY;
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        const float x = out[4 * n + 2 * i] * inverse, y = out[4 * n + 2 * i + 1] * inverse;
        unsigned bits;
        if (a.dtype == static_cast<int>(DType::BF16)) {
          bits = to_bf16_bits(x) | static_cast<unsigned>(to_bf16_bits(y)) << 16;
        } else {
          const __half2 h = __floats2half2_rn(x, y);
          bits = *reinterpret_cast<const unsigned*>(&h);
        }
        sts32(query + (n >> 3) * 8192 + r * 128 + ((n & 7) ^ (r & 7)) * 16 + (lane & 3) * 4, bits);
      }
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (HD / 8); i += 32) {
      const int r = warp * 16 + i / (HD / 8), c = i % (HD / 8), row = row0 + me * 64 + r;
      if (row >= rows) continue;
      std::uint32_t v[4];
      lds128(query + (c >> 3) * 8192 + r * 128 + ((c & 7) ^ (r & 7)) * 16, v);
      *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(a.out) + element(row) + c * 8) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

template <int HD, bool Int8, bool TakeTurns>
void launch_hopper(const HopperFlashArgs& a, const DeviceInfo& device, cudaStream_t stream) {
  using T = HopperTile<HD, Int8>;
  allow_shared(hopper_flash_kernel<HD, Int8, TakeTurns>, T::kBytes, device.shared_bytes_per_block, "prefill");
  const std::int64_t rows = static_cast<std::int64_t>(a.flash.max_q_len) * (a.flash.num_q_heads / a.flash.num_kv_heads);
  const dim3 grid(static_cast<unsigned>((rows + T::kRows - 1) / T::kRows), static_cast<unsigned>(a.flash.num_kv_heads),
                  static_cast<unsigned>(a.flash.num_seqs));
  launch_kernel("prefill", {grid, T::kThreads, T::kBytes, stream}, hopper_flash_kernel<HD, Int8, TakeTurns>, a);
}

}  // namespace tq4::gpu
