// What may differ between codes made on the tensor cores and the CPU's: a coordinate that lies within 1e-5 of a boundary (of a unit vector) may have
// the neighbouring code, a scale may be the neighbouring fp16 number. Everything else is counted as wrong.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "tq4/codec.h"
#include "tq4/types.h"

namespace tq4::gpu {

struct Flips {
  std::size_t codes = 0, scales = 0;  ///< that differ
  std::size_t wrong = 0;              ///< of them: not explained by rounding
  double farthest = 0;                ///< from its boundary of a coordinate whose code differs
  Flips& operator+=(const Flips& o) {
    codes += o.codes, scales += o.scales, wrong += o.wrong, farthest = std::max(farthest, o.farthest);
    return *this;
  }
};

/// Rows x [n, D] in fp32 and what two encoders made of them. Mse (scalar) and Fp8 codecs; others must be equal.
inline Flips count_flips(const Codec& codec, const HeadTransform& transform, const float* x, std::size_t n, const EncodedIn& want,
                         const EncodedIn& got, double reach = 1e-5) {
  Flips flips;
  const SideSpec& spec = codec.spec();
  const auto dim = static_cast<std::size_t>(codec.head_dim()), bytes = codec.code_bytes();
  const bool mse = spec.kind == CodeKind::Mse && !spec.pair_codebook, fp8 = spec.kind == CodeKind::Fp8;
  const std::size_t bits = fp8 ? 8 : static_cast<std::size_t>(spec.bits);
  const float* matrix = transform.forward ? transform.forward : codec.rotation().matrix.data();
  const auto code_of = [&](const std::uint8_t* row, std::size_t j) {
    unsigned code = 0;
    for (std::size_t b = 0; b < bits; ++b) code |= static_cast<unsigned>(row[(j * bits + b) / 8] >> ((j * bits + b) % 8) & 1) << b;
    return code;
  };
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t *a = want.codes + i * bytes, *b = got.codes + i * bytes;
    const bool same = std::equal(a, a + bytes, b);
    if (!same && !mse && !fp8) ++flips.wrong;
    if (!same && (mse || fp8)) {
      std::vector<double> y(dim, 0.0);
      double norm = 0;
      for (std::size_t r = 0; r < dim; ++r) {
        for (std::size_t j = 0; j < dim; ++j)
          y[r] += static_cast<double>(matrix[r * dim + j]) *
                  (static_cast<double>(x[i * dim + j]) - (transform.centre ? transform.centre[j] : 0.0f));
        norm += y[r] * y[r];
      }
      norm = std::sqrt(norm);
      for (std::size_t j = 0; j < dim; ++j) {
        const unsigned ca = code_of(a, j), cb = code_of(b, j);
        if (ca == cb) continue;
        ++flips.codes;
        double distance = INFINITY;
        if (mse && std::abs(static_cast<int>(ca) - static_cast<int>(cb)) == 1)
          distance = std::abs(y[j] / norm - codec.codebook().boundaries[std::min(ca, cb)]);
        if (fp8) {
          std::vector<std::uint8_t> ra(a, a + bytes), rb(b, b + bytes);
          std::vector<float> va(dim), vb(dim);
          codec.decode_rotated({ra.data(), nullptr, nullptr, nullptr, nullptr}, 1, va.data());
          codec.decode_rotated({rb.data(), nullptr, nullptr, nullptr, nullptr}, 1, vb.data());
          if ((ca & 0x80u) == (cb & 0x80u) && std::abs(static_cast<int>(ca) - static_cast<int>(cb)) == 1)
            distance = std::abs(y[j] - 0.5 * (static_cast<double>(va[j]) + static_cast<double>(vb[j]))) / norm;
          if (va[j] == vb[j]) distance = std::abs(y[j]) / norm;  // +0 and -0
        }
        flips.farthest = std::max(flips.farthest, distance);
        if (!(distance <= reach)) ++flips.wrong;
      }
    }
    if (codec.has_scale() && want.scale[i] != got.scale[i]) {
      ++flips.scales;
      // One fp16 number on, or as much as a changed code moves it.
      const double change = std::abs(static_cast<double>(want.scale[i]) - static_cast<double>(got.scale[i]));
      const double step = !same ? 0.05 : spec.scale_dtype == ScaleDType::F16 ? 1.0e-3 : 0.0;
      if (!(change <= std::max(std::ldexp(1.0, -24), std::abs(static_cast<double>(want.scale[i])) * step))) ++flips.wrong;
    }
    if (codec.has_zero() && want.zero[i] != got.zero[i]) ++flips.wrong;
  }
  return flips;
}

}  // namespace tq4::gpu
