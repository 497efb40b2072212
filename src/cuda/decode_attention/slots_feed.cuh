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
template <class Shape_, class Key_, class Value_, int Warps_>
struct SlotConfig {
  using S = Shape_;
  using Key = Key_;
  using Value = Value_;
  static constexpr int D = S::D, Warps = Warps_;
  static constexpr int kEntries = Key::kEntries > 0 ? 256 : 0;    // of the keys' table in shared memory
  static constexpr int kValues = Key::kBytes + Key::kScaleBytes;  // where the values of a slot begin; their scale and zero follow them
  static constexpr std::uint32_t kRing = kSharedBase;             // 32 bytes a stage
  static constexpr std::uint32_t kFeeds = kRing + kSlotMaxStages * 32;  // 288 bytes a group
  static constexpr std::uint32_t kOpening = kFeeds + Warps * 288;       // the block's plan, see rest_plan()
  static constexpr std::uint32_t kSums = kOpening + 32;                 // of states: 4 rows a warp
  static constexpr std::uint32_t kLow = kSums + Warps * 32;             // where stages begin
  // States, 4 rows a warp: in the 128 bytes that every entry of the table leaves free, where that is enough, or behind it.
  static constexpr int kStateBytes = Warps * 4 * D * 4;
  static constexpr bool kHoles = kEntries > 0 && kStateBytes <= 256 * 128;
  static constexpr std::uint32_t kStates = kTableAddress + (kHoles ? 128 : kEntries * 256);
  static constexpr std::uint32_t kHigh = kTableAddress + kEntries * 256 + (kHoles ? 0 : kStateBytes);  // where stages go on
};

/// What a thread of the kernel is, and what it does for the feed.
template <class C>
struct SlotFeed {
  const SlotParams& p;
  const int warp, lane, g, t;

  __device__ __forceinline__ SlotFeed(const SlotParams& params, int thread)
      : p(params), warp(thread / 32), lane(thread % 32), g(thread % 32 >> 2), t(thread & 3) {}

  __device__ __forceinline__ int rows() const { return p.group * p.q_len; }

  // The ring. Each group has every groups-th stage. What a warp needs to know of one lies together, and its address is all that a warp
  // keeps: mbarriers `full` at 0 and `empty` at 8; at 16 where the unit lies, at 20 the group's next stage, at 24 the one before, each with
  // 1 in the lowest bit when the step there comes around the ring.

  static constexpr int kEmpty = 8, kData = 16, kNext = 20, kPrevious = 24;
  __device__ __forceinline__ void open_ring() const {
    for (int i = lane; i < p.stages; i += 32) {
      const std::uint32_t at = C::kRing + i * 32;
      const bool first = i < p.groups, last = i + p.groups >= p.stages;
      mbarrier_init_count(at, 1);
      mbarrier_init_count(at + kEmpty, p.heads);
      sts32(at + kData, i < p.low_stages ? C::kLow + i * p.stage_bytes : C::kHigh + (i - p.low_stages) * p.stage_bytes);
      sts32(at + kNext, C::kRing + (i + p.groups - (last ? p.stages : 0)) * 32 + last);
      sts32(at + kPrevious, C::kRing + (i - p.groups + (first ? p.stages : 0)) * 32 + first);
    }
    fence_mbarrier_init();
  }

  /// The plan and the piece's first sequence, between warps; the first words are those that are wanted again in the end.
  __device__ __forceinline__ static void rest_plan(const Plan& plan, const Pair& pair) {
    sts128_words<0>(C::kOpening, plan.length, pair.seq, pair.begin, pair.end());
    sts128_words<16>(C::kOpening, plan.begin, plan.end, pair.seq_len, pair.empty);
  }
  __device__ __forceinline__ static void wake_plan(Plan& plan, Pair& pair) {
    int end;
    lds128_ordered<0>(C::kOpening, plan.length, pair.seq, pair.begin, end);
    lds128_ordered<16>(C::kOpening, plan.begin, plan.end, pair.seq_len, pair.empty);
    pair.head = 0;
    pair.units = end - pair.begin;
  }

  // The feed of a group: its warps take turns at asking for the group's units, a turn of the ring ahead. Where those lie stands in a list
  // in shared memory.

  static constexpr std::uint32_t kNothing = ~0u;  // of a unit without tokens
  __device__ __forceinline__ std::uint32_t feed(int group) const { return C::kFeeds + group * 288; }
  /// Lists where the units of turns from .. from + 32 N - 1 lie: page and 16 tokens within, by lane.
  template <int N>
  __device__ __forceinline__ void enlist(const Plan& plan, int group, int from) const {
    Pair pair;
    lds128_ordered<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
    pair.head = 0;
    pair.empty = (int)lds32(feed(group) + 16);
    const int T = p.tiles_per_page_log2;
    std::uint32_t page[N] = {};
    int within[N], unit = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      unit = plan.begin + group + (from + 32 * n + lane) * p.groups;
      within[n] = -1;
      if (unit < plan.end) {
        while (unit >= pair.end()) pair.next(p);
        const Tokens tokens = pair.tokens(p);
        const int tile = tokens.first_tile() + unit - pair.begin;
        if (unit - pair.begin < tokens.tiles()) {
          within[n] = tile & ((1 << T) - 1);
          page[n] = (std::uint32_t)__ldg(p.block_table + pair.seq * p.block_table_stride + (tile >> T));  // used when all are asked for
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < N; ++n)
      sts32(feed(group) + 32 + (from + 32 * n + lane) % 64 * 4, within[n] < 0 ? kNothing : page[n] << T | (std::uint32_t)within[n]);
    if (lane == 31 && unit < plan.end) sts128_words<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
    __syncwarp();
  }
  /// Asks for the unit of a turn.
  __device__ __forceinline__ void ask(const Plan& plan, int group, int turn, std::uint32_t stage) const {
    if (plan.begin + group + turn * p.groups >= plan.end) return;
    const std::uint32_t place = lds32(feed(group) + 32 + turn % 64 * 4);
    if (place == kNothing) {
      if (lane == 0) mbarrier_arrive(stage);
      return;
    }
    const int T = p.tiles_per_page_log2;
    const std::uint8_t* from = p.pages + (place >> T) * p.page_stride + (place & ((1 << T) - 1)) * (std::int64_t)p.copy_bytes;
    if (lane == 0) mbarrier_arrive_expect(stage, p.copies * p.copy_bytes);
    __syncwarp();
    if (lane < p.copies)
      bulk_copy(lds32(stage + kData) + lane * p.copy_bytes, from + (std::int64_t)lane * p.copy_at, p.copy_bytes, stage, stream_policy());
  }
  /// Asks for the units of turns from `turn` on below p.turns that lie before `end` on the line; the turn behind them. `stage` is that of
  /// the turn.
  __device__ __forceinline__ int ask_until(const Plan& plan, int group, int turn, int end, std::uint32_t& stage) const {
#pragma unroll 1
    for (; turn < p.turns && plan.begin + group + turn * p.groups < end; ++turn) {
      ask(plan, group, turn, stage);
      stage = lds32(stage + kNext) & ~1u;
    }
    return turn;
  }
  /// Where on the line the first units end that hold no tokens which the kernel before this one in the stream may still be writing.
  __device__ __forceinline__ int early_end(const Pair& pair) const {
    const Tokens tokens = pair.tokens(p);
    return min(pair.begin + max((tokens.end - p.fresh_tokens) / kTile - tokens.first_tile(), 0), pair.end());
  }
  __device__ __forceinline__ void begin_feed(const Plan& plan, const Pair& pair, int group) const {
    if (lane == 0) {
      sts128_words<0>(feed(group), pair.seq, pair.begin, pair.seq_len, pair.units);
      sts32(feed(group) + 16, (std::uint32_t)pair.empty);
    }
    __syncwarp();
    enlist<2>(plan, group, 0);
  }
  /// Before this group works on the unit of `turn`, in `stage`: the stage of the turn before is free as soon as all its warps have read it.
  __device__ __forceinline__ void go_on_feeding(const Plan& plan, int group, int turn, std::uint32_t stage, std::uint32_t parity) const {
    const int asked = turn - 1 + p.turns;
    if (turn == 0 || plan.begin + group + asked * p.groups >= plan.end) return;
    const std::uint32_t before = lds32(stage + kPrevious), free = before & ~1u;
    mbarrier_wait(free + kEmpty, (parity ^ before) & 1);
    ask(plan, group, asked, free);
    if (asked % 32 == 31) enlist<1>(plan, group, asked + 33);
  }
};

}  // namespace tq4::gpu::fused
