// Lloyd-Max codebooks: the scalar quantizers TurboQuant applies to every rotated coordinate, and the 2-D quantizers that spend the
// same bits on coordinate pairs. Computed, never downloaded; exact to 1e-12.
#pragma once

#include <cstdint>
#include <vector>

#include "tq4/spec.h"

namespace tq4 {

/// A scalar codebook for a coordinate of a unit vector in R^dim.
/// centroids: 2^bits ascending; boundaries: 2^bits - 1 ascending, boundaries[i] between centroids i and i+1.
/// index(y) = number of boundaries <= y ... a value equal to a boundary goes up (vLLM's rule; the seeds agree).
struct Codebook {
  CodebookKind kind{};
  int bits = 0;
  int dim = 0;
  std::vector<double> centroids;
  std::vector<double> boundaries;
};

/// Solves Lloyd-Max by Newton on the fixed point, to 1e-12 relative. bits 1..8, dim >= 3. Throws Usage.
Codebook make_codebook(CodebookKind kind, int bits, int dim);

/// Properties under the density the codebook is for. mse is of a whole unit vector (dim times a coordinate's).
struct CodebookStats {
  double mse;            ///< E |x - Q(x)|^2 of a unit vector
  double entropy_bits;   ///< entropy of the index, bits a coordinate
  double paper_bound;    ///< sqrt(3) pi / 2 * 4^-bits (Theorem 1)
  double shannon_bound;  ///< 4^-bits
};
CodebookStats codebook_stats(const Codebook& codebook);

/// 4^bits points in the plane for pairs of coordinates of a unit vector in R^dim: points[2 * code], points[2 * code + 1] are
/// the values of coordinates 2i and 2i+1. The code takes the place of the two scalar indices: low `bits` bits and high `bits` bits.
/// A scalar codebook is the product table (product_pair_table), so decoders need only pair tables.
struct PairTable {
  int bits = 0;
  int dim = 0;
  std::vector<float> points;  ///< [4^bits, 2]
};
PairTable product_pair_table(const Codebook& codebook);
/// 2-D Lloyd (k-means on the exact Gaussian density of variance 1/dim, deterministic), bits 2..4.
PairTable gaussian_pair_table(int bits, int dim);

}  // namespace tq4
