// Quadrature of the coordinate densities; see density.h.
#include "core/density.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tq4::core {

const GaussLegendre16& gauss_legendre_16() {
  static const GaussLegendre16 rule = [] {
    GaussLegendre16 r{};
    constexpr int n = 16;
    for (int i = 0; i < n; ++i) {
      double x = -std::cos(std::numbers::pi * (i + 0.75) / (n + 0.5));  // Tricomi's start, then Newton on P_16
      double derivative = 0;
      for (int iteration = 0; iteration < 8; ++iteration) {
        double p0 = 1, p1 = x;
        for (int k = 2; k <= n; ++k) {
          const double p2 = ((2 * k - 1) * x * p1 - (k - 1) * p0) / k;
          p0 = p1;
          p1 = p2;
        }
        derivative = n * (x * p1 - p0) / (x * x - 1);
        x -= p1 / derivative;
      }
      r.node[static_cast<std::size_t>(i)] = x;
      r.weight[static_cast<std::size_t>(i)] = 2 / ((1 - x * x) * derivative * derivative);
    }
    return r;
  }();
  return rule;
}

Density::Density(bool sphere, int dim)
    : sphere_(sphere), dim_(dim), sigma_(1 / std::sqrt(static_cast<double>(dim))), panel_(sphere ? 1 / std::sqrt(dim - 2.0) : 1.0) {
  norm_ = 0.5 / moments(0, -1).mass;
}

Density Density::sphere(int dim) { return Density(true, dim); }
Density Density::normal(int dim) { return Density(false, dim); }

double Density::x(double t) const { return sphere_ ? std::sin(t) : t * sigma_; }

double Density::t(double x) const { return sphere_ ? std::asin(std::min(x, 1.0)) : x / sigma_; }

double Density::weight(double t) const {
  if (!sphere_) return norm_ * std::exp(-0.5 * t * t);
  const double s = std::sin(t);
  return norm_ * std::exp(0.5 * (dim_ - 2) * std::log1p(-s * s));
}

double Density::pdf(double x) const {
  if (!sphere_) return weight(x / sigma_) / sigma_;
  return x < 1 ? norm_ * std::exp(0.5 * (dim_ - 3) * std::log1p(-x * x)) : 0.0;
}

double Density::t_end(double t_begin) const {
  // log w falls at least as fast as -(t - t_begin)^2 / 2 in units of the panel: exp(-9^2 / 2) = 3e-18.
  const double end = t_begin + 9 * panel_;
  return sphere_ ? std::min(end, std::numbers::pi / 2) : end;
}

Density::Moments Density::moments(double from, double to, double around) const {
  const GaussLegendre16& rule = gauss_legendre_16();
  const double begin = t(from);
  const double end = to < 0 ? t_end(begin) : t(to);
  const int panels = std::max(1, static_cast<int>(std::ceil((end - begin) / panel_)));
  const double half = 0.5 * (end - begin) / panels;
  Moments sum{0, 0, 0};
  for (int p = 0; p < panels; ++p) {
    const double middle = begin + (2 * p + 1) * half;
    for (std::size_t i = 0; i < rule.node.size(); ++i) {
      const double at = middle + half * rule.node[i];
      const double w = half * rule.weight[i] * weight(at);
      const double value = x(at);
      sum.mass += w;
      sum.first += w * value;
      sum.second += w * (value - around) * (value - around);
    }
  }
  return sum;
}

}  // namespace tq4::core
