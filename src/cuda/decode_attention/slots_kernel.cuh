// Decode attention on pages that keep the bytes of one token and kv head together (vLLM's slots), sm_90. A unit is 16 tokens of all kv heads: one
// contiguous run of the page (or one a head), so that it streams like a native page. The line of all units is cut into equal pieces, one a thread
// block (fused_plan.cuh, pairs being whole sequences). In a block `groups` groups of warps take turns at the units, a warp of a group takes one head, and they take
// turns at asking for the units to come, a ring of which is on the way (slots_feed.cuh). Arithmetic on a tile is that of the fused kernel (fused_tile.cuh) with
// dequantisers of its own (slots_codes.cuh). Every warp transforms its queries by itself and writes its state as a part; slots_merge.cu merges parts.
#pragma once

#include "cuda/decode_attention/slots_feed.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu::fused {

template <class C>
struct SlotKernel : SlotFeed<C> {
  using Base = SlotFeed<C>;
  using Base::ask;
  using Base::begin_feed;
  using Base::g;
  using Base::go_on_feeding;
  using Base::lane;
  using Base::p;
  using Base::rows;
  using Base::stage_address;
  using Base::t;
  using Base::warp;
  using S = typename C::S;
  using Key = typename C::Key;
  using Value = typename C::Value;
  static constexpr int D = C::D;
  static constexpr float kGain = 8.f;  // of the keys' table: squares of small centroids stay normal numbers in fp16

  using Base::Base;

  /// The queries of a sequence and this warp's head: four rows at once, 8 lanes each, are transformed, then row by row become B fragments.
  __device__ __forceinline__ void load_queries(int seq, int head, bool odd, QueryFragments<S>& q) const {
    constexpr int kDims = D / 8;  // of a lane
    const std::uint32_t scratch = C::kQuery + warp * D * 2;
    const int part = lane % 8;
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int i = 0; i < S::Steps; ++i) q.b[n][i][0] = q.b[n][i][1] = 0;
#pragma unroll 1
    for (int first = 0; first < rows(); first += 4) {
      const int row = min(first + lane / 8, rows() - 1), token = row * p.group_reciprocal >> 16;
      const std::int64_t at = ((std::int64_t)(seq * p.q_len + token) * (p.heads * p.group) + head * p.group + row - token * p.group) * D;
      const auto* from = reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(p.q) + at + part * kDims);
      float v[kDims];
#pragma unroll
      for (int i = 0; i < kDims; i += 8) {
        const uint4 eight = __ldg(from + i / 8);
        const std::uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float2 f = __half22float2(*reinterpret_cast<const __half2*>(&words[e]));
          if (p.q_is_bf16) f = make_float2(__uint_as_float(words[e] << 16), __uint_as_float(words[e] & 0xffff0000u));
          v[i + 2 * e] = f.x, v[i + 2 * e + 1] = f.y;
        }
      }
      if (p.hadamard) {
        if (p.signs) {
#pragma unroll
          for (int i = 0; i < kDims; ++i) v[i] *= __ldg(p.signs + part * kDims + i);
        }
#pragma unroll
        for (int h = 1; h < kDims; h *= 2)
#pragma unroll
          for (int i = 0; i < kDims; ++i)
            if (!(i & h)) {
              const float a = v[i], b = v[i + h];
              v[i] = a + b, v[i + h] = a - b;
            }
#pragma unroll 1
        for (int h = 1; h < 8; h *= 2)
#pragma unroll
          for (int i = 0; i < kDims; ++i) {
            const float other = __shfl_xor_sync(~0u, v[i], h);
            v[i] = part & h ? other - v[i] : v[i] + other;
          }
#pragma unroll
        for (int i = 0; i < kDims; ++i) v[i] *= rsqrtf((float)D);
      }
#pragma unroll
      for (int i = 0; i < kDims; ++i) v[i] = fminf(fmaxf(v[i], -65504.f), 65504.f);
#pragma unroll 1
      for (int r = 0; r < 4; ++r) {
        if (lane / 8 == r) {
#pragma unroll
          for (int i = 0; i < kDims; i += 2) sts32(scratch + (part * kDims + i) * 2, pack_half2(v[i], v[i + 1]));
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < S::Tiles; ++n) {
          const bool mine = first + r < rows() && (S::Packed ? g == 2 * r : n * 8 + g == first + r);
#pragma unroll
          for (int i = 0; i < S::Steps; ++i) {
            std::uint32_t two[2];
            lds64(scratch + Key::quad_dim(t, i, odd) * 2, two);
            if (mine) q.b[n][i][0] = two[0], q.b[n][i][1] = two[1];
          }
        }
        __syncwarp();
      }
    }
  }

  /// Logits of a tile, and what keys are multiplied by for the norm correction: one over the length of each centroid vector.
  __device__ __forceinline__ void logits(const QueryFragments<S>& q, const typename Key::Raw& k, std::uint32_t lane_base,
                                         const float (&k_scale)[2], float (&s)[2][S::LaneRows]) const {
    float acc[S::Tiles][2][4] = {}, squares[4] = {};
    std::uint32_t even[2] = {};
#pragma unroll
    for (int i = 0; i < S::Steps; ++i) {
      const std::uint32_t a0 = Key::pair(k, 0, 2 * i, lane_base), a1 = Key::pair(k, 1, 2 * i, lane_base);
      const std::uint32_t a2 = Key::pair(k, 0, 2 * i + 1, lane_base), a3 = Key::pair(k, 1, 2 * i + 1, lane_base);
#pragma unroll
      for (int n = 0; n < S::Tiles; ++n) mma(acc[n][i & 1], a0, a1, a2, a3, q.b[n][i][0], q.b[n][i][1]);
      if constexpr (Key::kNormCorrected) {
        const std::uint32_t sum0 = fma_half2(a2, a2, fma_half2(a0, a0, 0)), sum1 = fma_half2(a3, a3, fma_half2(a1, a1, 0));
        if (i % 2 == 0) {
          even[0] = sum0, even[1] = sum1;
        } else {
          mma(squares, even[0], even[1], sum0, sum1, 0x3c003c00u, 0x3c003c00u);  // row sums, in every column
        }
      }
    }
    float unit[2] = {k_scale[0] * p.k_table_scale, k_scale[1] * p.k_table_scale};
    if constexpr (Key::kNormCorrected) unit[0] *= rsqrtf(squares[0] + 1e-14f), unit[1] *= rsqrtf(squares[2] + 1e-14f);
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[h][2 * n % S::LaneRows] = (acc[n][0][2 * h] + acc[n][1][2 * h]) * unit[h];
        if constexpr (!S::Packed) s[h][(2 * n + 1) % S::LaneRows] = (acc[n][0][2 * h + 1] + acc[n][1][2 * h + 1]) * unit[h];
      }
  }

  /// 16 tokens of a head, in shared memory from `at` on; `free` is announced when all that is needed of them is in registers.
  __device__ __forceinline__ void tile(RowState<S>& st, const QueryFragments<S>& q, std::uint32_t at, std::uint32_t free, bool k_odd,
                                       bool v_odd, int seq_len, int first, bool edge, std::uint32_t lane_base, std::uint32_t select0,
                                       std::uint32_t select1) const {
    typename Key::Raw k;
    typename Value::Raw v;
    const std::uint32_t row[2] = {at + g * p.token_at, at + (g + 8) * p.token_at};
    float k_scale[2], v_scale[2], v_zero[2];
    Key::load(k, row, t, k_odd, k_scale);
    const std::uint32_t v_from = at + 2 * t * p.token_at + C::kValues, v_half = v_from + 8 * p.token_at;
    const std::uint32_t v_row[2][2] = {{v_from, v_from + p.token_at}, {v_half, v_half + p.token_at}};
    Value::load(v, v_row, g, v_odd);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto number = [&](int offset) {
        return __half2float(__ushort_as_half((std::uint16_t)lds16(row[h] + C::kValues + Value::kBytes + offset)));
      };
      v_scale[h] = number(0);
      v_zero[h] = number(2) + Value::kLevel * v_scale[h];
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(free);
    float s[2][S::LaneRows];
    logits(q, k, lane_base, k_scale, s);
    if (edge) {
      const int length = opaque(seq_len);  // rare: nothing of it may take registers in between
      const Tokens tokens(p, length);
      mask_tile<S>(Mask{length, p.q_len, p.window, tokens.begin, tokens.end}, first, opaque(g), opaque(t), p.group_reciprocal, s, v_scale,
                   v_zero);
    }
    std::uint32_t weights[S::Tiles][2][S::Parities][2];
    softmax_tile<S, true>(st, s, v_scale, v_zero, select0, select1, weights);
    values_tile<S>(st, weights, [&](int h, int odd, int i) { return Value::pair(v, h, odd, i, lane_base); });
  }

  /// The warp's state as a part in the workspace.
  __device__ __forceinline__ void write_part(RowState<S>& st, int seq, int head, int group, bool v_odd) const {
    const std::int64_t part = (std::int64_t)(seq + (int)blockIdx.x) * p.groups + group;
    const std::int64_t row0 = (part * p.heads + head) * rows();
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r)
#pragma unroll
      for (int o = 4; o < 32; o <<= 1) {
        st.l[r] += __shfl_xor_sync(~0u, st.l[r], o);
        st.z[r] += __shfl_xor_sync(~0u, st.z[r], o);
      }
    const float unit = st.v_unit > 0.f ? 1.f / st.v_unit : 0.f;
#pragma unroll
    for (int r = 0; r < S::LaneRows; ++r) {
      const int row = S::row(t, r), n = r / 2, c = r % 2;
      if (row >= rows()) continue;
#pragma unroll
      for (int i = 0; i < D / 32; ++i) {
        float out[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int pair = Value::chunk_pair(i, j), second = Value::chunk_second(i, j);
          const float o = S::Packed ? st.o[0][0][pair / 2][pair % 2 * 2 + second] : st.o[n][second][pair / 2][pair % 2 * 2 + c];
          out[j] = o * unit + st.z[r];
        }
        __stcg(reinterpret_cast<float4*>(p.partial + (row0 + row) * D + Value::chunk_dim(g, i, v_odd)),
               make_float4(out[0], out[1], out[2], out[3]));
      }
      if (g == 0) __stcg(p.partial_sums + row0 + row, make_float2(st.m[r], st.l[r]));
    }
  }

  __device__ __forceinline__ void work(const Plan& plan, Pair pair) const {
    const int head = warp % p.heads, group = warp / p.heads;
    const std::uint32_t head_at = head * p.head_at;
    const bool k_odd = head_at & 2, v_odd = (head_at + C::kValues) & 2;
    const std::uint32_t lane_base = kTableAddress | lane * 4;
    const std::uint32_t select0 = g % 2 == 0 ? 0x4410 : 0x1044, select1 = g % 2 == 0 ? 0x4432 : 0x3244;
    QueryFragments<S> q;
    load_queries(pair.seq, head, k_odd, q);
    if (head == 0) begin_feed(plan, pair, group);
    __syncthreads();  // tables and barriers are there, and queries and page numbers: behind the stream of units they would come late
    if (head == 0) {
#pragma unroll 1
      for (int i = 0; i < p.turns; ++i) ask(plan, group, i, group + i * p.groups);
    }
    int stage = group, parity = 0;
    int due = head;  // turns until it is this warp's to feed
#pragma unroll 1
    for (int unit = plan.begin + group;;) {
      RowState<S> st;
      st.reset();
      int first_tile, tiles, safe_first, safe_count;
      {
        const Tokens tokens = pair.tokens(p);
        first_tile = tokens.first_tile() - pair.begin;
        tiles = tokens.tiles();
        Mask{tokens.seq_len, p.q_len, p.window, tokens.begin, tokens.end}.safe_tiles(safe_first, safe_count);
      }
      const int end = min(pair.end(), plan.end);
#pragma unroll 1
      for (; unit < end; unit += p.groups) {
        if (due == 0) {
          go_on_feeding(plan, group, unit, stage, parity);
          due = p.heads;
        }
        --due;
        mbarrier_wait(C::kFull + stage * 8, parity);
        const int index = first_tile + unit;
        if (tiles > 0) {
          tile(st, q, stage_address(stage) + head_at, C::kEmpty + stage * 8, k_odd, v_odd, pair.seq_len, index * kTile,
               (unsigned)(index - safe_first) >= (unsigned)safe_count, lane_base, select0, select1);
        } else if (lane == 0) {
          mbarrier_arrive(C::kEmpty + stage * 8);
        }
        stage += p.groups;
        if (stage >= p.stages) stage -= p.stages, parity ^= 1;
      }
      write_part(st, pair.seq, head, group, v_odd);
      if (pair.end() >= plan.end) return;
      pair.next(p);
      load_queries(pair.seq, head, k_odd, q);
    }
  }

  /// The table of every byte, each entry 32 times, K's and V's beside each other (fused_dequant.cuh). Values are integers.
  __device__ __forceinline__ void fill_tables() const {
    if constexpr (C::kEntries > 0) {
      std::uint32_t entry = 0;
      if constexpr (Key::kEntries > 0) {
        entry = __ldg(p.k_pairs + (warp * 16 + lane % 16) % Key::kEntries);
        const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&entry));
        entry = pack_half2(v.x * kGain, v.y * kGain);
      }
#pragma unroll 4
      for (int i = 0; i < 16; ++i) {
        const std::uint32_t at = kTableAddress + (warp * 16 + i) * 256 + lane * 4;
        sts32(at, __shfl_sync(~0u, entry, i));
        if constexpr (Value::kEntries > 0) {
          constexpr int kLevels = Value::kEntries == 64 ? 8 : 4;
          sts32(at + 128, pack_half2((float)(i % kLevels) - Value::kLevel, (float)((warp * 16 + i) / kLevels % kLevels) - Value::kLevel));
        }
      }
    }
  }

  __device__ __forceinline__ void run() const {
    if (warp == 0) {
      for (int i = lane; i < p.stages; i += 32) {
        mbarrier_init_count(C::kFull + i * 8, 1);
        mbarrier_init_count(C::kEmpty + i * 8, p.heads);
      }
      fence_mbarrier_init();
    }
    fill_tables();
    wait_for_previous_kernels();
    launch_dependents();
    Plan plan;
    Pair first;
    if (!make_plan(p, lane, lane < p.num_seqs ? __ldg(p.seq_lens + lane) : 0, plan, first)) return;
    if (warp < p.heads * p.groups) {
      work(plan, first);
    } else {
      __syncthreads();
    }
  }
};

template <class C>
__global__ void __launch_bounds__(kSlotWarps * 32, 1) slot_decode_kernel(const __grid_constant__ SlotParams p) {
  TQ4_DYNAMIC_SHARED(std::uint8_t, shared);
  if (threadIdx.x == 0 && shared_address(shared) > kSharedBase) __trap();  // the fixed addresses need the usual 1 KiB of system use
  SlotKernel<C>(p, threadIdx.x).run();
}

}  // namespace tq4::gpu::fused
