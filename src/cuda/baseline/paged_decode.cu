// The uncompressed baseline on the host: which shape of the kernel (paged_decode.cuh) serves, how the context is split, the launch.
#include <algorithm>
#include <cmath>

#include "cuda/baseline/paged_decode.cuh"

namespace tq4::gpu {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr const char* kWhere = "baseline decode";

/// Calls f with the kernel's shape for these parameters: the fastest of a dozen tried on an H200 for D = 128.
template <class F>
auto with_shape(const BaselineParams& p, const F& f) {
  if (p.head_dim <= 64) return p.fp8 ? f(BaselineShape<64, true, 8, 3, 2>{}) : f(BaselineShape<64, false, 8, 4, 1>{});
  if (p.head_dim <= 128) return p.fp8 ? f(BaselineShape<128, true, 8, 3, 2>{}) : f(BaselineShape<128, false, 8, 2, 1>{});
  return p.fp8 ? f(BaselineShape<256, true, 4, 3, 1>{}) : f(BaselineShape<256, false, 4, 2, 1>{});
}

struct SplitPlan {
  int splits, tiles;  ///< 16-token tiles of a split
};
/// The number of splits of least cost, in the time a block alone on a multiprocessor takes for a tile (0.12 us on an H200): what the busiest
/// multiprocessor computes, or what memory takes for all of it (longer where some pairs of multiprocessors, which share a port, or some
/// multiprocessors have more blocks than others), merging, starting more than one block on a multiprocessor.
SplitPlan split_plan(const BaselineParams& p, const DeviceInfo& device) {
  const int tiles = static_cast<int>(std::max<std::int64_t>((p.max_seq_len + 15) / 16, 1));
  return with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    const int most = std::clamp(tiles / S::kWarps, 1, kBaselineMaxSplits);
    const double base = static_cast<double>(p.num_seqs) * p.num_kv_heads, processors = std::max(device.sm_count, 1);
    const double memory = base * tiles * (32.0 * p.head_dim * (p.fp8 ? 1 : 2) / 4096) * 0.9 / processors;
    int best = std::min(std::max(p.splits, 1), most);
    double least = INFINITY;
    for (int s = 1; p.splits == 0 && s <= most; ++s) {
      const double blocks = base * s, deepest = std::ceil(blocks / processors);
      const double even = blocks <= processors / 2 ? processors / 2 : deepest * processors;  // that many would be spread evenly
      const double work = std::ceil(static_cast<double>(tiles) / s) * (deepest > 1 && S::kBlocks > 1 ? deepest / 1.2 : deepest);
      const double cost =
          std::max(work, memory * (1 + 0.4 * (1 - blocks / even) / deepest)) + (s > 1 ? 12 + s : 0) + (deepest - 1) * 10 / S::kBlocks;
      if (cost < least) best = s, least = cost;
    }
    const int each = ((tiles + best - 1) / best + S::kWarps - 1) / S::kWarps * S::kWarps;
    return SplitPlan{(tiles + each - 1) / each, each};
  });
}

std::size_t aligned(std::size_t n) { return (n + 255) / 256 * 256; }
std::size_t arrived_bytes(const BaselineParams& p) {
  return aligned(static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.num_kv_heads) * 4);
}
std::size_t part_ml_bytes(const BaselineParams& p, int splits) {
  return aligned(static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.num_q_heads * splits) * sizeof(float2));
}

}  // namespace

std::size_t baseline_workspace_bytes(const BaselineParams& p, const DeviceInfo& device) {
  const int splits = split_plan(p, device).splits;
  return arrived_bytes(p) + part_ml_bytes(p, splits) +
         static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.num_q_heads * splits * p.head_dim) * sizeof(float);
}

void baseline_decode(const BaselineParams& p, const DeviceInfo& device, Stream stream) {
  require(p.num_kv_heads > 0 && p.num_q_heads % p.num_kv_heads == 0, "num_q_heads must be a multiple of num_kv_heads", kWhere);
  if (p.head_dim % 16 != 0 || p.head_dim > 256) refuse("head_dim must be a multiple of 16 up to 256", kWhere);
  if (p.num_q_heads / p.num_kv_heads > 16) refuse("at most 16 query heads a kv head", kWhere);
  require(p.block_size % 16 == 0, "block_size must be a multiple of 16", kWhere);
  require(p.workspace_bytes >= baseline_workspace_bytes(p, device), "the workspace is too small", kWhere);
  const SplitPlan plan = split_plan(p, device);
  auto* workspace = static_cast<std::uint8_t*>(p.workspace);
  BaselineArgs a{};
  a.p = p;
  a.group = p.num_q_heads / p.num_kv_heads;
  a.splits = plan.splits;
  a.split_tiles = plan.tiles;
  a.scale = (p.sm_scale != 0 ? p.sm_scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim))) * kLog2e;
  a.arrived = reinterpret_cast<std::uint32_t*>(workspace);
  a.part_ml = reinterpret_cast<float2*>(workspace + arrived_bytes(p));
  a.part_out = reinterpret_cast<float*>(workspace + arrived_bytes(p) + part_ml_bytes(p, plan.splits));
  with_shape(p, [&](auto shape) {
    using S = decltype(shape);
    allow_shared(baseline_kernel<S>, S::kBytes, device.shared_bytes_per_block, kWhere);
    const dim3 grid(static_cast<unsigned>(a.splits), static_cast<unsigned>(p.num_kv_heads), static_cast<unsigned>(p.num_seqs));
    launch_kernel_early_if(launches_early(device), kWhere, {grid, S::kThreads, S::kBytes, static_cast<cudaStream_t>(stream)},
                           baseline_kernel<S>, a);
  });
}

}  // namespace tq4::gpu
