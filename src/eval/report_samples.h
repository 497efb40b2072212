// What the report's pictures need beside the metrics: a sample of logits of one head, and a histogram of rotated coordinates.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "eval/report_load.h"
#include "tq4/report.h"
#include "tq4/rotation.h"

namespace tq4::eval {

class SampleCollector {
 public:
  explicit SampleCollector(const std::vector<std::shared_ptr<const Compressor>>& codecs);
  /// Which head the scatter shows: the middle one of those with queries.
  void choose(const DumpInfo& info, const std::vector<std::pair<std::size_t, int>>& heads);
  /// Adds rotated coordinates of some of the head's K and V to the histograms.
  void add_vectors(const LayerInfo& layer, int head, const HeadData& data);
  /// Takes the scatter when this is the head and the batch (codecs from `first` on) holds the codec.
  void add_logits(const AttentionProblem& problem, const LayerInfo& layer, int head, std::size_t first,
                  const std::vector<Reconstruction>& batch);
  ReportSamples finish();

 private:
  void add_side(const LayerInfo& layer, int head, Side side, const std::vector<float>& x, std::vector<double>& counts);
  std::vector<std::shared_ptr<const Compressor>> codecs_;
  std::size_t scatter_codec_ = 0;
  const Compressor* histogram_codec_ = nullptr;
  Rotation k_rotation_, v_rotation_;
  std::vector<double> k_counts_, v_counts_;
  ReportSamples samples_;
};

}  // namespace tq4::eval
