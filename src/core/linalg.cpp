// Calibration's linear algebra on Eigen. Everything is computed in double, so that results agree between machines to far more digits than the
// fp32 tables made from them keep. Every decomposition and product of Eigen is minutes of a compiler's life somewhere: one eigensolver and
// one LU serve all, and what is a plain loop is written as one.
#include "core/linalg.h"

#include <Eigen/Eigenvalues>
#include <Eigen/LU>
#include <algorithm>
#include <cmath>
#include <limits>

#include "tq4/error.h"

namespace tq4::core {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<const RowMajor>;

Matrix pack(const RowMajor& m) { return Matrix(m.data(), m.data() + m.size()); }

}  // namespace

SymmetricEigen eigen_symmetric(const Matrix& m, int n) {
  const RowMajor symmetric = 0.5 * (View(m.data(), n, n) + View(m.data(), n, n).transpose());
  const Eigen::SelfAdjointEigenSolver<RowMajor> solver(symmetric);
  if (solver.info() != Eigen::Success)
    throw Error(ErrorCode::BadInput, "the eigenvalue iteration does not converge: is the matrix finite?");
  RowMajor vectors = solver.eigenvectors().rowwise().reverse();
  SymmetricEigen out;
  for (int k = 0; k < n; ++k) {
    out.values.push_back(solver.eigenvalues()[n - 1 - k]);
    Eigen::Index largest = 0;
    vectors.col(k).cwiseAbs().maxCoeff(&largest);
    if (vectors(largest, k) < 0) vectors.col(k) *= -1;
  }
  out.vectors = pack(vectors);
  return out;
}

Matrix multiply(const Matrix& a, const Matrix& b, int n) { return pack(View(a.data(), n, n) * View(b.data(), n, n)); }

Matrix transpose(const Matrix& m, int n) { return pack(View(m.data(), n, n).transpose()); }

Matrix identity(int n, double value) { return pack(RowMajor::Identity(n, n) * value); }

double trace(const Matrix& m, int n) { return View(m.data(), n, n).trace(); }

Matrix inverse(const Matrix& m, int n) {
  const Eigen::PartialPivLU<RowMajor> lu(View(m.data(), n, n));
  if (!(lu.rcond() > std::numeric_limits<double>::epsilon())) throw Error(ErrorCode::BadInput, "the matrix is singular");
  return pack(lu.inverse());
}

Matrix spd_power(const Matrix& m, int n, double power) {
  const SymmetricEigen eigen = eigen_symmetric(m, n);
  const double floor = std::max(eigen.values.front(), 0.0) * 1e-14;
  if (!(floor > 0)) throw Error(ErrorCode::BadInput, "the matrix is not positive definite");
  Matrix scaled = eigen.vectors;  // V diag(values^power)
  for (std::size_t i = 0; i < scaled.size(); ++i) {
    scaled[i] *= std::pow(std::max(eigen.values[i % static_cast<std::size_t>(n)], floor), power);
  }
  return multiply(scaled, transpose(eigen.vectors, n), n);
}

Matrix geometric_mean(const Matrix& a, const Matrix& b, int n) {
  const Matrix half = spd_power(a, n, 0.5), minus = spd_power(a, n, -0.5);
  return multiply(multiply(half, spd_power(multiply(multiply(minus, b, n), minus, n), n, 0.5), n), half, n);
}

std::vector<float> least_squares(const float* m, const float* y, int n) {
  // x = sum over k of v_k (v_k . m^T y) / lambda_k, m^T m = V diag(lambda) V^T: singular values are the roots of lambda.
  const auto d = static_cast<std::size_t>(n);
  const Matrix a(m, m + d * d);
  const SymmetricEigen eigen = eigen_symmetric(multiply(transpose(a, n), a, n), n);
  std::vector<double> right(d), x(d);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j) right[j] += a[i * d + j] * static_cast<double>(y[i]);
  }
  for (std::size_t k = 0; k < d && eigen.values[k] > 1e-10 * eigen.values[0]; ++k) {
    double along = 0;
    for (std::size_t j = 0; j < d; ++j) along += eigen.vectors[j * d + k] * right[j];
    for (std::size_t j = 0; j < d; ++j) x[j] += eigen.vectors[j * d + k] * along / eigen.values[k];
  }
  return {x.begin(), x.end()};
}

void add_second_moment(const float* rows, std::int64_t n, int dim, Matrix& sum, std::vector<double>* column_sum) {
  using Block = Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
  Eigen::Map<RowMajor> total(sum.data(), dim, dim);
  constexpr std::int64_t kRows = 256;
  for (std::int64_t first = 0; first < n; first += kRows) {
    const Block block(rows + first * dim, std::min(kRows, n - first), dim);
    const Eigen::MatrixXf product = block.transpose() * block;
    total += product.cast<double>();
    if (column_sum != nullptr) Eigen::Map<Eigen::RowVectorXd>(column_sum->data(), dim) += block.cast<double>().colwise().sum();
  }
}

EqualPivots equal_pivots(const std::vector<double>& values) {
  const auto n = static_cast<Eigen::Index>(values.size());
  double mean_log = 0;
  for (const double v : values) {
    if (!(v > 0)) throw Error(ErrorCode::Usage, "variances must be positive");
    mean_log += std::log(v);
  }
  const double target = std::exp(0.5 * mean_log / static_cast<double>(n));  // of the diagonal of r, r^T r = basis^T diag(values) basis
  RowMajor r = RowMajor::Zero(n, n), basis = RowMajor::Identity(n, n);
  for (Eigen::Index k = 0; k < n; ++k) r(k, k) = std::sqrt(values[static_cast<std::size_t>(k)]);
  const auto exchange = [&](Eigen::Index a, Eigen::Index b) {
    if (a == b) return;
    r.row(a).swap(r.row(b));
    r.col(a).swap(r.col(b));
    basis.col(a).swap(basis.col(b));
  };
  /// (u, v) times the rotation [[c, -s], [s, c]].
  const auto rotate = [](double c, double s, double& u, double& v) {
    const double first = c * u + s * v;
    v = c * v - s * u;
    u = first;
  };
  Eigen::Index rest = -1;  // where the plane of the pair's first coordinate left its other half: not to be used for the second
  for (Eigen::Index k = 0; k + 1 < n; ++k) {
    if (k % 2 == 0) rest = -1;
    Eigen::Index high = -1, low = -1, nearest = -1;
    for (Eigen::Index i = k; i < n; ++i) {
      if (i == rest && n - k > 2) continue;
      if (high < 0 || r(i, i) > r(high, high)) high = i;
      if (low < 0 || r(i, i) < r(low, low)) low = i;
      if (nearest < 0 || std::abs(std::log(r(i, i) / target)) < std::abs(std::log(r(nearest, nearest) / target))) nearest = i;
    }
    // The last pair has nothing left to turn with: it stays as it is, within the rounding of what came before it.
    const bool turn = high != low && r(high, high) > target * (1 + 1e-9) && r(low, low) < target * (1 - 1e-9) && k + 2 < n;
    if (!turn) {
      exchange(k, nearest);
      rest = -1;
      continue;
    }
    exchange(k, high);
    exchange(k + 1, low == k ? high : low);
    const double a = r(k, k), b = r(k + 1, k + 1);
    const double c = std::sqrt(std::max(0.0, (target * target - b * b) / (a * a - b * b))), s = std::sqrt(std::max(0.0, 1 - c * c));
    for (Eigen::Index i = 0; i < n; ++i) {
      rotate(c, s, r(i, k), r(i, k + 1));
      rotate(c, s, basis(i, k), basis(i, k + 1));
    }
    for (Eigen::Index i = 0; i < n; ++i) rotate(c * a / target, s * b / target, r(k, i), r(k + 1, i));
    rest = k + 1;
  }
  EqualPivots out;
  out.pivot = target * target;
  out.basis = pack(basis);
  RowMajor lower = RowMajor::Identity(n, n);  // r^T, every row of r divided by its pivot
  for (Eigen::Index i = 0; i < n; ++i) {
    for (Eigen::Index j = 0; j < i; ++j) {
      if (j < i - 1 || i % 2 == 0) lower(i, j) = r(j, i) / r(j, j);
    }
  }
  out.factor = pack(lower);
  return out;
}

}  // namespace tq4::core
