// The fused paged decode kernel for native pages (sm_90): one thread block an SM, 16 warps. In a round (fused_plan.cuh) the block rotates the queries
// of the round's pairs, every warp streams and computes its own run of tiles (fused_pipeline.cuh, fused_tile.cuh) without waiting for
// any other, then the warps' states are merged pair by pair. A pair that lies in the block as a whole is finished there; of one that spans blocks
// the part goes to the workspace, and the block that brings the last part merges them. docs/decode_kernel.md explains it with drawings.
#pragma once

#include <cuda_bf16.h>

#include "cuda/decode_attention/fused_pipeline.cuh"
#include "cuda/decode_attention/fused_tile.cuh"

namespace tq4::gpu::fused {

/// Sizes and the map of shared memory. Addresses are absolute (dynamic shared memory starts at kBase; the tables need 64 KiB alignment).
template <class Shape_, class Key_, class Value_, bool Exact_ = false>
struct Config {
  static constexpr bool Exact = Exact_;  // with exact fp16 tokens (sinks, recent)
  using S = Shape_;
  using Key = Key_;
  using Value = Value_;
  static constexpr int D = S::D;
  static constexpr int CodeBytes = Key::kBytes + Value::kBytes;
  static constexpr int ScaleBytes = 64 + (Value::kZero ? 32 : 0);
  static constexpr int SlotBytes = CodeBytes + ScaleBytes;
  static constexpr int RoundRows = D <= 128 ? 32 : 16;  // query rows of all pairs of a round
  static constexpr int Pairs = RoundRows / S::Rows;     // pairs of a round
  static constexpr int States = kWarps + Pairs;         // a warp's last state, and one for the warp in which a pair ends
  static constexpr std::uint32_t kBase = 1024;
  static constexpr std::uint32_t kEnd = 228 * 1024;
  static constexpr int RowStride =
      D * 4 + (S::Rows * D <= 1024 ? 16 : 0);  // bytes of a row of a state, padded against bank conflicts where there is room
  static constexpr int StateBytes = S::Rows * RowStride + S::Rows * 8;  // accumulators, then (max, sum) a row
  static constexpr int HalfStride = (D + 8) * 2;                        // bytes of a row of rotated queries or finished outputs (fp16)
  static constexpr int HighBytes = Pairs * StateBytes + RoundRows * HalfStride;
  static constexpr int SmallBytes = 1024 + 512 + kWarps * 64;  // mbarriers, what the warps tell each other, where their walks rest
  // Rings: those of the first WarpsLow warps lie below the tables, the others above.
  static constexpr int Low = kTableAddress - kBase - SmallBytes;
  static constexpr int High = kEnd - 2 * kTableAddress - HighBytes;
  static constexpr int stages() {
    for (int n = 8; n > 1; --n)
      if (Low / (n * SlotBytes) + High / (n * SlotBytes) >= kWarps) return n;
    return 1;
  }
  static constexpr int Stages = stages();
  static constexpr int RingBytes = Stages * SlotBytes;
  static constexpr int WarpsLow = Low / RingBytes;
  static_assert(Stages >= 2 && RingBytes >= StateBytes, "no room for a ring, or for a state in it");
  static constexpr std::uint32_t kBarriers = kTableAddress - SmallBytes;  // kWarps * Stages mbarriers
  static constexpr std::uint32_t kStateSlot = kBarriers + 1024;  // States words: slot of the state's pair in the round, -1 = no state
  static constexpr std::uint32_t kPairTable =
      kStateSlot + 4 * 24;  // Pairs x (sequence, head, output wanted, seq_len, begin, units), 32 bytes each
  static constexpr std::uint32_t kWalks = kBarriers + 1024 + 512;  // two a warp
  static constexpr std::uint32_t kPairStates = kEnd - HighBytes;
  static constexpr std::uint32_t kRotated = kPairStates + Pairs * StateBytes;
  static constexpr int PartialFloats = S::Rows * D + 2 * S::Rows;
  __device__ static std::uint32_t ring(int warp) {
    return warp < WarpsLow ? kBase + warp * RingBytes : 2 * kTableAddress + (warp - WarpsLow) * RingBytes;
  }
  /// State i: a warp's own lies in its ring (empty by then), those of ended pairs beside it.
  __device__ static std::uint32_t state(int i) { return i < kWarps ? ring(i) : kPairStates + (i - kWarps) * StateBytes; }
};

__device__ __forceinline__ void sts32(std::uint32_t a, std::uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}
__device__ __forceinline__ void sts16(std::uint32_t a, std::uint32_t v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(a), "h"((std::uint16_t)v) : "memory");
}
__device__ __forceinline__ void sts128(std::uint32_t a, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(a), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}
__device__ __forceinline__ float lds_f32(std::uint32_t a) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
  return v;
}
__device__ __forceinline__ std::uint32_t bf16x2_to_half2(std::uint32_t x) {
  const float lo = __uint_as_float(x << 16), hi = __uint_as_float(x & 0xffff0000u);
  return pack_half2(fminf(fmaxf(lo, -65504.f), 65504.f), fminf(fmaxf(hi, -65504.f), 65504.f));
}
__device__ __forceinline__ float half_bits_to_float(std::uint32_t bits) { return __half2float(__ushort_as_half((std::uint16_t)bits)); }

/// out(i, n) = sum_j matrix[i][j] * row_n[j] for 16 outputs and 8 rows, by one warp. The operands can be asked for long before they are used.
/// matrix: fp16 [D, D] row-major in global memory.
/// N consecutive floats from shared memory, as wide as N allows.
template <int N>
__device__ __forceinline__ void load_floats(std::uint32_t at, float (&v)[N]) {
  std::uint32_t w[N];
  load_bytes<N * 4>(at, w);
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = __uint_as_float(w[i]);
}

template <int D>
struct RotateTile {
  static constexpr int K = D / 32;
  uint4 lo[K], hi[K];
  std::uint32_t b[K][4];

  __device__ __forceinline__ void load_matrix(const std::uint16_t* matrix, int block, int lane) {
    const std::uint16_t* row = matrix + (block * 16 + (lane >> 2)) * D + 8 * (lane & 3);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      lo[k] = __ldg(reinterpret_cast<const uint4*>(row + k * 32));
      hi[k] = __ldg(reinterpret_cast<const uint4*>(row + 8 * D + k * 32));
    }
  }
  /// row(j, b): 8 halves from column j of the row this lane stands for (4 words).
  template <class Row>
  __device__ __forceinline__ void load_rows(int lane, Row&& row) {
#pragma unroll
    for (int k = 0; k < K; ++k) row(k * 32 + 8 * (lane & 3), b[k]);
  }
  __device__ __forceinline__ void rows_to_half() {
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) b[k][i] = bf16x2_to_half2(b[k][i]);
  }
  /// store(i, n, value) for this lane's results.
  template <class Store>
  __device__ __forceinline__ void run(int block, int lane, Store&& store) const {
    float c[2][4] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      mma(c[0], lo[k].x, hi[k].x, lo[k].y, hi[k].y, b[k][0], b[k][1]);
      mma(c[1], lo[k].z, hi[k].z, lo[k].w, hi[k].w, b[k][2], b[k][3]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) store(block * 16 + (lane >> 2) + e / 2 * 8, 2 * (lane & 3) + e % 2, c[0][e] + c[1][e]);
  }
};

template <class C>
struct Kernel {
  using S = typename C::S;
  using Key = typename C::Key;
  using Value = typename C::Value;
  using Rotate = RotateTile<C::D>;
  static constexpr int D = C::D;
  static constexpr int Blocks16 = D / 16;            // blocks of 16 outputs of a rotation
  static constexpr int RowTiles = C::RoundRows / 8;  // column tiles of 8 rows of a round
  static constexpr int PairTiles = S::Rows > 8 ? S::Rows / 8 : 1;

  const Params& p;
  const int warp, lane, g, t;
  std::uint32_t lane_base = 0;

  __device__ __forceinline__ Kernel(const Params& params, int thread)
      : p(params), warp(thread / 32), lane(thread % 32), g(thread % 32 >> 2), t(thread & 3) {}

  __device__ __forceinline__ int rows() const { return p.group * p.q_len; }
  /// Offset of query row r of a pair in q and out.
  __device__ __forceinline__ std::int64_t row_offset(int seq, int head, int r) const {
    const int token = r * p.group_reciprocal >> 16;
    return ((std::int64_t)(seq * p.q_len + token) * (p.num_kv_heads * p.group) + head * p.group + r - token * p.group) * D;
  }
  __device__ __forceinline__ Pair pair_at(int slot) const {
    return {pair_word(slot, 0), pair_word(slot, 1), pair_word(slot, 3), pair_word(slot, 4), pair_word(slot, 5)};
  }
  __device__ __forceinline__ int pair_word(int slot, int word) const { return (int)lds32(C::kPairTable + slot * 32 + word * 4); }

  // ---- rotations ------------------------------------------------------------------------------------------------------------------
  // The rows of a round (pair slot * S::Rows + row) make RowTiles column tiles. A job is one block of 16 outputs of one column tile; with a matrix a head
  // a column tile of several pairs takes a job for each of them.

  struct Job {
    int block, tile, slot;  // slot: the pair whose rows count, -1 = all
  };
  __device__ __forceinline__ int job_count(bool per_head, int pairs) const {
    return Blocks16 * (per_head ? pairs * PairTiles : (pairs * S::Rows + 7) / 8);
  }
  __device__ __forceinline__ Job job_at(bool per_head, int i) const {
    const int n = i / Blocks16;
    if (!per_head) return {i % Blocks16, n, -1};
    return {i % Blocks16, S::Rows > 8 ? n : n * S::Rows / 8, S::Rows > 8 ? n / PairTiles : n};
  }
  __device__ __forceinline__ void load_job_matrix(Rotate& rotate, const std::uint16_t* matrix, std::int64_t head_stride,
                                                  const Job& job) const {
    rotate.load_matrix(matrix + (job.slot >= 0 ? pair_word(job.slot, 1) * head_stride : 0), job.block, lane);
  }
  /// The query row `row` of the round. Rows that do not exist repeat one that does: computed and dropped.
  __device__ __forceinline__ const std::uint16_t* query_row(int row, int pairs) const {
    const int slot = min(row / S::Rows, pairs - 1);
    return static_cast<const std::uint16_t*>(p.q) + row_offset(pair_word(slot, 0), pair_word(slot, 1), min(row % S::Rows, rows() - 1));
  }
  __device__ __forceinline__ void ask_queries(Rotate& rotate, const Job& job, int pairs) const {
    const std::uint16_t* q = query_row(job.tile * 8 + g, pairs);
    rotate.load_rows(lane, [&](int j, std::uint32_t* b) {
      const uint4 x = __ldg(reinterpret_cast<const uint4*>(q + j));
      b[0] = x.x, b[1] = x.y, b[2] = x.z, b[3] = x.w;
    });
    load_job_matrix(rotate, p.query_matrix, p.query_head_stride, job);
  }
  /// Rotates the queries of the round into shared memory.
  __device__ __forceinline__ void rotate_queries(int pairs) const {
    const bool per_head = p.query_head_stride != 0;
    const int jobs = job_count(per_head, pairs);
#pragma unroll 1
    for (int i = warp; i < jobs; i += kWarps) {
      const Job job = job_at(per_head, i);
      Rotate rotate;
      ask_queries(rotate, job, pairs);
      if (p.q_is_bf16) rotate.rows_to_half();
      rotate.run(job.block, lane, [&](int out, int n, float v) {
        const int row = job.tile * 8 + n;
        if (job.slot < 0 || row / S::Rows == job.slot)
          sts16(C::kRotated + row * C::HalfStride + out * 2, __half_as_ushort(__float2half_rn(v)));
      });
    }
  }
  /// Queries that come rotated already.
  __device__ __forceinline__ void copy_queries(int pairs) const {
#pragma unroll 1
    for (int e = warp * 32 + lane; e < pairs * S::Rows * (D / 2); e += kWarps * 32) {
      const int row = e / (D / 2), column = e % (D / 2);
      const std::uint32_t two = __ldg(reinterpret_cast<const std::uint32_t*>(query_row(row, pairs)) + column);
      sts32(C::kRotated + row * C::HalfStride + column * 4, p.q_is_bf16 ? bf16x2_to_half2(two) : two);
    }
  }
  /// Queries of one pair as B fragments.
  __device__ __forceinline__ void query_fragments(int slot, QueryFragments<S>& q) const {
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n) {
      const int row = slot * S::Rows + (S::Packed ? g / 2 : n * 8 + g);
      const bool live = !S::Packed || g % 2 == 0;
#pragma unroll
      for (int i = 0; i < S::Steps; i += 2) {  // 4 pairs of a chunk lie together
        std::uint32_t v[4];
        lds128(C::kRotated + row * C::HalfStride + (KeyOrder<D>::dim(0, 2 * i) + t * KeyOrder<D>::kChunk) * 2, v);
#pragma unroll
        for (int e = 0; e < 4; ++e) q.b[n][i + e / 2][e % 2] = live ? v[e] : 0;
      }
    }
  }
  /// Finished rows (kRotated, fp16, normalised) of the wanted pairs, rotated back, to the output.
  __device__ __forceinline__ void write_outputs(int pairs) const {
    const bool per_head = p.inverse_matrix && p.inverse_head_stride != 0;
    const int jobs = job_count(per_head, pairs);
    const auto put = [&](int row, int dim, float v) {
      const int slot = row / S::Rows, r = row % S::Rows;
      if (slot >= pairs || r >= rows() || !pair_word(slot, 2)) return;
      const int head = pair_word(slot, 1);
      if (p.v_centre && p.inverse_matrix) v += __ldg(p.v_centre + head * D + dim);
      std::uint16_t* out = static_cast<std::uint16_t*>(p.out) + row_offset(pair_word(slot, 0), head, r) + dim;
      *out = p.q_is_bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v)) : __half_as_ushort(__float2half_rn(v));
    };
#pragma unroll 1
    for (int i = warp; i < jobs; i += kWarps) {
      const Job job = job_at(per_head, i);
      if (!p.inverse_matrix) {
#pragma unroll 1
        for (int e = lane; e < 8 * 16; e += 32) {
          const int row = job.tile * 8 + e / 16, dim = job.block * 16 + e % 16;
          put(row, dim, half_bits_to_float(lds16(C::kRotated + row * C::HalfStride + dim * 2)));
        }
        continue;
      }
      Rotate rotate;
      load_job_matrix(rotate, p.inverse_matrix, p.inverse_head_stride, job);
      rotate.load_rows(lane, [&](int j, std::uint32_t* b) { lds128(C::kRotated + (job.tile * 8 + g) * C::HalfStride + j * 2, b); });
      rotate.run(job.block, lane, [&](int out, int n, float v) {
        const int row = job.tile * 8 + n;
        if (job.slot < 0 || row / S::Rows == job.slot) put(row, out, v);
      });
    }
  }

  // ---- tiles ----------------------------------------------------------------------------------------------------------------------

  /// One tile of compressed tokens, already in shared memory at `at`. Raw codes go to registers first, so that `refill` can reuse the slot.
  template <class Refill>
  __device__ __forceinline__ void compressed_tile(RowState<S>& st, const QueryFragments<S>& q, std::uint32_t at, int seq_len, int first,
                                                  bool edge, std::uint32_t select0, std::uint32_t select1, Refill&& refill) {
    typename Key::Raw k;
    typename Value::Raw v;
    Key::load(k, at, g, t);
    std::uint32_t scales[2];
    lds64(at + C::CodeBytes + g * 8, scales);
    Value::load(v, at + Key::kBytes, g, t);
    float v_zero[2] = {0.f, 0.f};
    if constexpr (Value::kZero) {
      const std::uint32_t zeros = lds32(at + C::CodeBytes + 64 + g * 4);
      v_zero[0] = half_bits_to_float(zeros & 0xffff);
      v_zero[1] = half_bits_to_float(zeros >> 16);
    }
    const float k_scale[2] = {half_bits_to_float(scales[0] & 0xffff), half_bits_to_float(scales[0] >> 16)};
    float v_scale[2] = {half_bits_to_float(scales[1] & 0xffff), half_bits_to_float(scales[1] >> 16)};
    __syncwarp();
    refill();
    float s[2][S::LaneRows];
    logits_tile<S>(
        q, [&](int h, int i) { return Key::pair(k, h, i, lane_base); }, k_scale, s);
    if constexpr (!Key::kTable) {
#pragma unroll
      for (int r = 0; r < S::LaneRows; ++r) s[0][r] *= p.k_table_scale, s[1][r] *= p.k_table_scale;
    }
    if (edge) {
      const Tokens tokens(p, seq_len);
      mask_tile<S>(Mask{seq_len, p.q_len, p.window, tokens.begin, tokens.end}, first, g, t, p.group_reciprocal, s, v_scale, v_zero);
    }
    std::uint32_t b[S::Tiles][2][S::Parities][2];
    softmax_tile<S, Value::kZero>(st, s, v_scale, v_zero, select0, select1, b);
    values_tile<S>(st, b, [&](int h, int odd, int i) {
      return odd ? Value::template pair<1>(v, h, i, lane_base) : Value::template pair<0>(v, h, i, lane_base);
    });
  }

  /// 16 exact tokens from `first` on, held in fp16 in the rotated space: row `position % period` of the buffers.
  __device__ __forceinline__ void exact_tile(RowState<S>& st, const QueryFragments<S>& q, const std::uint16_t* k, const std::uint16_t* v,
                                             int period, const Mask& mask, int first, std::uint32_t select0, std::uint32_t select1) {
    const int top = mask.end - 1;
    const std::uint16_t* k_row[2];
    const std::uint16_t* v_row[2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      k_row[h] = k + (std::int64_t)(min(first + g + 8 * h, top) % period) * D + t * KeyOrder<D>::kChunk;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd)
        v_row[h][odd] = v + (std::int64_t)(min(first + 8 * h + 2 * t + odd, top) % period) * D + g * (D / 8);
    }
    const float k_scale[2] = {p.k_table_scale, p.k_table_scale};
    float v_scale[2] = {1.f, 1.f}, v_zero[2] = {0.f, 0.f};
    float s[2][S::LaneRows];
    logits_tile<S>(
        q, [&](int h, int i) { return __ldg(reinterpret_cast<const std::uint32_t*>(k_row[h] + KeyOrder<D>::dim(0, i))); }, k_scale, s);
    mask_tile<S>(mask, first, g, t, p.group_reciprocal, s, v_scale, v_zero);
    std::uint32_t b[S::Tiles][2][S::Parities][2];
    softmax_tile<S, Value::kZero>(st, s, v_scale, v_zero, select0, select1, b);
    values_tile<S>(st, b, [&](int h, int odd, int i) { return __ldg(reinterpret_cast<const std::uint32_t*>(v_row[h][odd] + 2 * i)); });
  }

  /// Unit i of a pair, one of its exact tiles.
  __device__ __forceinline__ void exact_unit(const Pair& pair, int i, RowState<S>& st, const QueryFragments<S>& q, std::uint32_t select0,
                                             std::uint32_t select1) {
    const Tokens tokens = pair.tokens(p);
    const bool sink = i < tokens.sink_tiles();
    const Mask mask{tokens.seq_len, p.q_len, p.window, sink ? 0 : tokens.recent, sink ? tokens.sinks : tokens.seq_len};
    const int period = sink ? p.sinks : p.recent;
    const std::int64_t base = ((std::int64_t)pair.seq * p.num_kv_heads + pair.head) * period * D;
    exact_tile(st, q, (sink ? p.sink_k : p.recent_k) + base, (sink ? p.sink_v : p.recent_v) + base, period, mask,
               sink ? i * kTile : tokens.recent + (i - tokens.sink_tiles()) * kTile, select0, select1);
  }

  // ---- merging ------------------------------------------------------------------------------------------------------------------

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
  static constexpr int LaneDims = D / 32;  // dims of a row a lane merges

  /// A finished row: normalised to shared memory, for the rotation.
  __device__ __forceinline__ void finish_row(int slot, int r, float m, float l, const float (&o)[LaneDims]) const {
    const float unit = l > 0.f ? 1.f / l : 0.f;
#pragma unroll
    for (int i = 0; i < LaneDims; ++i)
      sts16(C::kRotated + (slot * S::Rows + r) * C::HalfStride + (lane * LaneDims + i) * 2, __half_as_ushort(__float2half_rn(o[i] * unit)));
    if (p.lse && r < rows()) write_lse(pair_word(slot, 0), pair_word(slot, 1), r, m, l);
  }
  __device__ __forceinline__ float* partial_row(int index, int r) const {
    return p.partial + (std::int64_t)index * C::PartialFloats + r * D + lane * LaneDims;
  }
  __device__ __forceinline__ float2* partial_sums(int index, int r) const {
    return reinterpret_cast<float2*>(p.partial + (std::int64_t)index * C::PartialFloats + S::Rows * D) + r;
  }

  /// Merges the states of the block, a warp a row: finished rows to shared memory, rows of pairs that span blocks to the workspace.
  __device__ __forceinline__ void merge_states(int pairs, int partial_first, int partial_last) const {
#pragma unroll 1
    for (int row = warp; row < pairs * S::Rows; row += kWarps) {
      const int slot = row / S::Rows, r = row % S::Rows;
      const bool mine = lane < C::States && (int)lds32(C::kStateSlot + min(lane, C::States - 1) * 4) == slot;
      float m = kMaskedMax, l = 0.f;
      if (mine) {
        const std::uint32_t at = C::state(lane) + S::Rows * C::RowStride + r * 8;
        m = lds_f32(at);
        l = lds_f32(at + 4);
      }
      float top = m;
#pragma unroll
      for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
      const float weight = mine ? exp2_fast(m - top) : 0.f;
      float sum = l * weight;
#pragma unroll
      for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
      float out[LaneDims] = {};
      unsigned states = __ballot_sync(~0u, mine);
      while (states) {
        const int i = __ffs(states) - 1;
        states &= states - 1;
        const float w = __shfl_sync(~0u, weight, i);
        float v[LaneDims];
        load_floats(C::state(i) + r * C::RowStride + lane * LaneDims * 4, v);
#pragma unroll
        for (int k = 0; k < LaneDims; ++k) out[k] += w * v[k];
      }
      if (slot != partial_first && slot != partial_last) {
        finish_row(slot, r, top, sum, out);
        continue;
      }
      const int index = 2 * blockIdx.x + (slot == partial_first ? 0 : 1);  // a block has at most two partial pairs: its first and its last
#pragma unroll
      for (int k = 0; k < LaneDims; ++k) __stcg(partial_row(index, r) + k, out[k]);
      if (lane == 0) __stcg(partial_sums(index, r), make_float2(top, sum));
    }
  }
  /// Merges a pair's parts from the workspace: of blocks first_block .. first_block + parts - 1.
  __device__ __forceinline__ void merge_parts(int slot, int first_block, int parts, bool first_is_opening) const {
    const auto index = [&](int k) { return 2 * (first_block + k) + (k == 0 && !first_is_opening ? 1 : 0); };
#pragma unroll 1
    for (int r = warp; r < min(rows(), S::Rows); r += kWarps) {
      float top = kMaskedMax, sum = 0.f, out[LaneDims] = {};
#pragma unroll 1
      for (int k0 = 0; k0 < parts; k0 += 32) {
        const int count = min(parts - k0, 32);
        float2 ml = make_float2(kMaskedMax, 0.f);
        if (lane < count) ml = __ldcg(partial_sums(index(k0 + lane), r));
        float next = fmaxf(top, ml.x);
#pragma unroll
        for (int o = 16; o; o >>= 1) next = fmaxf(next, __shfl_xor_sync(~0u, next, o));
        const float old = exp2_fast(top - next);
        top = next;
        const float weight = lane < count ? exp2_fast(ml.x - next) : 0.f;
        float s = ml.y * weight;
#pragma unroll
        for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
        sum = sum * old + s;
#pragma unroll
        for (int i = 0; i < LaneDims; ++i) out[i] *= old;
#pragma unroll 1
        for (int k1 = 0; k1 < count; k1 += 8) {
          float v[8][LaneDims];
#pragma unroll
          for (int i = 0; i < 8; ++i) {  // past the last part: that part again, with weight 0
            const float* row = partial_row(index(k0 + min(k1 + i, count - 1)), r);
            if constexpr (LaneDims % 4 == 0) {
#pragma unroll
              for (int d = 0; d < LaneDims; d += 4) {
                const float4 four = __ldcg(reinterpret_cast<const float4*>(row + d));
                v[i][d] = four.x, v[i][d + 1] = four.y, v[i][d + 2] = four.z, v[i][d + 3] = four.w;
              }
            } else {
#pragma unroll
              for (int d = 0; d < LaneDims; ++d) v[i][d] = __ldcg(row + d);
            }
          }
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            const float w = __shfl_sync(~0u, weight, min(k1 + i, 31));
#pragma unroll
            for (int d = 0; d < LaneDims; ++d) out[d] += (k1 + i < count ? w : 0.f) * v[i][d];
          }
        }
      }
      finish_row(slot, r, top, sum, out);
    }
  }

  /// One more part of the pair is in the workspace: whether it was the last one.
  __device__ __forceinline__ bool count_part(const Plan& plan, const Pair& pair) const {
    const int parts = divide(pair.end() - 1, plan.length) - divide(pair.begin, plan.length) + 1;
    std::uint32_t* counter = p.counters + pair.seq * p.num_kv_heads + pair.head;
    std::uint32_t before;  // releases this block's part (ordered by the barrier) and acquires the others'
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    if (before + 1 != (std::uint32_t)parts) return false;
    *counter = 0;
    return true;
  }
  /// The states of a round become outputs of its pairs, or parts of the two that span blocks: the first of the piece and its last.
  __device__ __forceinline__ void finish_round(const Plan& plan, bool first_round, bool last_round, int pairs) {
    const Pair first = pair_at(0), last = pair_at(pairs - 1);
    const bool opens = first_round && (first.begin < plan.begin || first.end() > plan.end);
    const bool closes = last_round && last.end() > plan.end && !(first_round && pairs == 1);
    merge_states(pairs, opens ? 0 : -1, closes ? pairs - 1 : -1);
    __syncthreads();
    if (opens || closes) {
      if (warp == 0) {  // both counters at once, a lane each
        const bool mine = lane == 0 ? opens : lane == 1 && closes;
        if (mine) sts32(C::kPairTable + (lane == 0 ? 0 : pairs - 1) * 32 + 8, count_part(plan, lane == 0 ? first : last));
      }
      __syncthreads();
      bool merged = false;
      for (int i = 0; i < 2; ++i) {
        const int slot = i == 0 ? 0 : pairs - 1;
        if (!(i == 0 ? opens : closes) || !pair_word(slot, 2)) continue;
        const Pair& pair = i == 0 ? first : last;
        const int first_block = divide(pair.begin, plan.length);
        merge_parts(slot, first_block, divide(pair.end() - 1, plan.length) - first_block + 1, pair.begin == first_block * plan.length);
        merged = true;
      }
      if (merged) __syncthreads();
    }
    write_outputs(pairs);
  }

  /// Every entry 32 times, K's and V's beside each other (fused_dequant.cuh). entry: K's of code warp * 16 + lane in the lower lanes, V's in the upper.
  __device__ __forceinline__ void fill_tables(std::uint32_t entry) const {
    if (lane < 16 && Key::kTable) {
      const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&entry));
      entry = pack_half2(v.x * p.k_table_scale, v.y * p.k_table_scale);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {  // two codes a store: lanes 0-7 and 16-23 repeat K's entries, the others V's
      const float v = __uint_as_float(__shfl_sync(~0u, entry, (lane & 8) * 2 + 2 * i + lane / 16));
      sts128(kTableAddress + (warp * 16 + 2 * i) * 256 + lane * 16, v, v, v, v);
    }
  }

  // ---- the kernel ---------------------------------------------------------------------------------------------------------------

  __device__ __forceinline__ void run() {
    // Up to the wait nothing is touched that the kernels before this one in the stream may still be writing, so that this part
    // overlaps with their end (programmatic dependent launch); the next kernel may begin its own as soon as blocks end.
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const std::uint32_t bars = C::kBarriers + warp * C::Stages * 8;
    if (lane < C::Stages) mbarrier_init(bars + lane * 8);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");

    // The tables: lane i of a warp takes code warp * 16 + i % 16, K in the lower lanes, V in the upper.
    const int code = warp * 16 + lane % 16;
    std::uint32_t entry = 0;
    if (lane < 16 ? code < Key::kEntries : code < Value::kEntries) entry = __ldg((lane < 16 ? p.k_pairs : p.v_pairs) + code);

    lane_base = kTableAddress | lane * 4;
    fill_tables(entry);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    Plan plan;
    Pair first;  // of the round
    if (!make_plan(p, lane, plan, first)) return;
    const std::uint64_t policy = stream_policy();
    const std::uint32_t ring = C::ring(warp);
    const std::uint32_t select0 = g % 2 == 0 ? 0x4410 : 0x1044, select1 = g % 2 == 0 ? 0x4432 : 0x3244;
    std::uint32_t slot = ring, bar = bars, parity = 0;

    for (int begin = plan.begin;;) {
      // The round's pairs. Every warp writes the same table and reads back its own writes.
      int pairs = 0, round_end;
      Pair pair = first;
      for (;;) {
        if (lane == 0) {
          sts32(C::kPairTable + pairs * 32, pair.seq);
          sts32(C::kPairTable + pairs * 32 + 4, pair.head);
          sts32(C::kPairTable + pairs * 32 + 8, 1);
          sts32(C::kPairTable + pairs * 32 + 12, pair.seq_len);
          sts32(C::kPairTable + pairs * 32 + 16, pair.begin);
          sts32(C::kPairTable + pairs * 32 + 20, pair.units);
        }
        ++pairs;
        round_end = min(pair.end(), plan.end);
        if (round_end == plan.end || pairs == C::Pairs) break;
        pair.next(p);
      }
      __syncwarp();
      Walk walk;
      walk.enter(p, first, begin, round_end, warp);
      Loader<C::CodeBytes, C::ScaleBytes> loader;
      const std::uint32_t walk_at = C::kWalks + warp * 64;
      loader.start(p, walk, walk_at + 32, lane);
      walk.rest(walk_at, lane);

      // Queries come first: once the tiles are asked for, everything else waits behind them.
      if (p.query_matrix) {
        rotate_queries(pairs);
      } else {
        copy_queries(pairs);
      }
      if (begin != plan.begin) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // states were written where tiles go now
      std::uint32_t to = slot, to_bar = bar;
#pragma unroll 1
      for (int i = 0; i < C::Stages && loader.alive; ++i) {
        loader.load(p, lane, to, to_bar, policy);
        to += C::SlotBytes;
        to_bar += 8;
        if (to_bar == bars + C::Stages * 8) to = ring, to_bar = bars;
      }
      if (lane == 0) sts32(C::kStateSlot + warp * 4, ~0u);
      if (warp == 0 && lane < C::Pairs) sts32(C::kStateSlot + (kWarps + lane) * 4, ~0u);
      __syncthreads();

      RowState<S> st;
      bool busy = false;
      int last_slot = 0;
#pragma unroll 1
      for (;;) {
        walk.wake(walk_at);
        if (walk.pos >= walk.end) break;
        busy = true;
        last_slot = walk.slot;
        QueryFragments<S> q;
        query_fragments(walk.slot, q);
        st.reset();
        int tile, tile_end, safe_first, safe_count;
        {
          const Tokens tokens = walk.pair.tokens(p);
          const int shift = tokens.first_tile() - tokens.exact_tiles();  // of the pair's units to tiles
          const int units = walk.segment_end() - walk.pair.begin;
          int unit = walk.pos - walk.pair.begin;
          if constexpr (C::Exact) {
#pragma unroll 1
            for (; unit < units && unit < tokens.exact_tiles(); ++unit) exact_unit(walk.pair, unit, st, q, select0, select1);
          }
          tile = unit + shift;
          tile_end = min(units + shift, tokens.first_tile() + tokens.tiles());
          Mask{tokens.seq_len, p.q_len, p.window, tokens.begin, tokens.end}.safe_tiles(safe_first, safe_count);
        }
        const int seq_len = walk.pair.seq_len;
#pragma unroll 1
        for (; tile < tile_end; ++tile) {
          mbarrier_wait(bar, parity);
          compressed_tile(st, q, slot, seq_len, tile * kTile, (unsigned)(tile - safe_first) >= (unsigned)safe_count, select0, select1, [&] {
            if (loader.alive) loader.load(p, lane, slot, bar, policy);
          });
          slot += C::SlotBytes;
          bar += 8;
          if (bar == bars + C::Stages * 8) slot = ring, bar = bars, parity ^= 1;
        }
        walk.wake(walk_at);
        walk.pos = walk.segment_end();
        if (walk.pos == walk.end) break;
        write_state(st, kWarps + walk.slot, walk.slot);  // the pair ends inside this warp's share
        walk.next_pair(p);
        walk.rest(walk_at, lane);
      }
      if (busy) write_state(st, warp, last_slot);
      __syncthreads();
      finish_round(plan, begin == plan.begin, round_end == plan.end, pairs);
      if (round_end == plan.end) break;
      begin = round_end;
      first = pair_at(pairs - 1);
      if (first.end() == begin) first.next(p);
      __syncthreads();
    }
  }
};

template <class C>
__global__ void __launch_bounds__(kWarps * 32, 1) fused_decode_kernel(const __grid_constant__ Params p) {
  extern __shared__ std::uint8_t shared[];
  if (threadIdx.x == 0 && shared_address(shared) > C::kBase) __trap();  // the fixed addresses need the usual 1 KiB of system use
  Kernel<C>(p, threadIdx.x).run();
}

}  // namespace tq4::gpu::fused
