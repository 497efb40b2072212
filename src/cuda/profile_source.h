// What the profiled operations work on: queries, keys and values from a dump or, without one, random numbers; the calibration of a point.
#pragma once

#include "cuda/profile_memory.h"
#include "tq4/profile.h"

namespace tq4::gpu {

/// K, V and Q of a point in device memory, fp16.
class ProfileSource {
 public:
  ProfileSource(const ProfileShape& shape, const ProfileOptions& options);
  /// The calibration to build the codec with: the data's, or one made up of random rotations and centres (shape.calibrated, shape.rope).
  const LayerCalibration& calibration() const { return calibration_; }
  /// Keys or values [n, num_kv_heads, D] of tokens `first` and on: the data's in turn, else Gaussian numbers of deviation 1 about `codec`'s centres.
  void keys_or_values(const DeviceCodec& codec, Side side, std::uint16_t* to, std::int64_t first, std::int64_t n, std::uint64_t seed) const;
  /// Queries [n, num_q_heads, D] in shape.dtype: the data's in turn, else Gaussian.
  std::vector<std::uint16_t> queries(std::int64_t n, std::uint64_t seed) const;
  /// Every slot of a cache, through store().
  void fill_cache(const DeviceCodec& codec, const PagedCache& cache, std::uint64_t seed) const;

 private:
  const ProfileShape& shape_;
  const ProfileData* data_;
  LayerCalibration calibration_;
  BufferPtr k_, v_;  ///< the data's
};

}  // namespace tq4::gpu
