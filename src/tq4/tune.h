// Launch choices that no rule gets right on every GPU: which there are for a call, how to measure them, and a file that remembers the winners
// of each GPU and driver. `tq4 profile --tune` fills it; an engine asks it once a shape and puts the answer into its parameters.
//
// There is one such choice today: into how many parts decode's general path cuts the context (DecodeParams::splits). The fused kernel cuts it
// over all multiprocessors by itself, and the tiles and stages of every kernel are fixed when it is compiled.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tq4/profile.h"

namespace tq4::gpu {

struct LaunchChoice {
  int splits = 0;  ///< DecodeParams::splits; 0 = by rule
  bool operator==(const LaunchChoice&) const = default;
};

/// What could be chosen for a call that takes `path` (ProfileResult::path, decode_path()); empty where there is nothing to choose.
std::vector<LaunchChoice> tune_candidates(const ProfileShape& shape, const std::string& path);

struct TuneResult {
  LaunchChoice best;  ///< the rule unless a candidate takes less than 98% of its time
  double best_seconds = 0, rule_seconds = 0;
  std::vector<std::pair<LaunchChoice, double>> tried;  ///< seconds
  std::string path, skipped;                           ///< as ProfileResult
};
/// Times every candidate on the current device, as profile() does.
TuneResult tune(const ProfileShape& shape, const ProfileOptions& options);

/// Winners by device and shape, in a text file: a line is device, shape and choice separated by tabs.
class TuneCache {
 public:
  /// $XDG_CACHE_HOME/tq4/tune.tsv, else $HOME/.cache/tq4/tune.tsv; empty when neither is set.
  static std::string default_path();
  /// A file that is not there is an empty cache; lines that cannot be read are left out (it is a cache).
  static TuneCache load(const std::string& path);
  std::optional<LaunchChoice> find(const DeviceInfo& device, const ProfileShape& shape) const;
  void put(const DeviceInfo& device, const ProfileShape& shape, const LaunchChoice& choice);
  /// Makes the folder, replaces the file in one step. Throws Runtime.
  void save(const std::string& path) const;
  std::size_t size() const { return choices_.size(); }

 private:
  std::map<std::pair<std::string, std::string>, LaunchChoice> choices_;
};
/// What a winner is remembered for: GPU and driver; operation, codec, layout, heads, sizes, with ctx and batch rounded up to powers of two.
std::string tune_device_key(const DeviceInfo& device);
std::string tune_shape_key(const ProfileShape& shape);

}  // namespace tq4::gpu
