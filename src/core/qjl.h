// The Gaussian matrix S of the QJL sketch (TurboQuant_prod, arXiv 2504.19874 section 3.2): signs of S r and |r| give an unbiased estimate of
// every inner product with r.
#pragma once

#include <cstdint>
#include <vector>

namespace tq4::core {

/// S [dim, dim] row-major, independent N(0, 1) entries from `seed`; another stream than the rotation of the same seed.
std::vector<float> make_qjl_matrix(int dim, std::uint64_t seed);

}  // namespace tq4::core
