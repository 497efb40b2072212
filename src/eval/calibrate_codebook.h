// Pair tables fitted to what a layer's encoder really quantizes. The Gaussian table assumes that pairs of transformed coordinates are normal
// once their vector's scale is divided out; feedback, filters and heavy tails make them differ a little. Here Lloyd's iteration runs with the
// encoder in the loop: code a sample of the calibration text with the table, move every point to the mean of what it stood for, repeat. One
// table serves the heads of a layer and side, as the decode kernels hold it; bytes and look-ups stay the same.
#pragma once

#include <vector>

#include "eval/calibrate_statistics.h"

namespace tq4::eval {

struct CodebookProblem {
  SideSpec spec;  ///< Mse with a pair codebook
  int dim = 0;
  Side side = Side::K;
  const LayerCalibration* layer = nullptr;  ///< the finished tables of the layer but for pair_points
  std::vector<SampledRows> sample;
  int rounds = 8;
};

/// [4^bits, 2]: the fitted table, in the order of the Gaussian one. Points that the sample hardly uses stay near the Gaussian's.
std::vector<float> fit_pair_points(const CodebookProblem& problem);

}  // namespace tq4::eval
