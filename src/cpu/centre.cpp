// Angles and turns in double, the result rounded to float once: positions reach a million, where a float angle would be off by 0.03.
#include "cpu/centre.h"

#include <cmath>

#include "tq4/error.h"

namespace tq4::cpu {

Centre::Centre(const HeadTransform& transform, int dim)
    : dim_(dim),
      rotary_(transform.rope_mu != nullptr),
      constant_(transform.centre),
      mu_(transform.rope_mu),
      position0_(transform.position0) {
  if (!rotary_) return;
  if (transform.rope_dim < 0 || transform.rope_dim % 2 != 0 || transform.rope_dim > dim) {
    throw Error(ErrorCode::Usage,
                "rope_dim " + std::to_string(transform.rope_dim) + " must be even and at most head_dim " + std::to_string(dim));
  }
  if (transform.rope_dim > 0 && !(transform.rope_theta > 0))
    throw Error(ErrorCode::Usage, "rope_theta must be positive where rope_mu is given");
  half_ = transform.rope_dim / 2;
  frequency_.resize(static_cast<std::size_t>(half_));
  for (int i = 0; i < half_; ++i) frequency_[static_cast<std::size_t>(i)] = std::pow(transform.rope_theta, -2.0 * i / transform.rope_dim);
}

const float* Centre::at(std::int64_t i, float* scratch) const {
  if (!rotary_) return constant_;
  const double position = static_cast<double>(position0_ + i);
  for (int j = 0; j < half_; ++j) {
    const double angle = position * frequency_[static_cast<std::size_t>(j)];
    const double cosine = std::cos(angle), sine = std::sin(angle);
    const double a = static_cast<double>(mu_[j]), b = static_cast<double>(mu_[j + half_]);
    scratch[j] = static_cast<float>(a * cosine - b * sine);
    scratch[j + half_] = static_cast<float>(b * cosine + a * sine);
  }
  for (int j = 2 * half_; j < dim_; ++j) scratch[j] = mu_[j];
  return scratch;
}

}  // namespace tq4::cpu
