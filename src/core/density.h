// The two densities codebooks are solved for, behind one parametrisation in which both are analytic: integrals over a cell are then
// exact to rounding with a fixed Gauss-Legendre rule, for every dimension, without special functions. Internal to core.
#pragma once

#include <array>

namespace tq4::core {

/// Density of one coordinate, symmetric about 0. The coordinate is a function x(t) of a parameter t >= 0 and the measure is w(t) dt:
/// sphere in R^dim: x = sin t, w = cos^(dim-2) t, t in [0, pi/2]; normal of variance 1/dim: x = t / sqrt(dim), w = exp(-t^2/2).
/// w is normalised so that its integral over t >= 0 is 1/2.
class Density {
 public:
  static Density sphere(int dim);  ///< dim >= 3
  static Density normal(int dim);

  double x(double t) const;                ///< coordinate at parameter t
  double t(double x) const;                ///< inverse of x(t)
  double pdf(double x) const;              ///< density with respect to dx
  double weight(double t) const;           ///< density with respect to dt
  double t_end(double t_begin) const;      ///< where the tail that starts at t_begin has decayed below 1e-17 of its start
  double panel() const { return panel_; }  ///< width in t over which one quadrature panel is exact

  /// Integrals of 1, x and (x - around)^2 against the density over x in [from, to]; to < 0 stands for the end of the support.
  struct Moments {
    double mass;
    double first;
    double second;
  };
  Moments moments(double from, double to, double around = 0.0) const;

 private:
  Density(bool sphere, int dim);
  bool sphere_;
  double dim_;
  double sigma_;
  double panel_;
  double norm_ = 1.0;
};

/// Nodes and weights of the 16-point Gauss-Legendre rule on [-1, 1].
struct GaussLegendre16 {
  std::array<double, 16> node;
  std::array<double, 16> weight;
};
const GaussLegendre16& gauss_legendre_16();

}  // namespace tq4::core
