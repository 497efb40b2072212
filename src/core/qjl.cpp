// Rows in order from one generator; see qjl.h.
#include "core/qjl.h"

#include "core/random.h"

namespace tq4::core {

std::vector<float> make_qjl_matrix(int dim, std::uint64_t seed) {
  // The constant keeps S apart from the Gaussian behind the Haar rotation of the same seed.
  NormalGenerator normal(seed ^ 0x514a4c2d736b6574u);
  std::vector<float> s(static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim));
  for (float& value : s) value = static_cast<float>(normal.next());
  return s;
}

}  // namespace tq4::core
