// The slots kernel's sizes and its feed: how the 16 tokens of all heads that a group of warps works on next come into its ring of stages.
#pragma once

#include "cuda/decode_attention/fused_plan.cuh"
#include "cuda/decode_attention/slots_codes.cuh"
#include "cuda/decode_attention/slots_launch.h"
#include "cuda/wgmma.cuh"

namespace tq4::gpu::fused {

constexpr std::uint32_t kSharedBase = 1024;
static_assert(kSlotTables == kTableAddress);

/// Sizes of an instantiation and its map of shared memory, by absolute address as the fused kernel's.
template <class Shape_, class Key_, class Value_>
struct SlotConfig {
  using S = Shape_;
  using Key = Key_;
  using Value = Value_;
  static constexpr int D = S::D;
  static constexpr int kEntries = Key::kEntries + Value::kEntries > 0 ? 256 : 0;  // of the table in shared memory
  static constexpr int kValues = Key::kBytes + Key::kScaleBytes;  // where the values of a slot begin; their scale and zero follow them
  static constexpr std::uint32_t kFull = kSharedBase, kEmpty = kFull + kSlotMaxStages * 8;                    // mbarriers
  static constexpr std::uint32_t kFeeds = kEmpty + kSlotMaxStages * 8;                                        // 288 bytes a group
  static constexpr std::uint32_t kQuery = kFeeds + kSlotWarps * 288;                                          // a row a warp, fp16
  static constexpr std::uint32_t kLow = kQuery + kSlotWarps * D * 2, kHigh = kTableAddress + kEntries * 256;  // where stages begin
};

/// What a thread of the kernel is, and what it does for the feed.
template <class C>
struct SlotFeed {
  const SlotParams& p;
  const int warp, lane, g, t;

  __device__ __forceinline__ SlotFeed(const SlotParams& params, int thread)
      : p(params), warp(thread / 32), lane(thread % 32), g(thread % 32 >> 2), t(thread & 3) {}

  __device__ __forceinline__ int rows() const { return p.group * p.q_len; }
  __device__ __forceinline__ std::uint32_t stage_address(int stage) const {
    return stage < p.low_stages ? C::kLow + stage * p.stage_bytes : C::kHigh + (stage - p.low_stages) * p.stage_bytes;
  }

  // The feed of a group: its warps take turns at asking for the group's units, a turn of the ring ahead. Where those lie stands in a list in shared memory.

  static constexpr std::uint32_t kNothing = ~0u;  // a sequence without tokens has a unit, but nothing to copy
  __device__ __forceinline__ std::uint32_t feed(int group) const { return C::kFeeds + group * 288; }
  /// Lists where the units of turns from .. from + 31 lie: page and 16 tokens within, by lane.
  __device__ __forceinline__ void enlist(const Plan& plan, int group, int from) const {
    const int unit = plan.begin + group + (from + lane) * p.groups;
    Pair pair;
    lds128_ordered<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
    pair.head = pair.empty = 0;
    std::uint32_t place = kNothing;
    if (unit < plan.end) {
      while (unit >= pair.end()) pair.next(p);
      const Tokens tokens = pair.tokens(p);
      const int tile = tokens.first_tile() + unit - pair.begin, T = p.tiles_per_page_log2;
      if (tokens.tiles() > 0)
        place = (std::uint32_t)__ldg(p.block_table + pair.seq * p.block_table_stride + (tile >> T)) << T | (tile & ((1 << T) - 1));
    }
    __syncwarp();
    sts32(feed(group) + 32 + (from + lane) % 64 * 4, place);
    if (lane == 31 && unit < plan.end) sts128_words<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
    __syncwarp();
  }
  /// Asks for the unit of a turn.
  __device__ __forceinline__ void ask(const Plan& plan, int group, int turn, int stage) const {
    if (plan.begin + group + turn * p.groups >= plan.end) return;
    const std::uint32_t place = lds32(feed(group) + 32 + turn % 64 * 4), bar = C::kFull + stage * 8;
    if (place == kNothing) {
      if (lane == 0) mbarrier_arrive(bar);
      return;
    }
    const int T = p.tiles_per_page_log2;
    const std::uint8_t* from = p.pages + (place >> T) * p.page_stride + (place & ((1 << T) - 1)) * (std::int64_t)p.copy_bytes;
    if (lane == 0) mbarrier_arrive_expect(bar, p.copies * p.copy_bytes);
    __syncwarp();
    if (lane < p.copies)
      bulk_copy(stage_address(stage) + lane * p.copy_bytes, from + (std::int64_t)lane * p.copy_at, p.copy_bytes, bar, stream_policy());
  }
  __device__ __forceinline__ void begin_feed(const Plan& plan, const Pair& pair, int group) const {
    if (lane == 0) sts128_words<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
    __syncwarp();
    enlist(plan, group, 0);
    enlist(plan, group, 32);
  }
  /// Before this group works on `unit`, in `stage`: the stage of the turn before is free as soon as all its warps have read it.
  __device__ __forceinline__ void go_on_feeding(const Plan& plan, int group, int unit, int stage, int parity) const {
    const int turn = divide(unit - plan.begin, p.groups), asked = turn - 1 + p.turns;
    if (turn == 0 || plan.begin + group + asked * p.groups >= plan.end) return;
    int free = stage - p.groups;
    if (free < 0) free += p.stages, parity ^= 1;
    mbarrier_wait(C::kEmpty + free * 8, parity);
    ask(plan, group, asked, free);
    if (asked % 32 == 31) enlist(plan, group, asked + 33);
  }
};

}  // namespace tq4::gpu::fused
