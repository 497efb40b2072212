// Lloyd-Max codebooks. The exact kinds are solved by Newton's method on the fixed point "every centroid is the mean of its cell"; both
// densities are log-concave, so the optimum is unique and symmetric and only its positive half is computed. The peers' kinds repeat
// the peers' own procedure (integration range, quadrature, iteration count), because their stopping point is part of their format.
#include "tq4/codebook.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <string>

#include "core/density.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

using core::Density;

Density density_of(CodebookKind kind, int dim) { return kind == CodebookKind::Sphere ? Density::sphere(dim) : Density::normal(dim); }

/// Cell i of the positive half: [lower, upper], upper < 0 for the last (to the end of the support).
double lower_edge(const std::vector<double>& c, std::size_t i) { return i == 0 ? 0.0 : 0.5 * (c[i - 1] + c[i]); }
double upper_edge(const std::vector<double>& c, std::size_t i) { return i + 1 == c.size() ? -1.0 : 0.5 * (c[i] + c[i + 1]); }

/// Starting points: quantiles of density^(1/3), the asymptotically optimal point density (Panter and Dite), on the positive half.
std::vector<double> companded_start(const Density& density, std::size_t half_levels) {
  constexpr int kSteps = 4096;
  double end = density.t_end(0);
  const double step = end / kSteps;
  std::vector<double> cumulative(kSteps + 1, 0.0);
  for (int i = 0; i < kSteps; ++i) {
    const double middle = (i + 0.5) * step;
    const double width = density.x((i + 1) * step) - density.x(i * step);
    cumulative[static_cast<std::size_t>(i) + 1] =
        cumulative[static_cast<std::size_t>(i)] + std::cbrt(density.pdf(density.x(middle))) * width;
  }
  std::vector<double> start(half_levels);
  for (std::size_t i = 0; i < half_levels; ++i) {
    const double target = cumulative.back() * (static_cast<double>(i) + 0.5) / static_cast<double>(half_levels);
    const auto above = std::upper_bound(cumulative.begin(), cumulative.end(), target);
    const auto k = static_cast<std::size_t>(above - cumulative.begin()) - 1;
    const double part = (target - cumulative[k]) / (cumulative[k + 1] - cumulative[k]);
    start[i] = density.x((static_cast<double>(k) + part) * step);
  }
  return start;
}

struct Residual {
  std::vector<double> value;             ///< cell mean - centroid
  std::vector<double> d_lower, d_upper;  ///< derivative of the cell mean by its lower and upper edge
  double largest = 0;
};

Residual residual_of(const Density& density, const std::vector<double>& c) {
  const std::size_t n = c.size();
  Residual r{std::vector<double>(n), std::vector<double>(n, 0.0), std::vector<double>(n, 0.0), 0};
  for (std::size_t i = 0; i < n; ++i) {
    const double lower = lower_edge(c, i);
    const double upper = upper_edge(c, i);
    const Density::Moments m = density.moments(lower, upper);
    const double mean = m.first / m.mass;
    r.value[i] = mean - c[i];
    if (i > 0) r.d_lower[i] = density.pdf(lower) * (mean - lower) / m.mass;
    if (upper >= 0) r.d_upper[i] = density.pdf(upper) * (upper - mean) / m.mass;
    r.largest = std::max(r.largest, std::abs(r.value[i]));
  }
  return r;
}

/// Newton step of F(c) = mean(c) - c: solves the tridiagonal system by elimination (diagonally dominant for log-concave densities).
std::vector<double> newton_step(const Residual& r) {
  const std::size_t n = r.value.size();
  std::vector<double> super(n), step(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double below = -0.5 * r.d_lower[i];
    const double above = -0.5 * r.d_upper[i];
    double diagonal = 1 - 0.5 * (r.d_lower[i] + r.d_upper[i]);
    double right = r.value[i];
    if (i > 0) {
      diagonal -= below * super[i - 1];
      right -= below * step[i - 1];
    }
    super[i] = above / diagonal;
    step[i] = right / diagonal;
  }
  for (std::size_t i = n - 1; i-- > 0;) step[i] -= super[i] * step[i + 1];
  return step;
}

bool ascending(const std::vector<double>& c) { return c.front() > 0 && std::is_sorted(c.begin(), c.end(), std::less_equal<>()); }

std::vector<double> solve_lloyd_max(const Density& density, std::size_t half_levels) {
  std::vector<double> c = companded_start(density, half_levels);
  Residual r = residual_of(density, c);
  for (int iteration = 0; iteration < 100; ++iteration) {
    if (r.largest <= 1e-15 * c.back()) break;
    const std::vector<double> step = newton_step(r);
    std::vector<double> next = c;
    Residual next_r;
    double damping = 1;
    for (;; damping *= 0.5) {
      for (std::size_t i = 0; i < c.size(); ++i) next[i] = c[i] + damping * step[i];
      if (ascending(next)) {
        next_r = residual_of(density, next);
        if (next_r.largest < r.largest || damping < 1e-3) break;
      }
      if (damping < 1e-6) break;
    }
    if (!(next_r.largest < r.largest)) break;  // at the rounding floor
    c = std::move(next);
    r = std::move(next_r);
  }
  if (!(r.largest <= 1e-13 * c.back())) throw Error(ErrorCode::Runtime, "the Lloyd-Max iteration did not converge");
  return c;
}

/// The peers' Lloyd iteration on the positive half, in the coordinate's own units. `mean(lower, upper)` is the mean of a cell,
/// `edge` the end of the outermost one. Both peers start from cell middles of [-range, range] and stop after 200 rounds or when
/// no centroid moves by 1e-10; `keep_last` says whether the last round's result is used (turboquant-vllm) or dropped (vLLM).
std::vector<double> peer_iteration(std::size_t half_levels, double range, double edge, bool keep_last,
                                   const std::function<double(double, double)>& mean) {
  std::vector<double> c(half_levels), next(half_levels);
  for (std::size_t i = 0; i < half_levels; ++i) c[i] = range * (static_cast<double>(i) + 0.5) / static_cast<double>(half_levels);
  for (int round = 0; round < 200; ++round) {
    double largest = 0;
    for (std::size_t i = 0; i < half_levels; ++i) {
      const double upper = upper_edge(c, i);
      next[i] = mean(lower_edge(c, i), upper < 0 ? edge : upper);
      largest = std::max(largest, std::abs(next[i] - c[i]));
    }
    const bool settled = largest < 1e-10;
    if (keep_last || !settled) c.swap(next);
    if (settled) break;
  }
  return c;
}

/// turboquant-vllm: cells end at +-3 sigma, integrals exact.
std::vector<double> turboquant_vllm_half(std::size_t half_levels, int dim) {
  const double sigma = 1 / std::sqrt(static_cast<double>(dim));
  return peer_iteration(half_levels, 3 * sigma, 3 * sigma, true, [sigma](double lower, double upper) {
    const double a = lower / sigma, b = upper / sigma;
    const double mass = 0.5 * (std::erf(b / std::numbers::sqrt2) - std::erf(a / std::numbers::sqrt2));
    const double first = (std::exp(-0.5 * a * a) - std::exp(-0.5 * b * b)) / std::sqrt(2 * std::numbers::pi);
    return sigma * first / mass;
  });
}

/// vLLM: start in +-3.5 sigma, cells end at +-10.5 sigma, integrals by the trapezoidal rule in 200 steps a cell.
std::vector<double> vllm_half(std::size_t half_levels, int dim) {
  const double sigma = 1 / std::sqrt(static_cast<double>(dim));
  // Inner cells of the full codebook are symmetric except that the one pair next to 0 meets there, as here.
  return peer_iteration(half_levels, 3.5 * sigma, 10.5 * sigma, false, [sigma](double lower, double upper) {
    constexpr int kSteps = 200;
    const double h = (upper - lower) / kSteps;
    double mass = 0, first = 0;
    for (int i = 0; i <= kSteps; ++i) {
      const double x = i == kSteps ? upper : lower + i * h;
      const double w = (i == 0 || i == kSteps ? 0.5 : 1.0) * std::exp(-0.5 * (x / sigma) * (x / sigma));
      mass += w;
      first += w * x;
    }
    return first / mass;
  });
}

}  // namespace

Codebook make_codebook(CodebookKind kind, int bits, int dim) {
  if (bits < 1 || bits > 8) throw Error(ErrorCode::Usage, "a codebook has 1 to 8 bits, not " + std::to_string(bits));
  if (dim < 3) throw Error(ErrorCode::Usage, "a codebook needs a dimension of at least 3, not " + std::to_string(dim));
  const std::size_t half_levels = std::size_t{1} << (bits - 1);
  std::vector<double> half;
  switch (kind) {
    case CodebookKind::Sphere:
    case CodebookKind::Gaussian: half = solve_lloyd_max(density_of(kind, dim), half_levels); break;
    case CodebookKind::TurboquantVllm: half = turboquant_vllm_half(half_levels, dim); break;
    case CodebookKind::Vllm: half = vllm_half(half_levels, dim); break;
  }
  if (half.empty()) throw Error(ErrorCode::Usage, "unknown codebook kind");
  Codebook book{kind, bits, dim, {}, {}};
  for (auto it = half.rbegin(); it != half.rend(); ++it) book.centroids.push_back(-*it);
  book.centroids.insert(book.centroids.end(), half.begin(), half.end());
  for (std::size_t i = 0; i + 1 < book.centroids.size(); ++i) {
    book.boundaries.push_back(0.5 * (book.centroids[i] + book.centroids[i + 1]));
  }
  // The plugin sends a value equal to a boundary down (torch.bucketize), where codes here go up. Only the coordinates of zero vectors
  // ever equal one, the middle one; the smallest normal float in its place gives them the plugin's code.
  if (kind == CodebookKind::TurboquantVllm) book.boundaries[book.boundaries.size() / 2] = std::numeric_limits<float>::min();
  return book;
}

CodebookStats codebook_stats(const Codebook& codebook) {
  const Density density = density_of(codebook.kind, codebook.dim);
  const std::size_t half_levels = codebook.centroids.size() / 2;
  if (half_levels == 0 || codebook.boundaries.size() + 1 != codebook.centroids.size()) {
    throw Error(ErrorCode::Usage, "codebook_stats: not a codebook");
  }
  const std::vector<double> half(codebook.centroids.begin() + static_cast<std::ptrdiff_t>(half_levels), codebook.centroids.end());
  double error = 0, entropy = 0;
  for (std::size_t i = 0; i < half.size(); ++i) {
    const Density::Moments m = density.moments(lower_edge(half, i), upper_edge(half, i), half[i]);
    error += 2 * m.second;
    if (m.mass > 0) entropy -= 2 * m.mass * std::log2(m.mass);
  }
  const double shannon = std::pow(4.0, -codebook.bits);
  return {codebook.dim * error, entropy, std::sqrt(3.0) * std::numbers::pi / 2 * shannon, shannon};
}

}  // namespace tq4
