// What calibration needs to know of one layer and head: means and second moments of keys and values, the second moment of the queries that
// meet them, and the same weighted by attention. Gathered in a stream over dumps, one head at a time.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "core/linalg.h"
#include "tq4/calibration.h"
#include "tq4/dump.h"

namespace tq4::eval {

/// Weighted moments of the vectors of one side. Moments are of x - centre, the centre being 0 unless RoPE is undone.
struct Moments {
  double weight = 0;
  std::vector<double> mean;  ///< [D]
  core::Matrix covariance;   ///< [D, D] about the mean
};

struct HeadStatistics {
  std::int64_t tokens = 0, queries = 0;
  Moments k, v;
  core::Matrix query;                 ///< [D, D] E q q^T over the group's queries; empty without queries
  core::Matrix value_gram;            ///< o_gram of the head; empty where the dump has none
  std::vector<double> rope_mean;      ///< mean of keys before RoPE; only with `rope` (k.mean is then about R_p rope_mean)
  double k_energy = 0, v_energy = 0;  ///< mean squared length before centring
  /// How much an error of the key at each token matters, one vector a dump: sums over sampled queries of p (1 - p) q^T W^-1 q. Empty before
  /// weight_by_attention.
  std::vector<std::vector<float>> key_weights;
};

/// Reads every dump's head. The mutex guards the dumps, which are not safe to share.
HeadStatistics gather_statistics(const std::vector<Dump*>& dumps, std::size_t layer_index, int head, const CalibrateOptions& options,
                                 std::mutex& dumps_mutex);

/// Replaces a share of the statistics by the same weighted by attention: with p the attention of query q to key k, an error e of the key moves
/// the softmax by p (1 - p) (q.e)^2 to first order, so keys count by sum over queries of p (1 - p) q^T W^-1 q and queries by
/// p (1 - p) times the noise power of the key. `noise` maps a centred key to coordinates whose squared length is that power; w is W = E q q^T.
void weight_by_attention(HeadStatistics& statistics, const std::vector<Dump*>& dumps, std::size_t layer_index, int head,
                         const CalibrateOptions& options, const std::vector<float>& noise, std::mutex& dumps_mutex);

/// A run of tokens of one head and side.
struct SampledRows {
  int head = 0;
  std::int64_t position0 = 0;
  std::vector<float> rows, centred;  ///< [n, D] as in the dump, and less the centre (R_p rope_mean with `rope`)
  std::vector<float> weights;        ///< [n] from `attention`, mean 1 over the sample of the head; all 1 where it is empty
};

/// About `count` tokens of a head, in runs evenly spaced over the dumps. centre: [D], before RoPE where theta > 0; empty = none.
std::vector<SampledRows> sample_rows(const std::vector<Dump*>& dumps, std::size_t layer_index, int head, Side side, std::int64_t count,
                                     const std::vector<float>& centre, double theta, const std::vector<std::vector<float>>& attention,
                                     std::mutex& dumps_mutex);

}  // namespace tq4::eval
