// The main job: every selected layer of a dump encoded and written to a container in one streaming pass, its error measured by decoding
// what was written. Used by `compress`; knows nothing of options or output formats.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "common_args.h"
#include "tq4/container.h"
#include "tq4/dump.h"
#include "tq4/metrics.h"

namespace tq4::cli {

enum class Measure { Auto, All, None };

struct EncodeRequest {
  CodecSpec spec;
  const Calibration* calibration = nullptr;
  Selection selection;
  std::vector<int> skip_layers;
  int threads = 1;
  std::optional<int> cuda_device;  ///< encode there; else on the CPU
  NonFinite nonfinite = NonFinite::Refuse;
  Measure measure = Measure::Auto;
  bool quiet = false;
  bool overwrite = false;
};

struct SideResult {
  VectorError error;  ///< over the measured vectors; exact tokens are not among them
  double theory = std::numeric_limits<double>::quiet_NaN();
};
struct LayerResult {
  StoredLayer stored;
  std::uint64_t original_bytes = 0;
  SideResult k, v;
};
struct CompressResult {
  std::vector<LayerResult> layers;
  std::uint64_t original_bytes = 0, file_bytes = 0;
  std::int64_t encoded_vectors = 0, measured_vectors = 0;
  bool measured_all = false;
};

/// Writes `path` (atomically). Throws what the dump, the codec and the container throw; NaN and infinity with layer, side, head, token and
/// coordinate.
CompressResult encode_dump(Dump& dump, const std::string& path, const EncodeRequest& request);

inline double bits_per_value(std::uint64_t bytes, std::int64_t values) {
  return values == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(values);
}

}  // namespace tq4::cli
