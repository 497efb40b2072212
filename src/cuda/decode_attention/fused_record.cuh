// Where a warp stands when a round begins, as a record of 32 words that rests in shared memory: registers are for tiles, and what the compiler moves to
// local memory instead waits behind the stream of tiles. A kernel of their own can write the records of the first rounds once a step, for all layers of
// the model (tq4::gpu::decode_plan): working one out costs each of a block's 16 warps 500 instructions before its first request to memory.
#pragma once

#include "cuda/decode_attention/fused_pipeline.cuh"

namespace tq4::gpu::fused {

/// Words of a pair in the block's table in shared memory: sequence, head, output wanted, seq_len, begin, units, index of its first part, parts.
constexpr int kPairWords = 8;
constexpr int kMaxPairs = 8;  // of a round
/// Words of a record. Word 12 to 15 are free; then come the warp's walk and that of its loader.
enum RecordWord {
  kLengthWord,
  kPlanBeginWord,
  kPlanEndWord,
  kBeginWord,
  kEndWord,
  kPairsWord,
  kTileWord,
  kTileEndWord,
  kTokensEndWord,
  kHeadWord,
  kAliveWord,
  kWalkWord = 16,
  kLoaderWalkWord = 24,
  kRecordWords = 32
};
constexpr int kRecordBytes = kRecordWords * 4;
/// A block of a step's plan: for each warp its record and the page numbers of its first 32 tiles, then the table of pairs.
constexpr int kBlockWords = kWarps * (kRecordWords + 32) + kMaxPairs * kPairWords;

/// The record of a warp in shared memory.
struct Record {
  std::uint32_t at;
  __device__ __forceinline__ int word(int i) const { return (int)lds32(at + i * 4); }
  __device__ __forceinline__ Round round() const {
    Round r;
    lds128_ordered<0>(at, r.plan.length, r.plan.begin, r.plan.end, r.begin);
    r.end = word(kEndWord), r.pairs = word(kPairsWord);
    return r;
  }
  __device__ __forceinline__ std::uint32_t walk() const { return at + kWalkWord * 4; }
  __device__ __forceinline__ std::uint32_t loader_walk() const { return at + kLoaderWalkWord * 4; }

  /// Where a round is to begin: at unit `begin`, which lies in `pair`.
  __device__ __forceinline__ void aim(const Plan& plan, int begin, const Pair& pair, int lane) const {
    __syncwarp();
    if (lane == 0) sts128_words<0>(at, plan.length, plan.begin, plan.end, begin);
    Walk walk;
    walk.pair = pair;
    walk.slot = walk.pos = walk.end = 0;
    walk.rest(this->walk(), lane);
  }
  /// Opens the round aimed at: its end, this warp's walk and its loader's, and (warp 0) the table of pairs.
  __device__ __forceinline__ void open(const Params& p, int max_pairs, std::uint32_t table, int warp, int lane) const {
    int length, plan_begin, plan_end, begin;
    lds128_ordered<0>(at, length, plan_begin, plan_end, begin);
    Walk walk;
    walk.wake(this->walk());
    int pairs = 0, end;
    Pair pair = walk.pair;
    for (;;) {
      if (warp == 0 && lane == 0) {
        sts128_words<0>(table + pairs * 32, pair.seq, pair.head, 1, pair.seq_len);
        sts32(table + pairs * 32 + 16, pair.begin);
        sts32(table + pairs * 32 + 20, pair.units);
      }
      ++pairs;
      end = min(pair.end(), plan_end);
      if (end == plan_end || pairs == max_pairs) break;
      pair.next(p);
    }
    walk.enter(p, begin, end, warp);
    walk.rest(this->walk(), lane);
    Segment segment;
    const bool alive = segment.settle(p, walk);
    walk.rest(loader_walk(), lane);
    if (lane == 0) {
      sts128_words<16>(at, end, pairs, segment.tile, segment.tile_end);
      sts128_words<32>(at, segment.tokens_end, walk.pair.head, alive, 0);
    }
    __syncwarp();
  }
  /// The loader at the beginning of the round, but for its first page numbers.
  template <class AnyLoader>
  __device__ __forceinline__ void wake(const Params& p, AnyLoader& loader, int lane) const {
    loader.walk_at = loader_walk();
    loader.tile = word(kTileWord), loader.tile_end = word(kTileEndWord);
    loader.alive = word(kAliveWord) != 0;
    loader.ids_next = 0;
    loader.enter(p, word(kLoaderWalkWord), word(kHeadWord), lane);
  }
  template <class AnyLoader>
  __device__ __forceinline__ int first_ids(const Params& p, const AnyLoader& loader, int lane) const {
    return loader.fetch(p, word(kLoaderWalkWord), loader.tile, lane);
  }
  /// How many tiles from the first on no kernel still running may be writing, given that only each sequence's last fresh_tokens are.
  __device__ __forceinline__ int settled(const Params& p) const {
    return min(word(kTileEndWord), (word(kTokensEndWord) - p.fresh_tokens) / kTile) - word(kTileWord);
  }
};

/// Where the parts of the pair in the table at `entry` lie: index of the first, and how many there are.
__device__ __forceinline__ void place_parts(int length, std::uint32_t entry) {
  const int begin = (int)lds32(entry + 16), end = begin + (int)lds32(entry + 20);
  const int first = divide(begin, length), last = divide(end - 1, length);
  sts32(entry + 24, 2 * first + (begin == first * length ? 0 : 1));
  sts32(entry + 28, last - first + 1);
}

/// The first round from a step's plan: this warp's record and its part of the table of pairs to shared memory. Returns the page number of this lane's tile.
__device__ __forceinline__ int fetch_record(const Params& p, const Record& record, std::uint32_t table, int warp, int lane) {
  const std::uint32_t* block = p.plan + blockIdx.x * kBlockWords;
  const std::uint32_t* mine = block + warp * (kRecordWords + 32) + lane;
  const std::uint32_t word = __ldg(mine);
  const int id = (int)__ldg(mine + kRecordWords);
  if (warp < kMaxPairs * kPairWords / 32)
    sts32(table + (warp * 32 + lane) * 4, __ldg(block + kWarps * (kRecordWords + 32) + warp * 32 + lane));
  sts32(record.at + lane * 4, word);
  __syncwarp();
  return id;
}

}  // namespace tq4::gpu::fused
