// FlashAttention on Hopper's warpgroup products: a block of 3 warpgroups, one on each multiprocessor, takes piece after piece of 128 query rows of one
// kv head (hopper_work.cuh). The first loads: three of its warps the next piece's queries, one thread tiles of 128 keys and values (one bulk copy each:
// tiles lie in memory as wgmma reads them), both while the piece before is still computed; the other two own 64 rows each. The products of a
// tile's queries and keys run while the tile before is weighted: logits(t + 1) and P(t) V(t) are issued together, softmax(t + 1) overlaps
// P(t) V(t), and the two warpgroups take turns so that the softmax of one runs beside the products of the other.
// Rows are (query, head of the group) pairs, as in flash.cu: K and V are read once for the group. Tiles run from the last to the first.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/prefill_attention/hopper_loads.cuh"
#include "cuda/prefill_attention/row_end.cuh"

namespace tq4::gpu {

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
  constexpr float kLog2e = 1.4426950408889634f;
  TQ4_DYNAMIC_SHARED(unsigned char, memory);
  const FlashArgs& a = args.flash;
  const HopperMemory<HD, Int8> m{(shared_address(memory) + 1023) & ~1023u};
  if (threadIdx.x == 0) {
    for (int s = 0; s < T::kStages; ++s) {
      mbarrier_init_count(m.key_full(s), 1);
      mbarrier_init_count(m.value_full(s), 1);
      mbarrier_init_count(m.key_empty(s), 4 * T::kGroups);
      mbarrier_init_count(m.value_empty(s), 4 * T::kGroups);
    }
    for (int s = 0; s < T::kPieces; ++s) {
      mbarrier_init_count(m.piece_full(s), 96);
      mbarrier_init_count(m.piece_empty(s), 4 * T::kGroups);
    }
    fence_mbarrier_init();
    fence_bulk_copies();
  }
  __syncthreads();
  wait_for_previous_kernels();
  launch_dependents();
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x >> 7), 0);
  if (warpgroup == 0) {
    registers_down<56>();  // the addresses of queries need them; the others do with 224
    load_pieces<HD, Int8>(args, m);
  } else {
    registers_up<224>();
    const int me = warpgroup - 1, thread = static_cast<int>(threadIdx.x) & 127, warp = thread >> 5, lane = thread & 31;
    const int my_turn = 3 + me, other_turn = 4 - me;
    if constexpr (TakeTurns) {
      if (me == 1) named_barrier_arrive(other_turn, 256);  // the first warpgroup begins
    }
    int stage = 0, parity = 0;
    static_assert(T::kPieces == 2);
    for (int slot = 0, slot_parity = 0;; slot_parity ^= slot, slot ^= 1) {
      mbarrier_wait(m.piece_full(slot), slot_parity);
      FlashPiece piece{};
      {
        std::uint32_t w[4];
        lds128(m.piece(slot), w);
        piece.row0 = static_cast<int>(w[0]), piece.head = static_cast<int>(w[1]), piece.q_begin = static_cast<int>(w[2]),
        piece.q_len = static_cast<int>(w[3]);
        piece.kv_len = static_cast<int>(lds32(m.piece(slot) + 16));
      }
      if (piece.row0 < 0) break;
      const int row0 = piece.row0, kv_len = piece.kv_len, rows = piece.q_len * static_cast<int>(args.rows.group);
      const auto [tile_begin, tile_end, first_position, last_position] = key_range<T::kRows>(args, piece);
      const std::uint32_t query = m.queries(slot) + me * T::kQueries;
      float out[HD / 2], maximum[2], sum[2], scale[2];
      std::uint32_t weights[kTileKeys / 16][4];
      RowRange range[2];
#pragma unroll
      for (int i = 0; i < HD / 2; ++i) out[i] = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = min(row0 + me * 64 + warp * 16 + (lane >> 2) + 8 * i, rows - 1),
                  position = kv_len - piece.q_len + query_of(args.rows, row).query;
        maximum[i] = -INFINITY;
        sum[i] = 0.0f;
        scale[i] = a.sm_scale * kLog2e;
        if constexpr (Int8) scale[i] *= args.tiles.q8_scale[place_of(args, piece, row)];
        range[i] = {a.window > 0 ? position - a.window + 1 : 0, a.causal ? min(kv_len, position + 1) : kv_len};
      }
      const std::uint64_t query_operand = wgmma_rows(query), key_operand = wgmma_rows(m.base + T::kKeys),
                          value_operand = wgmma_columns(m.base + T::kValues, kTileKeys * 128);
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
            weights[k][h] = half2_bits(s[4 * (2 * k + (h >> 1)) + 2 * (h & 1)], s[4 * (2 * k + (h >> 1)) + 2 * (h & 1) + 1]);
          }
        }
      };
      if (tile_end > tile_begin) {
        float alpha[2];
        {
          Product products[64];
          float storage[64];
          mbarrier_wait(m.key_full(stage), parity);
          if constexpr (TakeTurns) named_barrier_sync(my_turn, 256);
          wgmma_begin();
          multiply_keys(products, stage);
          if constexpr (TakeTurns) named_barrier_arrive(other_turn, 256);
          wgmma_wait<0>();
          settle(products);
          auto& s = to_logits(products, storage, m.base + T::kScales + stage * T::kScaleBytes + 2 * (lane & 3) * 4);
          release(m.key_empty(stage));
          softmax(s, tile_end - 1, alpha);
          pack(s);
        }
        for (int tile = tile_end - 2; tile >= tile_begin; --tile) {
          const int before = stage, before_parity = parity;
          if (++stage == T::kStages) stage = 0, parity ^= 1;
          Product products[64];
          float storage[64];
          mbarrier_wait(m.key_full(stage), parity);
          if constexpr (TakeTurns) named_barrier_sync(my_turn, 256);
          settle(out);
          wgmma_begin();
          multiply_keys(products, stage);
          mbarrier_wait(m.value_full(before), before_parity);
          multiply_values(before);
          if constexpr (TakeTurns) named_barrier_arrive(other_turn, 256);
          wgmma_wait<1>();
          settle(products);
          auto& s = to_logits(products, storage, m.base + T::kScales + stage * T::kScaleBytes + 2 * (lane & 3) * 4);
          release(m.key_empty(stage));
          softmax(s, tile, alpha);
          wgmma_wait_all_after(sum[0] + sum[1], m.base + T::kBarriers + 4 * T::kStages * 8);
          settle(out);
          release(m.value_empty(before));
#pragma unroll
          for (int n = 0; n < HD / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[4 * n + i] *= alpha[i >> 1];
          }
          pack(s);
        }
        mbarrier_wait(m.value_full(stage), parity);
        settle(out);
        wgmma_begin();
        multiply_values(stage);
        wgmma_wait<0>();
        settle(out);
        release(m.value_empty(stage));
        if (++stage == T::kStages) stage = 0, parity ^= 1;
      }
      // The output leaves by way of the queries' memory, in whole rows.
      named_barrier_sync(1 + me, 128);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = warp * 16 + (lane >> 2) + 8 * i, row = row0 + me * 64 + r;
        const std::int64_t place = place_of(args, piece, row);
        const int q_head = piece.head * static_cast<int>(args.rows.group) + query_of(args.rows, row).head;
        const RowEnd end = end_row(maximum[i] * scale[i], sum[i], a.sink_logits ? a.sink_logits + q_head : nullptr);
        if (a.lse && (lane & 3) == 0 && row < rows) a.lse[place] = end.lse();
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
          const std::uint32_t bits = pack_pair(out[4 * n + 2 * i] * end.factor, out[4 * n + 2 * i + 1] * end.factor, a.dtype);
          sts32(query + (n >> 3) * 8192 + r * 128 + ((n & 7) ^ (r & 7)) * 16 + (lane & 3) * 4, bits);
        }
      }
      __syncwarp();
#pragma unroll 4
      for (int i = lane; i < 16 * (HD / 8); i += 32) {
        const int r = warp * 16 + i / (HD / 8), c = i % (HD / 8), row = row0 + me * 64 + r;
        if (row >= rows) continue;
        std::uint32_t v[4];
        lds128(query + (c >> 3) * 8192 + r * 128 + ((c & 7) ^ (r & 7)) * 16, v);
        *reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(a.out) + place_of(args, piece, row) * HD + c * 8) =
            make_uint4(v[0], v[1], v[2], v[3]);
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(m.piece_empty(slot));
    }
    if constexpr (TakeTurns) {
      if (me == 0) named_barrier_sync(my_turn, 256);  // the other's last arrival
    }
  }
}

template <int HD, bool Int8, bool TakeTurns>
void launch_hopper(HopperFlashArgs a, const DeviceInfo& device, cudaStream_t stream) {
  using T = HopperTile<HD, Int8>;
  a.rows = group_rows(a.flash);
  a.section = section_heads(a.flash, a.tiles.tiles);
  allow_shared(hopper_flash_kernel<HD, Int8, TakeTurns>, T::kBytes, device.shared_bytes_per_block, "prefill");
  const std::int64_t rows = static_cast<std::int64_t>(a.flash.max_q_len) * (a.flash.num_q_heads / a.flash.num_kv_heads);
  const std::int64_t pieces = (rows + T::kRows - 1) / T::kRows * a.flash.num_kv_heads * a.flash.num_seqs;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(pieces, device.sm_count));
  launch_kernel_early("prefill", {dim3(blocks), T::kThreads, T::kBytes, stream}, hopper_flash_kernel<HD, Int8, TakeTurns>, a);
}

}  // namespace tq4::gpu
