// Planes of encoded vectors between C++ and Python. Python holds scales at the width they are stored with (fp16 or fp32); the library's codecs
// take fp32 values that are already rounded.
#pragma once

#include <memory>
#include <vector>

#include "arguments.h"
#include "tq4/codec.h"

namespace tq4::python {

/// Planes of n vectors as the codec fills them; those a codec does not have stay null.
struct Planes {
  std::unique_ptr<std::uint8_t[]> codes, signs;
  std::unique_ptr<float[]> scale, zero, residual_norm;

  Planes(const Codec& codec, std::int64_t n);
  /// From vector `first` on.
  EncodedOut out(const Codec& codec, std::int64_t first = 0) const;
  EncodedIn in(const Codec& codec, std::int64_t first = 0) const;
};

/// (codes, scale, zero, signs, residual_norm) with `leading` axes before each plane's own; None where the codec lacks a plane.
nb::tuple planes_to_python(const Codec& codec, Planes planes, const std::vector<std::int64_t>& leading);
/// The inverse: checks dtypes and shapes and widens fp16 planes. `leading` is taken from codes.
Planes planes_from_python(const Codec& codec, nb::handle planes, std::vector<std::int64_t>& leading);

}  // namespace tq4::python
