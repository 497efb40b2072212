// What a profile point allocates and cycles through: plain arithmetic on shapes, no CUDA, so that --dry-run works anywhere.
#pragma once

#include <vector>

#include "tq4/profile.h"

namespace tq4::gpu {

struct ProfileSizes {
  std::vector<std::int32_t> lengths;
  std::int64_t pages = 0, table_stride = 0, longest = 1, tokens = 0;
  std::size_t cache_bytes = 0, fp16_bytes = 0;
  int caches = 0, fp16_caches = 0, fp8_caches = 0;
};
ProfileSizes profile_sizes(const ProfileShape& shape, const ProfileOptions& options, const DeviceInfo& device);
PageLayout profile_layout(const ProfileShape& shape);

}  // namespace tq4::gpu
