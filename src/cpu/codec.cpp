// Construction of a codec: which tables a spec needs, and their flat form for the kernels. Encoding and decoding are in codec_run.cpp.
#include "tq4/codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <utility>

#include "core/qjl.h"
#include "core/side.h"
#include "cpu/codec_impl.h"
#include "cpu/scalar.h"
#include "tq4/error.h"

namespace tq4 {
namespace {

std::vector<float> to_floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

std::vector<float> transposed(const std::vector<float>& m, int dim) {
  std::vector<float> t(m.size());
  const auto d = static_cast<std::size_t>(dim);
  for (std::size_t i = 0; i < d; ++i) {
    for (std::size_t j = 0; j < d; ++j) t[j * d + i] = m[i * d + j];
  }
  return t;
}

void check_codebook(const Codebook& codebook, int bits, const char* what) {
  const std::size_t count = std::size_t{1} << bits;
  if (codebook.centroids.size() != count || codebook.boundaries.size() != count - 1) {
    throw Error(ErrorCode::BadInput, std::string(what) + " has " + std::to_string(codebook.centroids.size()) + " centroids and " +
                                         std::to_string(codebook.boundaries.size()) + " boundaries where " + std::to_string(bits) +
                                         "-bit codes need " + std::to_string(count) + " and " + std::to_string(count - 1));
  }
}

void check_rotation(const Rotation& rotation, RotationKind kind, int dim) {
  const auto size = static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim);
  std::size_t in_blocks = 0;
  bool powers_of_two = true;
  for (const int block : rotation.blocks) {
    powers_of_two = powers_of_two && block > 0 && (block & (block - 1)) == 0;
    in_blocks += block > 0 ? static_cast<std::size_t>(block) : 0;
  }
  const bool hadamard = kind == RotationKind::Hadamard || kind == RotationKind::HadamardSigned;
  if (rotation.kind != kind || rotation.dim != dim || rotation.matrix.size() != size || !powers_of_two ||
      (hadamard && in_blocks != static_cast<std::size_t>(dim)) ||
      (kind == RotationKind::HadamardSigned && rotation.signs.size() != static_cast<std::size_t>(dim))) {
    throw Error(ErrorCode::BadInput, "the rotation given is not one of the codec's kind for head_dim " + std::to_string(dim));
  }
}

/// E |u - Q(u)|^2 of a Gaussian pair of variance 1/dim a coordinate, times dim/2: midpoint sums on a grid of +-6 sigma.
double pair_table_mse(const PairTable& table) {
  constexpr int kSteps = 240;
  constexpr double kReach = 6.0, kStep = 2 * kReach / kSteps;
  const double sigma = 1.0 / std::sqrt(static_cast<double>(table.dim));
  double error = 0, mass = 0;
  for (int a = 0; a < kSteps; ++a) {
    const double u = -kReach + (a + 0.5) * kStep;
    for (int b = 0; b < kSteps; ++b) {
      const double v = -kReach + (b + 0.5) * kStep;
      double nearest = std::numeric_limits<double>::infinity();
      for (std::size_t p = 0; p < table.points.size(); p += 2) {
        const double du = u * sigma - static_cast<double>(table.points[p]), dv = v * sigma - static_cast<double>(table.points[p + 1]);
        nearest = std::min(nearest, du * du + dv * dv);
      }
      const double weight = std::exp(-0.5 * (u * u + v * v));
      error += weight * nearest;
      mass += weight;
    }
  }
  return error / mass * table.dim / 2;
}

}  // namespace

Codec::Codec(const SideSpec& spec, int head_dim)
    : Codec((validate(spec, head_dim), spec), head_dim,
            core::has_codebook(spec) ? make_codebook(spec.codebook, core::code_bits(spec), head_dim) : Codebook{},
            make_rotation(spec.rotation, head_dim, spec.seed), nullptr) {}

Codec::Codec(const SideSpec& spec, int head_dim, Codebook codebook, Rotation rotation, const PairTable* pairs, const Codebook* outlier,
             const std::vector<float>* qjl) {
  validate(spec, head_dim);
  const auto dim = static_cast<std::size_t>(head_dim);
  const int bits = core::code_bits(spec);
  check_rotation(rotation, spec.rotation, head_dim);
  auto impl = std::make_unique<Impl>();
  impl->spec = spec;
  impl->dim = head_dim;
  impl->rotation = std::move(rotation);

  cpu::CodeTables& t = impl->codes;
  t.kind = spec.kind;
  t.dim = head_dim;
  t.bits = bits;
  t.outliers = spec.kind == CodeKind::Mixed ? mixed_outlier_channels(head_dim) : 0;
  t.code_bytes = core::code_bytes(spec, head_dim);
  t.scale_rule = spec.scale_rule;
  t.scale_dtype = spec.scale_dtype;
  t.fp8 = spec.fp8;
  t.norm_correction = spec.norm_correction;

  if (core::has_codebook(spec)) {
    check_codebook(codebook, bits, "the codebook");
    impl->codebook = std::move(codebook);
    impl->centroids = to_floats(impl->codebook.centroids);
    impl->boundaries = to_floats(impl->codebook.boundaries);
    t.centroids = impl->centroids.data();
    t.boundaries = impl->boundaries.data();
  }
  if (spec.kind == CodeKind::Mixed) {
    impl->outlier_codebook = outlier != nullptr ? *outlier : make_codebook(spec.codebook, bits + 1, head_dim);
    check_codebook(impl->outlier_codebook, bits + 1, "the outlier codebook");
    impl->outlier_centroids = to_floats(impl->outlier_codebook.centroids);
    impl->outlier_boundaries = to_floats(impl->outlier_codebook.boundaries);
    t.outlier_centroids = impl->outlier_centroids.data();
    t.outlier_boundaries = impl->outlier_boundaries.data();
  }
  if (spec.kind == CodeKind::Prod) {
    impl->qjl = qjl != nullptr ? *qjl : core::make_qjl_matrix(head_dim, spec.seed);
    if (impl->qjl.size() != dim * dim) throw Error(ErrorCode::BadInput, "the QJL matrix is not [head_dim, head_dim]");
    impl->qjl_t = transposed(impl->qjl, head_dim);
    t.qjl = impl->qjl.data();
    t.qjl_t = impl->qjl_t.data();
  }
  if (spec.kind == CodeKind::Mse && bits <= 4) {
    if (spec.pair_codebook) {
      impl->pair_table = pairs != nullptr ? *pairs : gaussian_pair_table(bits, head_dim);
      if (impl->pair_table.points.size() != std::size_t{2} << (2 * bits)) {
        throw Error(ErrorCode::BadInput, "the pair table has " + std::to_string(impl->pair_table.points.size() / 2) + " points where " +
                                             std::to_string(bits) + "-bit pairs need " + std::to_string(1 << (2 * bits)));
      }
      t.pairs = impl->pair_table.points.data();
    } else {
      impl->pair_table = product_pair_table(impl->codebook);
    }
  }

  cpu::TransformTables& f = impl->transform;
  f.dim = head_dim;
  switch (spec.rotation) {
    case RotationKind::None: f.kind = cpu::TransformKind::None; break;
    case RotationKind::Haar:
    case RotationKind::HaarTorch:
      f.kind = cpu::TransformKind::Dense;
      impl->rotation_t = transposed(impl->rotation.matrix, head_dim);
      f.forward = f.inverse_t = impl->rotation.matrix.data();
      f.inverse = f.forward_t = impl->rotation_t.data();
      break;
    case RotationKind::Hadamard:
    case RotationKind::HadamardSigned:
      f.kind = cpu::TransformKind::Hadamard;
      f.signs = spec.rotation == RotationKind::HadamardSigned ? impl->rotation.signs.data() : nullptr;
      f.blocks = impl->rotation.blocks.data();
      f.block_count = static_cast<int>(impl->rotation.blocks.size());
      break;
  }
  impl_ = std::move(impl);
}

Codec::~Codec() = default;
Codec::Codec(Codec&&) noexcept = default;
Codec& Codec::operator=(Codec&&) noexcept = default;

const SideSpec& Codec::spec() const { return impl_->spec; }
int Codec::head_dim() const { return impl_->dim; }
const Codebook& Codec::codebook() const { return impl_->codebook; }
const Codebook& Codec::outlier_codebook() const { return impl_->outlier_codebook; }
const Rotation& Codec::rotation() const { return impl_->rotation; }
const PairTable& Codec::pair_table() const { return impl_->pair_table; }
const std::vector<float>& Codec::qjl_matrix() const { return impl_->qjl; }

std::size_t Codec::code_bytes() const { return impl_->codes.code_bytes; }
bool Codec::has_scale() const { return core::has_scale(impl_->spec); }
bool Codec::has_zero() const { return core::has_zero(impl_->spec); }
bool Codec::has_signs() const { return core::has_signs(impl_->spec); }

std::size_t Codec::vector_bytes() const {
  const std::size_t scale = core::scale_bytes(impl_->spec);
  std::size_t bytes = code_bytes();
  if (has_scale()) bytes += scale;
  if (has_zero()) bytes += scale;
  if (has_signs()) bytes += scale + static_cast<std::size_t>(impl_->dim / 8);
  return bytes;
}

double Codec::theoretical_mse() const {
  const double dim = impl_->dim;
  switch (impl_->spec.kind) {
    case CodeKind::Mse: return impl_->spec.pair_codebook ? pair_table_mse(impl_->pair_table) : codebook_stats(impl_->codebook).mse;
    case CodeKind::Mixed: {
      const double share = impl_->codes.outliers / dim;
      return share * codebook_stats(impl_->outlier_codebook).mse + (1 - share) * codebook_stats(impl_->codebook).mse;
    }
    // The sketch replaces the residual r by an unbiased estimate of E|.|^2 = (pi/2 + (D-1)/D) |r|^2 over the draws of S.
    case CodeKind::Prod: return codebook_stats(impl_->codebook).mse * (std::numbers::pi / 2 - 1 / dim);
    default: return std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace tq4
