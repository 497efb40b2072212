// Tables of one head, all in double until the end. Stored scales get the mean energy of the vectors themselves, so that fp16 scales are as
// safe as those of an uncalibrated codec.
#include "eval/calibrate_tables.h"

#include <algorithm>
#include <cmath>

namespace tq4::eval {
namespace {

using core::Matrix;

std::vector<float> to_float(const Matrix& m) { return std::vector<float>(m.begin(), m.end()); }

Matrix shrunk(const Matrix& m, int n, double share) {
  Matrix out = m;
  const double add = share * core::trace(m, n) / n;
  for (int i = 0; i < n; ++i) out[static_cast<std::size_t>(i) * static_cast<std::size_t>(n) + static_cast<std::size_t>(i)] += add;
  return out;
}

/// m with row i multiplied by rows[i] and column j by columns[j].
Matrix scaled(Matrix m, int n, const std::vector<double>* rows, const std::vector<double>* columns) {
  const auto size = static_cast<std::size_t>(n);
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j)
      m[i * size + j] *= (rows != nullptr ? (*rows)[i] : 1.0) * (columns != nullptr ? (*columns)[j] : 1.0);
  }
  return m;
}

double log_mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += std::log(v);
  return std::exp(sum / static_cast<double>(values.size()));
}

/// Squared error of a unit-variance coordinate, close enough for the choice of what is worth coding.
double codebook_error(int bits, bool pairs) { return (pairs ? 2.0 : 2.4) * std::pow(4.0, -bits); }

}  // namespace

HeadTables make_tables(const TableProblem& p) {
  const int n = p.dim;
  const auto size = static_cast<std::size_t>(n);
  HeadTables out;
  const Matrix rotation(p.rotation->begin(), p.rotation->end());
  const double energy = core::trace(*p.covariance, n);
  if (!(energy > 0) || p.method == CalibrationMethod::Centre) {  // constant vectors, or nothing but the centre wanted
    out.forward = *p.rotation;
    out.inverse = to_float(core::transpose(rotation, n));
    return out;
  }
  Matrix weight = p.weight != nullptr ? *p.weight : core::identity(n);
  const double weight_trace = core::trace(weight, n);
  if (!(weight_trace > 0)) weight = core::identity(n);
  for (double& x : weight) x *= n / (weight_trace > 0 ? weight_trace : n);
  const Matrix s = shrunk(*p.covariance, n, p.shrink), w = shrunk(weight, n, p.shrink);
  const Matrix half = core::spd_power(w, n, 0.5), minus = core::spd_power(w, n, -0.5);
  core::SymmetricEigen eigen = core::eigen_symmetric(core::multiply(core::multiply(half, s, n), half, n), n);
  std::vector<double>& lambda = eigen.values;
  for (double& x : lambda) x = std::max(x, lambda.front() * 1e-12);
  const Matrix to_z = core::multiply(core::transpose(eigen.vectors, n), half, n), from_z = core::multiply(minus, eigen.vectors, n);
  const double plain = core::trace(s, n) * core::trace(w, n) / n / n;

  if (p.method == CalibrationMethod::Transform) {
    std::vector<double> g(size), inverse_g(size);
    double sum = 0;
    for (std::size_t k = 0; k < size; ++k) {
      inverse_g[k] = std::pow(lambda[k], 0.25);
      g[k] = 1 / inverse_g[k];
      sum += std::sqrt(lambda[k]);
    }
    const double unit = std::sqrt(energy / sum);  // E |y|^2 = sum of sqrt(lambda) before
    Matrix forward = core::multiply(rotation, scaled(to_z, n, &g, nullptr), n);
    Matrix inverse = core::multiply(scaled(from_z, n, nullptr, &inverse_g), core::transpose(rotation, n), n);
    for (double& x : forward) x *= unit;
    for (double& x : inverse) x /= unit;
    out.forward = to_float(forward);
    out.inverse = to_float(inverse);
    out.expected_gain = plain / (sum / n * sum / n);
    return out;
  }

  const double error = codebook_error(p.bits, p.pairs) * p.noise;
  double noise = error * log_mean(lambda);
  std::vector<double> floored(size), filter(size);
  for (int round = 0; round < 200; ++round) {
    for (std::size_t k = 0; k < size; ++k) floored[k] = std::max(lambda[k], noise);
    noise = error * log_mean(floored);
  }
  for (std::size_t k = 0; k < size; ++k) {
    floored[k] = std::max(lambda[k], noise);
    filter[k] = std::sqrt(1 - noise / floored[k]);
  }
  const core::EqualPivots pivots = core::equal_pivots(floored);
  // t = basis^T filter z; y = factor^-1 t; x = from_z filter basis factor y.
  Matrix forward = core::multiply(core::multiply(core::inverse(pivots.factor, n), core::transpose(pivots.basis, n), n),
                                  scaled(to_z, n, &filter, nullptr), n);
  Matrix inverse = core::multiply(core::multiply(scaled(from_z, n, nullptr, &filter), pivots.basis, n), pivots.factor, n);
  const Matrix spread = core::multiply(core::multiply(forward, s, n), core::transpose(forward, n), n);
  const double open_loop = core::trace(spread, n);  // E |y|^2; closed-loop coordinates vary by `pivot` each, noise included
  const double gain = std::sqrt(pivots.pivot * n / open_loop);
  const double unit = std::sqrt(energy / (pivots.pivot * n));
  for (double& x : forward) x *= unit;
  for (double& x : inverse) x /= unit;
  out.forward = to_float(forward);
  out.inverse = to_float(inverse);
  out.feedback = to_float(pivots.factor);
  for (std::size_t i = 0; i < size; ++i) out.feedback[i * size + i] = 0;
  out.gain = static_cast<float>(gain);
  out.expected_gain = plain / pivots.pivot;
  return out;
}

}  // namespace tq4::eval
