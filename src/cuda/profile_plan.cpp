// See profile_plan.h.
#include "cuda/profile_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace tq4::gpu {
namespace {

std::vector<std::int32_t> lengths_of(const ProfileShape& s, std::uint64_t seed) {
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(s.batch), static_cast<std::int32_t>(s.ctx));
  if (!s.ragged) return lengths;
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(std::log(100.0), std::log(static_cast<double>(std::max<std::int64_t>(s.ctx, 101))));
  for (std::int32_t& n : lengths) n = static_cast<std::int32_t>(std::exp(uniform(random)));
  return lengths;
}

/// Enough caches that a cycle through them reads three times the second-level cache between two uses of one.
int cache_count(std::size_t cache_bytes, const DeviceInfo& device) {
  return static_cast<int>(std::clamp<std::size_t>(3 * device.l2_bytes / std::max<std::size_t>(cache_bytes, 1) + 1, 2, 256));
}

std::int64_t page_count(const std::vector<std::int32_t>& lengths, int block_size) {
  std::int64_t pages = 0;
  for (const std::int32_t n : lengths) pages += (n + block_size - 1) / block_size;
  return std::max<std::int64_t>(pages, 1);
}

}  // namespace

PageLayout profile_layout(const ProfileShape& s) {
  return s.padded && s.layout == LayoutKind::TurboquantVllm
             ? padded_turboquant_vllm_layout(s.spec, s.num_kv_heads, s.head_dim, s.block_size)
             : make_layout(s.layout, s.spec, s.num_kv_heads, s.head_dim, s.block_size);
}

ProfileSizes profile_sizes(const ProfileShape& s, const ProfileOptions& options, const DeviceInfo& device) {
  ProfileSizes z;
  z.lengths = lengths_of(s, options.seed);
  z.longest = *std::max_element(z.lengths.begin(), z.lengths.end());
  z.tokens = std::accumulate(z.lengths.begin(), z.lengths.end(), std::int64_t{0});
  z.pages = page_count(z.lengths, s.block_size);
  z.table_stride = (z.longest + s.block_size - 1) / s.block_size;
  const std::size_t elements = static_cast<std::size_t>(s.num_kv_heads * s.head_dim);
  if (s.op == ProfileOp::Decode || s.op == ProfileOp::Store) {
    z.cache_bytes = static_cast<std::size_t>(z.pages * profile_layout(s).block_stride);
    z.fp16_bytes = static_cast<std::size_t>(z.pages * s.block_size) * elements * 2 * 2;
  } else {
    z.cache_bytes = static_cast<std::size_t>(z.tokens) * elements * 3;  // fp16 and codes
  }
  if (s.op ==
      ProfileOp::Prefill) {  // planes of both sides (fp16 at most), the workspace's fp16, one side being encoded; queries and output
    z.cache_bytes = static_cast<std::size_t>(z.tokens) * (elements * 12 + static_cast<std::size_t>(s.num_q_heads * s.head_dim) * 4);
    z.caches = 1;  // it computes; what it reads first is not what it waits for
    return z;
  }
  // Store writes a step's tokens only: what a step touches is small, 64 caches make it cold.
  z.caches = s.op == ProfileOp::Store ? 64 : cache_count(z.cache_bytes, device);
  if (s.op == ProfileOp::Store)
    z.caches = static_cast<int>(std::clamp<std::size_t>((std::size_t{8} << 30) / std::max<std::size_t>(z.cache_bytes, 1), 1, 64));
  z.fp16_caches = cache_count(z.fp16_bytes, device);
  z.fp8_caches = cache_count(z.fp16_bytes / 2, device);
  if (!options.cold) z.caches = z.fp16_caches = z.fp8_caches = 1;
  return z;
}

ProfilePlan profile_plan(const ProfileShape& shape, const ProfileOptions& options, const DeviceInfo& device) {
  const ProfileSizes z = profile_sizes(shape, options, device);
  ProfilePlan plan;
  plan.caches = z.caches;
  const bool baselines = options.baselines && shape.op == ProfileOp::Decode;
  plan.bytes =
      std::max(static_cast<std::size_t>(z.caches) * z.cache_bytes, baselines ? static_cast<std::size_t>(z.fp16_caches) * z.fp16_bytes : 0) +
      (std::size_t{512} << 20);
  return plan;
}

}  // namespace tq4::gpu
