// The fused paged decode kernel for native pages (sm_90): one thread block an SM, 16 warps or 8. In a round (fused_plan.cuh) the block rotates the queries
// of the round's pairs (fused_rotate.cuh), every warp streams and computes its own run of tiles (fused_pipeline.cuh, fused_units.cuh) without waiting for
// any other, then the warps' states are merged pair by pair (fused_merge.cuh). docs/decode_kernel.md explains it with drawings.
#pragma once

#include "cuda/decode_attention/fused_units.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu::fused {

template <class C>
struct Kernel : Units<C> {
  using Base = Units<C>;
  using Base::D;
  using Base::g;
  using Base::kept;
  using Base::key_at;
  using Base::lane;
  using Base::lane_base;
  using Base::odd_g;
  using Base::p;
  using Base::scale_at;
  using Base::t;
  using Base::value_at;
  using Base::warp;
  using typename Base::S;
  using Key = typename C::Key;
  using Value = typename C::Value;
  using Base::Base;

  std::uint32_t stages = C::Stages;  // that a warp uses of its ring

  // The tables are filled by all warps but the first, which plans meanwhile: a part of 16 codes at a time, K's entries in a warp's lower lanes, V's in the upper.
  static constexpr int Fillers = C::Warps - 1, TableParts = (16 + Fillers - 1) / Fillers;
  __device__ __forceinline__ int table_part(int i) const { return warp - 1 + i * Fillers; }
  /// This lane's entries of the tables.
  __device__ __forceinline__ void table_entries(std::uint32_t (&entry)[TableParts]) const {
#pragma unroll
    for (int i = 0; i < TableParts; ++i) {
      const int code = table_part(i) * 16 + lane % 16;
      entry[i] = 0;
      if (warp == 0 || code >= 256) continue;
      if (lane >= 16) {
        entry[i] = __ldg(p.v_pairs + Value::entry(code));
      } else if constexpr (Key::kTable) {
        entry[i] = __ldg(p.k_pairs + Key::entry(code));
      }
    }
  }
  /// Every entry 32 times, K's and V's beside each other (fused_dequant.cuh).
  __device__ __forceinline__ void fill_tables(std::uint32_t (&entries)[TableParts]) const {
#pragma unroll
    for (int i = 0; i < TableParts; ++i) {
      const int part = table_part(i);
      if (part >= 16) break;
      std::uint32_t entry = entries[i];
      if (lane < 16 && Key::kTable) {
        const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&entry));
        entry = pack_half2(v.x * p.k_table_scale, v.y * p.k_table_scale);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {  // two codes a store: lanes 0-7 and 16-23 repeat K's entries, the others V's
        const float v = __uint_as_float(__shfl_sync(~0u, entry, (lane & 8) * 2 + 2 * e + lane / 16));
        sts128(kTableAddress + (part * 16 + 2 * e) * 256 + lane * 16, v, v, v, v);
      }
    }
  }

  /// The pairs of the round that begins at unit round.begin, with `pair`; all threads know how many there are, the table is written by one.
  __device__ __forceinline__ void open_round(Round& round, Pair pair) const {
    const int end = round.opening == 2 ? pair.end() : round.piece_end;
    round.pairs = 0;
#pragma unroll 1
    for (;;) {
      if (warp == 0 && lane == 0) {
        const std::uint32_t at = C::kPairTable + round.pairs * 32;
        sts128_words<0>(at, pair.seq, pair.head, pair.end() <= round.piece_end, pair.seq_len);
        sts128_words<16>(at, pair.begin, pair.units, pair.empty, 0);
      }
      ++round.pairs;
      round.end = min(pair.end(), end);
      if (round.end == end || round.pairs == C::Pairs) break;
      pair.next(p);
    }
    if (warp == 0 && lane == 0) round.rest(C::kRound);
  }
  /// The first round of the piece, which begins with a unit of `first`; `first` becomes the round's first pair.
  __device__ __forceinline__ Round open_first(const Plan& plan, Pair& first) const {
    Round round{plan.length, plan.begin, plan.end, plan.begin, 0, 0, 0, 0};
    open_round(round, first);
    if (round.end == plan.end || first.begin == plan.begin) return round;
    if (warp == 0 && lane == 0) {
      sts128_words<0>(C::kOpening, first.seq, first.head, first.seq_len, first.begin);
      sts32(C::kOpening + 16, (std::uint32_t)first.units);
      sts32(C::kOpening + 20, (std::uint32_t)first.empty);
    }
    round.opening = 1;
    round.begin = first.end();
    first.next(p);
    open_round(round, first);
    return round;
  }
  /// The round after `round`, and its first pair. Behind a barrier, and with one inside.
  __device__ __forceinline__ void open_next(Round& round, Pair& first) const {
    if (round.end == round.piece_end) {
      int unused[2];
      lds128_ordered<0>(C::kOpening, first.seq, first.head, first.seq_len, first.begin);
      lds128_ordered<16>(C::kOpening, first.units, first.empty, unused[0], unused[1]);
      round.begin = round.piece_begin;
      round.opening = 2;
    } else {
      first = this->pair_at(round.pairs - 1);
      if (first.end() == round.end) first.next(p);
      round.begin = round.end;
    }
    __syncthreads();
    ++round.number;
    open_round(round, first);
  }

  /// Goes on to the next stage of the ring: 1 when that is its first. A warp's mbarriers begin at a multiple of 64 bytes, so theirs say which stage it is.
  __device__ __forceinline__ std::uint32_t next_stage(std::uint32_t& slot, std::uint32_t& bar) const {
    slot += C::SlotBytes;
    bar += 8;
    if (bar % 64 != stages * 8 % 64) return 0;
    slot -= stages * C::SlotBytes, bar -= stages * 8;
    return 1;
  }

  __device__ __forceinline__ void run() {
    std::uint32_t entry[TableParts];
    table_entries(entry);
    // Programmatic dependent launch: this runs while the kernels before this one in the stream end, when the caller promises that the kernel just
    // before writes none of it (fresh_tokens): all up to the queries, the first tiles' copies included.
    const bool early = p.fresh_tokens >= 0;
    if (!early) wait_for_previous_kernels();
    const int own_length = warp == 0 && lane < p.num_seqs ? __ldg(p.seq_lens + lane) : 0;
    const std::uint32_t bars = C::kBarriers + warp * 64;
    if (lane < C::Stages) mbarrier_init(bars + lane * 8);
    fence_mbarrier_init();
    Pair first;  // of the round
    Round round;
    if (warp == 0) {
      Plan plan;
      if (make_plan<C::Warps, 0, C::Fitted>(p, lane, own_length, plan, first)) {
        round = open_first(plan, first);
      } else if (lane == 0) {
        sts32(C::kRound + 20, 0);  // no pairs
      }
    } else {
      fill_tables(entry);
    }
    __syncthreads();
    round.wake(C::kRound);
    if (round.pairs == 0) return;
    if (C::MemoryBound && round.length <= 12 * C::Warps) stages = 2;  // queries that come late wait behind fewer tiles
    first = this->pair_at(0);
    std::uint32_t stage = 0, parity = 0;

    for (;;) {
      this->identify();
      lane_base = kept(kTableAddress | lane * 4);
      key_at = kept(Key::lane_offset(g, t)), value_at = kept(Key::kBytes + Value::lane_offset(g, t)),
      scale_at = kept(C::CodeBytes + (S::Tall ? t * 16 : g * 8));
      if constexpr (Value::kTurned) odd_g = kept(g % 2);
      const std::uint64_t policy = stream_policy();
      const std::uint32_t select0 = kept(g % 2 == 0 ? 0x4410 : 0x1044), select1 = kept(g % 2 == 0 ? 0x4432 : 0x3244);
      const std::uint32_t walk_at = C::kWalks + warp * 64;
      std::uint32_t slot = C::ring(warp) + stage * C::SlotBytes, bar = C::kBarriers + warp * 64 + stage * 8;
      typename Base::Share share{};
      if (p.query_matrix) this->load_first_share(share, p.query_matrix, p.query_head_stride, first.head);
      Walk walk;
      walk.enter(p, first, round.begin, round.end, warp, C::Warps);
      Loader<C::CodeBytes, C::ScaleBytes, C::Exact ? D * 2 : 0> loader;
      loader.start(p, walk, walk_at + 32, lane);
      walk.rest(walk_at, lane);

      // Queries come before tiles, or they wait behind them. Not so while the kernels before still run: then tiles fill the time.
      std::uint32_t to = slot, to_bar = bar;
      int asked = 0;
      if (round.first() && early) {
        const int ask = loader.alive() ? min(loader.early(p), (int)stages) : 0;
#pragma unroll 1
        for (; asked < ask; ++asked) {
          loader.load_within(p, to, to_bar, policy);
          next_stage(to, to_bar);
        }
        // Where work is long one more tile a warp fits into what the memory has left meanwhile. More would delay the blocks that still run.
        if (C::MemoryBound && late_units<C::Warps>(round.length) > 0 && asked == (int)stages && loader.alive()) loader.prefetch(p);
        wait_for_previous_kernels();
      }
      if (!round.first()) __syncthreads();  // the table of pairs is there
      typename Base::Share second{};
      if (p.query_matrix) this->load_second_share(second, round.pairs);
      this->copy_queries(round.pairs, p.query_matrix ? C::kQueries : C::kRotated);
      if (p.query_matrix) {
        __syncthreads();
        this->rotate_queries(round.pairs, C::kQueries, share, second);
      }
      if (!round.first()) fence_bulk_copies();  // states were written where tiles go now
      if (round.first()) launch_dependents();
      if (lane == 0) sts32(C::kStateSlot + warp * 4, ~0u);
      if (warp == 0 && lane < C::Pairs) sts32(C::kStateSlot + (C::Warps + lane) * 4, ~0u);
      __syncthreads();
      to = slot, to_bar = bar;
#pragma unroll 1
      for (int i = 0; i < (int)stages && loader.alive(); ++i) {
        if (i >= asked) loader.load(p, lane, to, to_bar, policy);
        next_stage(to, to_bar);
      }

      RowState<S> st;
      st.reset();  // else its registers count as taken from the kernel's entry on: what is undefined has no beginning
#pragma unroll 1
      for (;;) {
        walk.wake(walk_at);
        if (walk.pos >= walk.end) break;
        QueryFragments<S> q;
        this->query_fragments(walk.slot, q);
        st.reset();
        const int seq_len = walk.pair.seq_len;
        int tile = walk.pos - walk.pair.begin, tile_end = walk.segment_end() - walk.pair.begin;  // units
        if constexpr (C::Exact) {
          const int exact = Tokens(p, seq_len).exact_units();
#pragma unroll 1
          for (; tile < min(tile_end, exact); ++tile) {
            mbarrier_wait(bar, parity);
            this->exact_unit(st, q, slot, seq_len, tile, select0, select1, [&] {
              if (loader.alive()) loader.load(p, lane, slot, bar, policy);
            });
            parity ^= next_stage(slot, bar);
          }
          tile -= exact, tile_end -= exact;
        }
        int safe_first, safe_count;
        {
          const Tokens tokens(p, seq_len);
          tile += tokens.first_tile();
          tile_end = tokens.first_tile() + min(tile_end, tokens.tiles());
          Mask{seq_len, p.q_len, p.window, tokens.begin, tokens.end}.safe_tiles(safe_first, safe_count);
        }
        const auto refill = [&](std::uint32_t at, std::uint32_t at_bar) {
          if (loader.alive()) loader.load(p, lane, at, at_bar, policy);
        };
        if constexpr (C::TilesATurn == 2) {
#pragma unroll 1
          for (; tile + 1 < tile_end; tile += 2) {
            mbarrier_wait(bar, parity);
            std::uint32_t slot2 = slot, bar2 = bar;
            const std::uint32_t parity2 = parity ^ next_stage(slot2, bar2);
            mbarrier_wait(bar2, parity2);
            const bool edge = (unsigned)(tile - safe_first) >= (unsigned)max(safe_count - 1, 0);
            const auto refill_both = [&] {
              refill(slot, bar);
              refill(slot2, bar2);
            };
            if constexpr (S::Tall)
              this->template tall_tiles<2>(st, q, {slot, slot2}, seq_len, tile * kTile, edge, refill_both);
            else
              this->template compressed_tiles<2>(st, q, {slot, slot2}, seq_len, tile * kTile, edge, select0, select1, refill_both);
            parity = parity2 ^ next_stage(slot2, bar2);
            slot = slot2, bar = bar2;
          }
        }
#pragma unroll 1
        for (; tile < tile_end; ++tile) {
          mbarrier_wait(bar, parity);
          const bool edge = (unsigned)(tile - safe_first) >= (unsigned)safe_count;
          const auto refill_one = [&] { refill(slot, bar); };
          if constexpr (S::Tall)
            this->template tall_tiles<1>(st, q, {slot}, seq_len, tile * kTile, edge, refill_one);
          else
            this->template compressed_tiles<1>(st, q, {slot}, seq_len, tile * kTile, edge, select0, select1, refill_one);
          parity ^= next_stage(slot, bar);
        }
        walk.wake(walk_at);
        walk.pos = walk.segment_end();
        const bool last = walk.pos == walk.end;
        this->write_state(st, last ? warp : C::Warps + walk.slot, walk.slot);  // not the last: the pair ends inside this warp's share
        if (last) break;
        walk.next_pair(p);
        walk.rest(walk_at, lane);
      }
      stage = bar % 64 / 8;
      this->identify();
      typename Base::Share back{};
      if (p.inverse_matrix) this->load_first_share(back, p.inverse_matrix, p.inverse_head_stride, this->pair_word(0, 1));
      __syncthreads();
      const int pairs = (int)lds32(C::kRound + 20);
      this->merge_round(pairs);
      round.wake(C::kRound);
      if (round.last() && pairs == 1 && !this->pair_word(0, 2)) break;  // no more than a part of one pair
      __syncthreads();
      this->identify();
      round.wake(C::kRound);
      this->write_outputs(round.pairs, back);
      if (round.last()) break;
      open_next(round, first);
    }
  }
};

template <class C>
__global__ void __launch_bounds__(C::Warps * 32, 1) fused_decode_kernel(const __grid_constant__ Params p) {
  TQ4_DYNAMIC_SHARED(std::uint8_t, shared);
  if (threadIdx.x == 0 && shared_address(shared) > C::kBase) __trap();  // the fixed addresses need the usual 1 KiB of system use
  Kernel<C>(p).run();
}

}  // namespace tq4::gpu::fused
