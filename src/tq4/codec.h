// Codec: one side (K or V) at one head_dim, ready to encode and decode. It owns its tables (codebook, rotation), is immutable and
// safe to share between threads. encode/decode here choose SIMD and threads; the scalar reference gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tq4/codebook.h"
#include "tq4/rotation.h"
#include "tq4/spec.h"
#include "tq4/types.h"

namespace tq4 {

/// What happens to one head's vectors before the codebook: y = forward (x - centre), x = inverse y + centre. Null pointers mean: the
/// codec's rotation (and its transpose), no centre. This is the hook for calibration: forward = R A, inverse = A^-1 R^T.
/// With rope_mu (centring before RoPE) the centre of a token at position p is R_p rope_mu instead: rope_mu is the mean of keys
/// before positions are applied, R_p turns coordinate pairs (i, i + rope_dim/2) by p * theta^(-2i/rope_dim) (rotate_half).
struct HeadTransform {
  const float* forward = nullptr;  ///< [D, D] row-major
  const float* inverse = nullptr;  ///< [D, D] row-major
  const float* centre = nullptr;   ///< [D]
  const float* rope_mu = nullptr;  ///< [D]
  double rope_theta = 0;
  int rope_dim = 0;
  std::int64_t position0 = 0;  ///< position of the first vector of a call; vector i is at position0 + i
  /// Encoding only (Mse): [D, D] row-major, strictly lower triangular, zero within pairs (2i, 2i+1). What coding a coordinate got wrong is
  /// predicted into the later ones before they are coded: the codes minimise |(I + feedback)(y - scale c)| greedily instead of |y - scale c|.
  /// Decoding and the bytes do not change: `inverse` holds (I + feedback). Needs `forward`.
  const float* feedback = nullptr;
  float feedback_gain = 1;  ///< |y| times this is the scale coding starts from
};

/// Where the parts of n encoded vectors lie. Each plane is contiguous over vectors. Planes a codec does not have are null.
/// codes: [n, code_bytes] LSB first (index of coordinate j in bits [j*b, (j+1)*b) of the row);
/// scale, zero, residual_norm: [n] fp32 values already rounded to the spec's scale_dtype; signs: [n, D/8] LSB first, bit 1 = +1.
template <class Byte, class Real>
struct EncodedPlanes {
  Byte* codes = nullptr;
  Real* scale = nullptr;
  Real* zero = nullptr;           ///< Uniform only: value = zero + scale * index
  Byte* signs = nullptr;          ///< Prod only
  Real* residual_norm = nullptr;  ///< Prod only
};
using EncodedOut = EncodedPlanes<std::uint8_t, float>;
using EncodedIn = EncodedPlanes<const std::uint8_t, const float>;

enum class NonFinite : std::uint8_t { Refuse, Zero };

struct Exec {
  int threads = 1;                          ///< 0 = all cores. Bytes do not depend on it.
  bool scalar = false;                      ///< use the scalar reference instead of SIMD. Bytes do not depend on it either.
  NonFinite nonfinite = NonFinite::Refuse;  ///< Refuse: throw BadInput with the vector and coordinate; Zero: replace by 0
};

class Codec {
 public:
  /// Builds codebook and rotation from the spec. Throws Usage/Unsupported (see validate).
  Codec(const SideSpec& spec, int head_dim);
  /// With the tables as stored in a file; nothing is derived again. `pairs` may be null (product of the codebook). Mixed takes its
  /// `outlier` codebook and Prod its [D, D] `qjl` matrix from the file too (null: derived from the spec).
  Codec(const SideSpec& spec, int head_dim, Codebook codebook, Rotation rotation, const PairTable* pairs, const Codebook* outlier = nullptr,
        const std::vector<float>* qjl = nullptr);
  ~Codec();
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;

  const SideSpec& spec() const;
  int head_dim() const;
  const Codebook& codebook() const;          ///< empty for Fp8, Uniform, Fp16. Mixed: the lower-bit book
  const Codebook& outlier_codebook() const;  ///< Mixed: the book with one bit more
  const Rotation& rotation() const;
  const PairTable& pair_table() const;           ///< Mse at 1..4 bits: what the decoders use; else empty
  const std::vector<float>& qjl_matrix() const;  ///< Prod: [D, D] seeded Gaussian; else empty

  std::size_t code_bytes() const;  ///< bytes of one row of `codes`: ceil(D * bits / 8), D for Fp8, 2 D for Fp16
  bool has_scale() const;          ///< Mse, Prod, Mixed, Uniform
  bool has_zero() const;           ///< Uniform
  bool has_signs() const;          ///< Prod (signs and residual_norm)
  /// Bytes a vector takes in all (codes, scale, zero, signs, residual norm at their stored widths).
  std::size_t vector_bytes() const;
  /// The theoretical relative squared error on random unit vectors with the codebook's own scale rule; NaN where unknown.
  double theoretical_mse() const;

  /// Encode n vectors x [n, D] of `dtype` (F16, BF16, F32), row stride D. A zero vector gets scale 0. Throws BadInput on NaN/Inf.
  void encode(const void* x, DType dtype, std::int64_t n, const EncodedOut& out, const HeadTransform& transform = {},
              const Exec& exec = {}) const;
  /// Decode n vectors to x [n, D] fp32 in original space.
  void decode(const EncodedIn& in, std::int64_t n, float* x, const HeadTransform& transform = {}, const Exec& exec = {}) const;
  /// Decode to y [n, D] fp32 in rotated space (no inverse transform, no centre): what the attention kernels see.
  void decode_rotated(const EncodedIn& in, std::int64_t n, float* y, const Exec& exec = {}) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace tq4
