// See codec_tables.h.
#include "io/codec_tables.h"

#include <bit>
#include <cmath>

#include "core/side.h"

namespace tq4::io {
namespace {

std::string table_name(int number, const char* part) { return "table_" + std::to_string(number) + "." + part; }

bool is_hadamard(RotationKind kind) { return kind == RotationKind::Hadamard || kind == RotationKind::HadamardSigned; }

void check_finite(const auto& values, const std::string& where) {
  for (const auto value : values) {
    if (!std::isfinite(value)) bad_input(where, "holds a number that is not finite");
  }
}

Codebook read_codebook(SealedFile& file, int number, const SideSpec& spec, int bits, int head_dim, const char* centroids,
                       const char* boundaries) {
  Codebook book{spec.codebook, bits, head_dim, {}, {}};
  const std::uint64_t count = std::uint64_t{1} << bits;
  book.centroids = file.read_vector<double>(table_name(number, centroids), DType::F64, {count});
  book.boundaries = file.read_vector<double>(table_name(number, boundaries), DType::F64, {count - 1});
  check_finite(book.centroids, file.path() + ": " + table_name(number, centroids));
  check_finite(book.boundaries, file.path() + ": " + table_name(number, boundaries));
  return book;
}

Rotation read_rotation(SealedFile& file, int number, const SideSpec& spec, int head_dim) {
  const auto dim = static_cast<std::uint64_t>(head_dim);
  Rotation rotation{spec.rotation, head_dim, spec.seed, {}, {}, {}};
  if (spec.rotation == RotationKind::None) return make_rotation(RotationKind::None, head_dim, spec.seed);
  rotation.matrix = file.read_vector<float>(table_name(number, "rotation"), DType::F32, {dim, dim});
  check_finite(rotation.matrix, file.path() + ": " + table_name(number, "rotation"));
  if (is_hadamard(spec.rotation)) {
    const auto blocks = static_cast<std::uint64_t>(std::popcount(dim));  // one power of two a set bit of head_dim
    rotation.blocks = file.read_vector<int>(table_name(number, "blocks"), DType::I32, {blocks});
  }
  if (spec.rotation == RotationKind::HadamardSigned) {
    rotation.signs = file.read_vector<float>(table_name(number, "signs"), DType::F32, {dim});
    check_finite(rotation.signs, file.path() + ": " + table_name(number, "signs"));
  }
  return rotation;
}

}  // namespace

TableTensors table_tensors(const Codec& codec, int number) {
  const SideSpec& spec = codec.spec();
  const auto dim = static_cast<std::uint64_t>(codec.head_dim());
  TableTensors out;
  const auto add = [&](const char* part, DType dtype, std::vector<std::uint64_t> shape, const void* data) {
    out.tensors.push_back({table_name(number, part), dtype, std::move(shape)});
    out.data.push_back(data);
  };
  const Rotation& rotation = codec.rotation();
  if (spec.rotation != RotationKind::None) add("rotation", DType::F32, {dim, dim}, rotation.matrix.data());
  if (is_hadamard(spec.rotation)) add("blocks", DType::I32, {rotation.blocks.size()}, rotation.blocks.data());
  if (spec.rotation == RotationKind::HadamardSigned) add("signs", DType::F32, {dim}, rotation.signs.data());
  if (core::has_codebook(spec)) {
    add("centroids", DType::F64, {codec.codebook().centroids.size()}, codec.codebook().centroids.data());
    add("boundaries", DType::F64, {codec.codebook().boundaries.size()}, codec.codebook().boundaries.data());
  }
  if (spec.kind == CodeKind::Mse && spec.pair_codebook)
    add("pairs", DType::F32, {codec.pair_table().points.size() / 2, 2}, codec.pair_table().points.data());
  if (spec.kind == CodeKind::Mixed) {
    add("outlier_centroids", DType::F64, {codec.outlier_codebook().centroids.size()}, codec.outlier_codebook().centroids.data());
    add("outlier_boundaries", DType::F64, {codec.outlier_codebook().boundaries.size()}, codec.outlier_codebook().boundaries.data());
  }
  if (spec.kind == CodeKind::Prod) add("qjl", DType::F32, {dim, dim}, codec.qjl_matrix().data());
  return out;
}

std::unique_ptr<Codec> codec_from_table(SealedFile& file, int number, const SideSpec& spec, int head_dim, std::uint64_t fingerprint,
                                        const std::vector<float>* pairs) {
  const auto dim = static_cast<std::uint64_t>(head_dim);
  const int bits = core::code_bits(spec);
  Rotation rotation = read_rotation(file, number, spec, head_dim);
  if (rotation_fingerprint(rotation) != fingerprint)
    bad_input(file.path() + ": " + table_name(number, "rotation"), "is not the matrix the codes were made with (its fingerprint differs)");
  Codebook book, outlier;
  PairTable table;
  std::vector<float> qjl;
  if (core::has_codebook(spec)) book = read_codebook(file, number, spec, bits, head_dim, "centroids", "boundaries");
  const bool has_pairs = spec.kind == CodeKind::Mse && spec.pair_codebook;
  if (has_pairs) {
    const std::uint64_t points = std::uint64_t{1} << (2 * bits);
    table = {bits, head_dim, file.read_vector<float>(table_name(number, "pairs"), DType::F32, {points, 2})};
    if (pairs != nullptr) table.points = *pairs;
    check_finite(table.points, file.path() + ": " + table_name(number, "pairs"));
  }
  if (spec.kind == CodeKind::Mixed)
    outlier = read_codebook(file, number, spec, bits + 1, head_dim, "outlier_centroids", "outlier_boundaries");
  if (spec.kind == CodeKind::Prod) {
    qjl = file.read_vector<float>(table_name(number, "qjl"), DType::F32, {dim, dim});
    check_finite(qjl, file.path() + ": " + table_name(number, "qjl"));
  }
  return std::make_unique<Codec>(spec, head_dim, std::move(book), std::move(rotation), has_pairs ? &table : nullptr,
                                 spec.kind == CodeKind::Mixed ? &outlier : nullptr, spec.kind == CodeKind::Prod ? &qjl : nullptr);
}

}  // namespace tq4::io
