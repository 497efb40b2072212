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

}  // namespace tq4::gpu
