// CodecSpec: the complete, serialisable name of a codec. Two equal specs (with equal tables, see codec.h) give equal bytes
// on every backend. Nothing here depends on a device; what a file or a page means is decided by its spec alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tq4 {

/// How coordinates become codes.
enum class CodeKind : std::uint8_t {
  Mse,      ///< rotate, Lloyd-Max codebook of 2^bits points (TurboQuant_mse, arXiv 2504.19874 section 3.1)
  Prod,     ///< (bits-1)-bit Mse plus one QJL sign a coordinate of the residual (TurboQuant_prod, section 3.2)
  Mixed,    ///< Mse with one bit more on `outlier_channels` channels ("2.5" and "3.5" bits, section 4.3)
  Fp8,      ///< one FP8 byte a coordinate (see Fp8Kind), no scale unless stored_scale
  Uniform,  ///< 2^bits evenly spaced levels between the vector's min and max: scale and zero a vector (vLLM's values)
  Fp16      ///< pass-through, two bytes a coordinate
};
enum class Fp8Kind : std::uint8_t { E4M3, E4B15 };

/// Which Lloyd-Max problem the codebook solves. All are for a coordinate of a unit vector in R^head_dim.
enum class CodebookKind : std::uint8_t {
  Sphere,          ///< exact density of a coordinate of a random unit vector (default)
  Gaussian,        ///< N(0, 1/d), exact
  TurboquantVllm,  ///< turboquant-vllm 1.5: N(0, 1/d) with integrals cut at +-3 sigma
  Vllm             ///< vLLM 0.33's centroids
};
enum class RotationKind : std::uint8_t {
  None,
  Haar,           ///< QR of a seeded Gaussian, computed in double (ours, same bits on every CPU)
  HaarTorch,      ///< QR of torch.randn(D, D) of torch's CPU mt19937 seeded `seed` (turboquant-vllm's matrix)
  Hadamard,       ///< orthonormal Sylvester Hadamard, no signs (vLLM); block-diagonal where D is no power of two
  HadamardSigned  ///< Hadamard times seeded random signs
};
/// What is stored as a vector's "norm". y is the vector after centring and transform, c its centroids.
enum class ScaleRule : std::uint8_t {
  LeastSquares,  ///< <y, c> / <c, c>: least squared error (default)
  Norm,          ///< |y|: the paper's
  Unbiased       ///< <y, y> / <y, c>: unbiased inner products with y
};
enum class ScaleDType : std::uint8_t { F16, F32 };

/// One side (K or V) of a codec.
struct SideSpec {
  CodeKind kind = CodeKind::Mse;
  int bits = 4;  ///< Mse 1..8, Prod 2..5, Mixed 1..7 (the lower of its two), Uniform 2..8; ignored by Fp8 and Fp16
  CodebookKind codebook = CodebookKind::Sphere;
  RotationKind rotation = RotationKind::Haar;
  std::uint64_t seed = 42;
  ScaleRule scale_rule = ScaleRule::LeastSquares;
  ScaleDType scale_dtype = ScaleDType::F16;
  Fp8Kind fp8 = Fp8Kind::E4M3;
  bool pair_codebook = false;    ///< Mse, 2..4 bits: 4^bits points for coordinate pairs (2i, 2i+1) instead of scalars
  bool norm_correction = false;  ///< decoding rescales the centroid vector to unit norm first (vLLM's *_nc presets)
  bool operator==(const SideSpec&) const = default;
};

/// A codec of a whole cache. head_dim is not part of it: layers of one dump may differ.
struct CodecSpec {
  SideSpec k;
  SideSpec v;
  int sinks = 0;   ///< the first `sinks` tokens of a sequence are kept in fp16
  int window = 0;  ///< and the last `window`
  bool operator==(const CodecSpec&) const = default;
};

/// A spec by name. Grammar, case-insensitive:
///   tqB (B = 1..8, 2.5, 3.5), kAvB (A, B = 1..7, 2.5, 3.5; A = 8 means fp8 keys, B = 8 Mse values, 16 fp16 pass-through), fp8, fp16;
///   suffixes, in any order: "-2d" (pair codebook, on each Mse side), "-norm" (the paper's scale), "-prod" (Prod keys of A bits; values
///   stay Mse: they are summed, not multiplied with a query); peers' codecs:
///   turboquant-vllm, turboquant-vllm-k3v4 (any of 2..4), vllm:k8v4, vllm:4bit_nc, vllm:k3v4_nc, vllm:3bit_nc.
/// Throws Usage naming the nearest known name.
CodecSpec spec_from_name(std::string_view name);
/// The shortest name that spec_from_name turns back into `spec`, or a descriptive one where there is none.
std::string spec_name(const CodecSpec& spec);

/// JSON text with every field spelled out, and back (unknown fields and values throw BadInput).
std::string spec_to_json(const CodecSpec& spec);
CodecSpec spec_from_json(std::string_view json);

/// Throws Usage/Unsupported when a side cannot serve head_dim (8-multiples from 32 to 512; pair codebooks need 2..4 bits; ...).
void validate(const SideSpec& side, int head_dim);

/// Channels of Mixed that get one bit more: head_dim / 4 rounded up to a multiple of 8 (32 of 128, as in the paper).
int mixed_outlier_channels(int head_dim);

}  // namespace tq4
