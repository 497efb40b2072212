// From the statistics of a head to its tables.
//
// An error e of a key costs e^T W e, W the second moment of the queries (for values W_o^T W_o); keys have covariance S. In coordinates
// z = E^T W^1/2 (x - centre), E the eigenvectors of W^1/2 S W^1/2, errors count equally and coordinates are independent with variances
// lambda_1 >= lambda_2 >= ... How much a codec that spends b bits on every coordinate loses depends on what it does with their inequality:
//   - a rotation of x alone: noise in proportion to trace(S) trace(W) / D^2;
//   - Transform, R A with A^T A = S^-1 # W and a random rotation: (mean of sqrt(lambda))^2;
//   - Feedback: the geometric mean of lambda, which is what the best allocation of bits to coordinates (reverse water-filling) would reach,
//     here with the same number of bits for all: a basis is chosen in which every coordinate is equally hard to predict from the earlier
//     ones (core::equal_pivots), the prediction is part of `inverse`, and encoding runs it closed-loop on decoded values.
// Coordinates weaker than the noise are not worth bits: with noise D (the codebook's error times the geometric mean of max(lambda, D), to
// be solved for) z is pre- and post-multiplied by sqrt(1 - D / max(lambda, D)) and predicted as if its variances were max(lambda, D)
// (R. Zamir, Y. Kochman, U. Erez, "Achieving the Gaussian rate-distortion function by prediction", IEEE Trans. IT 54, 2008).
#pragma once

#include <vector>

#include "eval/calibrate_statistics.h"

namespace tq4::eval {

/// Tables of one head of one side; row-major fp32.
struct HeadTables {
  std::vector<float> forward, inverse, feedback;  ///< [D, D]; feedback empty unless the method is Feedback
  float gain = 1;
  double expected_gain = 1;  ///< error of the plain rotation over the error of these tables, as predicted
};

struct TableProblem {
  int dim = 0;
  int bits = 4;
  bool pairs = false;
  double noise = 1;  ///< share of the codebook's own error that prediction reckons with
  double shrink = 0.002;
  CalibrationMethod method = CalibrationMethod::Feedback;
  const core::Matrix* covariance = nullptr;      ///< S
  const core::Matrix* weight = nullptr;          ///< W; null = identity
  const std::vector<float>* rotation = nullptr;  ///< [D, D]: R of Transform
};
HeadTables make_tables(const TableProblem& problem);

}  // namespace tq4::eval
