// Decode attention on pages that keep the bytes of one token and kv head together (vLLM's slots), sm_90. A unit is 16 tokens of all kv
// heads: one contiguous run of the page (or one a head), so that it streams like a native page. The line of all units is cut into equal
// pieces, one a thread block (fused_plan.cuh, pairs being whole sequences). In a block `groups` groups of warps take turns at the units, a
// warp of a group takes one head, and they take turns at asking for the units to come, a ring of which is on the way (slots_feed.cuh).
// Arithmetic on a tile is that of the fused kernel (fused_tile.cuh) with dequantisers of its own (slots_codes.cuh). Every warp transforms
// its queries by itself; states of warps become outputs in slots_merge.cuh.
#pragma once

#include "cuda/decode_attention/slots_merge.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu::fused {

template <class C>
struct SlotKernel : SlotMerge<C> {
  using Base = SlotMerge<C>;
  using Base::ask_until;
  using Base::begin_feed;
  using Base::early_end;
  using Base::finish;
  using Base::g;
  using Base::go_on_feeding;
  using Base::lane;
  using Base::p;
  using Base::rows;
  using Base::t;
  using Base::warp;
  using S = typename C::S;
  using Key = typename C::Key;
  using Value = typename C::Value;
  static constexpr int D = C::D;
  static constexpr float kGain = 8.f;  // of the keys' table: squares of small centroids stay normal numbers in fp16

  using Base::Base;

  /// Where the dims of query row `row` begin that this lane, one of 8 of the row, takes.
  __device__ __forceinline__ const std::uint16_t* query_at(int seq, int head, int row) const {
    const int token = row * p.group_reciprocal >> 16;
    const std::int64_t at = ((std::int64_t)(seq * p.q_len + token) * (p.heads * p.group) + head * p.group + row - token * p.group) * D;
    return static_cast<const std::uint16_t*>(p.q) + at + lane % 8 * (D / 8);
  }
  /// Asks for queries that are wanted later.
  __device__ __forceinline__ void ask_queries(int seq, int head) const {
#pragma unroll 1
    for (int row = lane / 8; row < rows(); row += 4) prefetch_l1(query_at(seq, head, row));
  }
  /// The queries of a sequence and this warp's head: four rows at once, 8 lanes each, are transformed, then become B fragments by way of
  /// shared memory.
  __device__ __forceinline__ void load_queries(int seq, int head, bool odd, QueryFragments<S>& q) const {
    constexpr int kDims = D / 8;  // of a lane
    const int part = lane % 8;
#pragma unroll 1
    for (int first = 0; first < rows(); first += 4) {
      const auto* from = reinterpret_cast<const uint4*>(query_at(seq, head, min(first + lane / 8, rows() - 1)));
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
#pragma unroll
      for (int i = 0; i < kDims; i += 2)
        if (first + lane / 8 < rows()) sts32(this->query_word(first + lane / 8, part * kDims + i), pack_half2(v[i], v[i + 1]));
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n) {
      const int row = S::Packed ? g / 2 : n * 8 + g;
      const bool live = row < rows() && (!S::Packed || g % 2 == 0);
#pragma unroll
      for (int i = 0; i < S::Steps; ++i) {
        std::uint32_t two[2];
        lds64(this->query_word(row, Key::quad_dim(t, i, odd)), two);
        q.b[n][i][0] = live ? two[0] : 0, q.b[n][i][1] = live ? two[1] : 0;
      }
    }
    __syncwarp();
  }

  /// Logits of a tile, and what keys are multiplied by for the norm correction: one over the length of each centroid vector.
  template <bool KOdd>
  __device__ __forceinline__ void logits(const QueryFragments<S>& q, const typename Key::Raw& k, std::uint32_t lane_base,
                                         const float (&k_scale)[2], float (&s)[2][S::LaneRows]) const {
    float acc[S::Tiles][2][4] = {}, squares[4] = {};
    std::uint32_t even[2] = {};
#pragma unroll
    for (int i = 0; i < S::Steps; ++i) {
      const auto pair = [&](int h, int odd) { return Key::template pair<KOdd>(k, h, 2 * i + odd, lane_base); };
      const std::uint32_t a0 = pair(0, 0), a1 = pair(1, 0), a2 = pair(0, 1), a3 = pair(1, 1);
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
    if constexpr (Key::kNormCorrected) unit[0] *= rsqrt_fast(squares[0] + 1e-14f), unit[1] *= rsqrt_fast(squares[2] + 1e-14f);
#pragma unroll
    for (int n = 0; n < S::Tiles; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        s[h][2 * n % S::LaneRows] = (acc[n][0][2 * h] + acc[n][1][2 * h]) * unit[h];
        if constexpr (!S::Packed) s[h][(2 * n + 1) % S::LaneRows] = (acc[n][0][2 * h + 1] + acc[n][1][2 * h + 1]) * unit[h];
      }
  }

  /// Where in a stage a lane reads: rows of tokens g and g + 8 (and of their key words), rows of values of tokens 2t and on. Constant, and
  /// kept in registers.
  struct Lanes {
    std::uint32_t row, key, key_turn, value, value_turn;
  };
  __device__ __forceinline__ Lanes lanes(int head_at, bool k_odd, bool v_odd) const {
    const std::uint32_t row = head_at + g * p.token_at, key = row + Key::lane_at(t) - (Key::kMend && k_odd ? 2 : 0);
    const std::uint32_t value = head_at + 2 * t * p.token_at + C::kValues + Value::lane_at(g) - (Value::kMend && v_odd ? 2 : 0);
    return {opaque(row), opaque(key & ~3u), opaque((key & 2) * 8), opaque(Value::kAligned ? value & ~3u : value),
            opaque(Value::turn(value))};
  }

  /// 16 tokens of a head, in the stage at `at`; `free` is announced when all that is needed of them is in registers. KOdd: Key::kByParity.
  template <bool KOdd>
  __device__ __forceinline__ void tile(RowState<S>& st, const QueryFragments<S>& q, std::uint32_t at, const Lanes& lanes,
                                       std::uint32_t free, bool k_odd, bool v_odd, int seq_len, int first, bool edge,
                                       std::uint32_t lane_base, std::uint32_t select0, std::uint32_t select1) const {
    typename Key::Raw k;
    typename Value::Raw v;
    const std::uint32_t eight = p.token_at * 8;
    const std::uint32_t row[2] = {at + lanes.row, at + lanes.row + eight}, k_at[2] = {at + lanes.key, at + lanes.key + eight};
    const std::uint32_t v_from = at + lanes.value, v_half = v_from + eight;
    const std::uint32_t v_at[2][2] = {{v_from, v_from + p.token_at}, {v_half, v_half + p.token_at}};
    float k_scale[2], v_scale[2], v_zero[2];
    Key::template load<KOdd>(k, k_at, lanes.key_turn);
    Value::load(v, v_at, lanes.value_turn);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto number = [&](int offset) { return __half2float(__ushort_as_half((std::uint16_t)lds16(row[h] + offset))); };
      k_scale[h] = 1.f;
      if constexpr (Key::kScaleBytes > 0) k_scale[h] = number(Key::kBytes);
      v_scale[h] = number(C::kValues + Value::kBytes);
      v_zero[h] = number(C::kValues + Value::kBytes + 2);
    }
    if (Key::kMend && k_odd) {
      const std::uint32_t words[2] = {row[0] - 2, row[1] - 2};
      Key::mend(k, words, t);
    }
    if (Value::kMend && v_odd) {
      const int back = Value::lane_at(g);
      const std::uint32_t words[2][2] = {{v_at[0][0] - back, v_at[0][1] - back}, {v_at[1][0] - back, v_at[1][1] - back}};
      Value::mend(v, words, g);
    }
    __syncwarp();
    if (lane == 0) mbarrier_arrive(free);
    float s[2][S::LaneRows];
    logits<KOdd>(q, k, lane_base, k_scale, s);
    if (edge) {
      const int length = opaque(seq_len);  // rare: nothing of it may take registers in between
      const Tokens tokens(p, length);
      mask_tile<S>(Mask{length, p.q_len, p.window, tokens.begin, tokens.end}, first, opaque(g), opaque(t), p.group_reciprocal, s, v_scale,
                   v_zero);
    }
    std::uint32_t weights[S::Tiles][2][S::Parities][2];
    softmax_tile<S, true>(st, s, v_scale, v_zero, select0, select1, weights);
    values_tile<S>(st, weights, [&](int h, int odd, int i) { return Value::pair(v, h, odd, i); });
  }

  __device__ __forceinline__ void work(const Plan& plan, Pair pair) const {
    const int head = warp % p.heads, group = warp / p.heads;
    const std::uint32_t head_at = head * p.head_at;
    const bool k_odd = head_at & 2, v_odd = (head_at + C::kValues) & 2;
    const std::uint32_t lane_base = opaque(kTableAddress | lane * 4);
    const std::uint32_t select0 = opaque(g % 2 == 0 ? 0x4410 : 0x1044), select1 = opaque(g % 2 == 0 ? 0x4432 : 0x3244);
    const Lanes lane_constants = lanes(head_at, k_odd, v_odd);
    if (head == 0) begin_feed(plan, pair, group);
    // Tables and barriers are there, and page numbers: behind the stream of units they would come late, and so would queries.
    __syncthreads();
    const std::uint32_t ring = C::kRing + group * 32;
    std::uint32_t stage = ring, parity = 0;
    int asked = 0;
    if (p.fresh_tokens >= 0) {
      if (head == 0) asked = ask_until(plan, group, 0, min(early_end(pair), plan.end), stage);
      wait_for_previous_kernels();
    }
    QueryFragments<S> q;
    load_queries(pair.seq, head, k_odd, q);
    if (pair.end() < plan.end) ask_queries(pair.seq + 1, head);
    __syncthreads();
    if (head == 0) ask_until(plan, group, asked, plan.end, stage);
    launch_dependents();
    stage = ring;
    int turn = head;  // the next one that is this warp's to feed
    int due = head;   // turns until it is this warp's to feed
#pragma unroll 1
    for (int unit = plan.begin + group;;) {
      RowState<S> st;
      st.reset();
      int first_tile, tiles_end, safe_first, safe_count;
      {
        const Tokens tokens = pair.tokens(p);
        first_tile = tokens.first_tile() - pair.begin;
        tiles_end = pair.begin + tokens.tiles();  // behind it lie units without tokens
        Mask{tokens.seq_len, p.q_len, p.window, tokens.begin, tokens.end}.safe_tiles(safe_first, safe_count);
      }
      const int end = min(pair.end(), plan.end);
#pragma unroll 1
      for (; unit < end; unit += p.groups) {
        if (due == 0) {
          go_on_feeding(plan, group, turn, stage, parity);
          turn += p.heads;
          due = p.heads;
        }
        --due;
        std::uint32_t place[2];  // of the unit, and the stage behind it
        lds64(stage + Base::kData, place);
        mbarrier_wait(stage, parity);
        const int index = first_tile + unit;
        if (unit < tiles_end) {
          const auto work_on = [&](auto odd) {
            tile<decltype(odd)::value>(st, q, place[0], lane_constants, stage + Base::kEmpty, k_odd, v_odd, pair.seq_len, index * kTile,
                                       (unsigned)(index - safe_first) >= (unsigned)safe_count, lane_base, select0, select1);
          };
          if (Key::kByParity && k_odd) {
            work_on(std::bool_constant<Key::kByParity>());
          } else {
            work_on(std::false_type());
          }
        } else if (lane == 0) {
          mbarrier_arrive(stage + Base::kEmpty);
        }
        parity = (parity ^ place[1]) & 1;
        stage = place[1] & ~1u;
      }
      finish(st, plan, pair, head, group, v_odd);
      if (pair.end() >= plan.end) break;
      pair.next(p);
      this->meet(head);  // states have been read: queries go through the same place
      load_queries(pair.seq, head, k_odd, q);
      if (pair.end() < plan.end) ask_queries(pair.seq + 1, head);
    }
    this->finish_opening(plan, head, group);
  }

  /// The keys' table: an entry of every byte, 32 times (fused_dequant.cuh). By all warps but the first.
  __device__ __forceinline__ void fill_tables() const {
    if constexpr (C::kEntries > 0) {
#pragma unroll 1
      for (int first = (warp - 1) * 16; first < 256; first += (C::Warps - 1) * 16) {
        std::uint32_t entry = __ldg(p.k_pairs + table_code<Key::kEntries>(first + lane % 16));
        const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&entry));
        entry = pack_half2(v.x * kGain, v.y * kGain);
#pragma unroll 4
        for (int i = 0; i < 16; ++i) sts32(kTableAddress + (first + i) * 256 + lane * 4, __shfl_sync(~0u, entry, i));
      }
    }
  }

  __device__ __forceinline__ void run() const {
    // One warp plans while the others fill the tables: what all 16 execute takes four times as long.
    if (warp == 0) {
      this->open_ring();
    } else {
      fill_tables();
    }
    // Programmatic dependent launch: when the caller promises that the kernel just before writes none of it (fresh_tokens), all up to the
    // queries happens while that kernel ends, and the first units are asked for.
    if (p.fresh_tokens < 0) wait_for_previous_kernels();
    Plan plan{};
    Pair pair{};
    if (warp == 0) {
      // A unit keeps a group of warps busy, of which there are 2 with 8 heads; 6 units take as long as the end of a sequence inside of a
      // piece.
      if (!make_plan<2, 6>(p, lane, lane < p.num_seqs ? __ldg(p.seq_lens + lane) : 0, plan, pair)) plan.end = plan.begin;
      if (lane == 0) this->rest_plan(plan, pair);
    }
    __syncthreads();
    this->wake_plan(plan, pair);
    if (plan.end <= plan.begin) return;
    if (warp < p.heads * p.groups) {
      work(plan, pair);
    } else {  // one more than heads can use
      __syncthreads();
      if (p.fresh_tokens >= 0) wait_for_previous_kernels();
      __syncthreads();
      launch_dependents();
    }
  }
};

template <class C>
__global__ void __launch_bounds__(C::Warps * 32, 1) slot_decode_kernel(const __grid_constant__ SlotParams p) {
  TQ4_DYNAMIC_SHARED(std::uint8_t, shared);
  if (threadIdx.x == 0 && shared_address(shared) > kSharedBase) __trap();  // the fixed addresses need the usual 1 KiB of system use
  SlotKernel<C>(p, threadIdx.x).run();
}

}  // namespace tq4::gpu::fused
