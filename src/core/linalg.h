// The dense linear algebra that calibration needs, on row-major double matrices in plain vectors: Eigen stays behind this header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tq4::core {

/// A square matrix, row-major: element (i, j) at [i * n + j].
using Matrix = std::vector<double>;

/// Eigenvalues in descending order; column k of `vectors` belongs to values[k]. The sign of a vector makes its largest element positive.
struct SymmetricEigen {
  std::vector<double> values;
  Matrix vectors;
};
SymmetricEigen eigen_symmetric(const Matrix& m, int n);

Matrix multiply(const Matrix& a, const Matrix& b, int n);
Matrix transpose(const Matrix& m, int n);
Matrix identity(int n, double value = 1);
double trace(const Matrix& m, int n);
/// Throws BadInput where m is singular.
Matrix inverse(const Matrix& m, int n);
/// m^power of a symmetric positive definite matrix; eigenvalues below 1e-14 of the largest are raised to it.
Matrix spd_power(const Matrix& m, int n, double power);
/// The geometric mean a # b = a^1/2 (a^-1/2 b a^-1/2)^1/2 a^1/2 of two positive definite matrices: the symmetric M with M a^-1 M = b.
Matrix geometric_mean(const Matrix& a, const Matrix& b, int n);

/// The x of least length with m x nearest to y, m [n, n] and y fp32: components that m shrinks below 1e-5 of its largest are left out.
std::vector<float> least_squares(const float* m, const float* y, int n);

/// sum += rows^T rows and mean_sum += the column sums, of n rows [n, dim]: products in fp32 over blocks of 256 rows, sums over blocks in double.
void add_second_moment(const float* rows, std::int64_t n, int dim, Matrix& sum, std::vector<double>* column_sum);

/// A basis in which independent coordinates of the variances `values` (descending, positive) become equally hard to predict:
/// basis^T diag(values) basis = pivot * factor factor^T with unit lower triangular `factor`. pivot is the geometric mean of the values, the
/// least that linear prediction can leave a coordinate on average. factor[2i+1][2i] = 0: the two of a pair are predicted together.
/// (Jiang, Hager, Li: "The geometric mean decomposition", Linear Algebra Appl. 396, 2005; the choice of planes keeps pairs apart.)
struct EqualPivots {
  double pivot = 0;
  Matrix basis;
  Matrix factor;
};
EqualPivots equal_pivots(const std::vector<double>& values);

}  // namespace tq4::core
