// Rotations: Haar matrices by Householder QR, and Hadamard matrices. The QR is written out in plain double loops, because library QRs
// pick their order of additions by instruction set: here every sum runs in a fixed order, vectorisation is over independent elements
// only, so that a seed names one matrix, bit for bit, on every CPU.
#include "tq4/rotation.h"

#include <bit>
#include <cmath>
#include <string>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/random.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

/// Applies I - beta v v^T from the left to columns [first, n) of the row-major a [n, n]; v lives on rows [row, n).
void reflect(std::vector<double>& a, std::size_t n, std::size_t row, std::size_t first, const std::vector<double>& v, double beta,
             std::vector<double>& work) {
  for (std::size_t j = first; j < n; ++j) work[j] = 0;
  for (std::size_t i = row; i < n; ++i) {
    const double vi = v[i];
    const double* line = a.data() + i * n;
    for (std::size_t j = first; j < n; ++j) work[j] += vi * line[j];
  }
  for (std::size_t i = row; i < n; ++i) {
    const double scaled = beta * v[i];
    double* line = a.data() + i * n;
    for (std::size_t j = first; j < n; ++j) line[j] -= scaled * work[j];
  }
}

/// Q of a = Q R with a positive diagonal of R (which makes it unique, and Haar for Gaussian a: Mezzadri, arXiv math-ph/0609050).
std::vector<double> orthogonal_factor(std::vector<double> a, std::size_t n) {
  std::vector<std::vector<double>> reflectors(n);
  std::vector<double> betas(n, 0.0), sign(n, 1.0), work(n);
  for (std::size_t k = 0; k < n; ++k) {
    std::vector<double> v(n, 0.0);
    double squares = 0;
    for (std::size_t i = k; i < n; ++i) {
      v[i] = a[i * n + k];
      squares += v[i] * v[i];
    }
    const double length = std::sqrt(squares);
    // The reflection sends the column to -+length e_k, away from it; that is the sign of R's diagonal.
    const double diagonal = v[k] >= 0 ? -length : length;
    sign[k] = diagonal >= 0 ? 1.0 : -1.0;
    v[k] -= diagonal;
    const double vv = squares - a[k * n + k] * a[k * n + k] + v[k] * v[k];
    if (k + 1 < n && vv > 0) {
      betas[k] = 2 / vv;
      reflect(a, n, k, k, v, betas[k], work);
    } else {
      sign[k] = a[k * n + k] >= 0 ? 1.0 : -1.0;
    }
    reflectors[k] = std::move(v);
  }
  std::vector<double> q(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) q[i * n + i] = sign[i];  // Q diag(sign)
  for (std::size_t k = n; k-- > 0;) {
    if (betas[k] > 0) reflect(q, n, k, k, reflectors[k], betas[k], work);
  }
  return q;
}

std::vector<double> gaussian_matrix(RotationKind kind, std::size_t n, std::uint64_t seed) {
  std::vector<double> a(n * n);
  if (kind == RotationKind::HaarTorch) {
    const std::vector<float> values = core::torch_randn(seed, n * n);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = values[i];
  } else {
    core::NormalGenerator normal(seed);
    for (double& value : a) value = normal.next();
  }
  return a;
}

std::vector<int> power_of_two_blocks(int dim) {
  std::vector<int> blocks;
  while (dim > 0) {
    blocks.push_back(static_cast<int>(std::bit_floor(static_cast<unsigned>(dim))));
    dim -= blocks.back();
  }
  return blocks;
}

}  // namespace

Rotation make_rotation(RotationKind kind, int dim, std::uint64_t seed) {
  if (dim < 8 || dim > 512) throw Error(ErrorCode::Usage, "rotations serve dimensions from 8 to 512, not " + std::to_string(dim));
  const auto n = static_cast<std::size_t>(dim);
  Rotation rotation{kind, dim, seed, std::vector<float>(n * n, 0.0f), {}, {}};
  switch (kind) {
    case RotationKind::None:
      for (std::size_t i = 0; i < n; ++i) rotation.matrix[i * n + i] = 1.0f;
      return rotation;
    case RotationKind::Haar:
    case RotationKind::HaarTorch: {
      const std::vector<double> q = orthogonal_factor(gaussian_matrix(kind, n, seed), n);
      for (std::size_t i = 0; i < q.size(); ++i) rotation.matrix[i] = static_cast<float>(q[i]);
      return rotation;
    }
    case RotationKind::Hadamard:
    case RotationKind::HadamardSigned: {
      rotation.blocks = power_of_two_blocks(dim);
      if (kind == RotationKind::HadamardSigned) {
        core::SplitMix64 mix(seed);
        for (std::size_t j = 0; j < n; ++j) rotation.signs.push_back((mix.next() >> 63) != 0 ? -1.0f : 1.0f);
      }
      std::size_t start = 0;
      for (const int block : rotation.blocks) {
        const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block)));
        const auto size = static_cast<std::size_t>(block);
        for (std::size_t i = 0; i < size; ++i) {
          for (std::size_t j = 0; j < size; ++j) {  // Sylvester: the sign is the parity of i & j
            const float sign = rotation.signs.empty() ? 1.0f : rotation.signs[start + j];
            rotation.matrix[(start + i) * n + start + j] = std::popcount(i & j) % 2 == 0 ? sign * scale : -sign * scale;
          }
        }
        start += size;
      }
      return rotation;
    }
  }
  throw Error(ErrorCode::Usage, "unknown rotation kind");
}

std::uint64_t rotation_fingerprint(const Rotation& rotation) {
  static_assert(std::endian::native == std::endian::little, "fingerprints are of little-endian bytes");
  return XXH3_64bits(rotation.matrix.data(), rotation.matrix.size() * sizeof(float));
}

}  // namespace tq4
