// Into how many parts the general decode path may cut a context: one place for the path itself and for what tunes it. Plain host code, the same in
// builds without CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tq4::gpu {

constexpr int kMaxSplits = 128;
/// Below this many tokens a part the merge costs more than the part saves.
constexpr int kMinSplitTokens = 128;

/// Parts of a context of `tokens`, at most.
constexpr int most_splits(std::int64_t tokens) {
  return static_cast<int>(std::clamp<std::int64_t>(tokens / kMinSplitTokens, 1, kMaxSplits));
}

/// Tiles of 16 tokens go to the parts in these lots: the warps of a block take one each.
constexpr int kSplitTiles = 4;

/// Into how many parts to cut a context of `tokens` where a part takes `blocks` blocks and `slots` run at a time: the fewest within 2% of the least
/// time, that of a part's tiles in every wave of blocks. What a block does once takes as long as 6 tiles (H200).
constexpr int best_splits(std::int64_t blocks, std::int64_t slots, std::int64_t tokens) {
  const std::int64_t tiles = std::max<std::int64_t>((tokens + 15) / 16, 1);
  const auto time = [&](int splits) {
    const std::int64_t lot = std::int64_t{splits} * kSplitTiles, each = (tiles + lot - 1) / lot * kSplitTiles,
                       parts = (tiles + each - 1) / each;
    return (blocks * parts + slots - 1) / slots * (each + 6);
  };
  std::int64_t least = time(1);
  for (int s = 2; s <= most_splits(tokens); ++s) least = std::min(least, time(s));
  int splits = 1;
  while (time(splits) * 50 > least * 51) ++splits;
  return splits;
}

}  // namespace tq4::gpu
