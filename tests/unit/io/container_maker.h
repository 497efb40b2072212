// Writes small containers of any spec for the tests, and keeps what went into them.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tq4/calibration.h"
#include "tq4/container.h"

namespace tq4::test {

/// Planes of n vectors with room for every part.
struct Planes {
  Planes(const Codec& codec, std::int64_t n)
      : codes(static_cast<std::size_t>(n) * codec.code_bytes()),
        signs(static_cast<std::size_t>(n) * static_cast<std::size_t>(codec.head_dim()) / 8),
        scale(static_cast<std::size_t>(n)),
        zero(static_cast<std::size_t>(n)),
        residual_norm(static_cast<std::size_t>(n)) {}
  EncodedOut out() { return {codes.data(), scale.data(), zero.data(), signs.data(), residual_norm.data()}; }
  EncodedIn in() const { return {codes.data(), scale.data(), zero.data(), signs.data(), residual_norm.data()}; }
  bool operator==(const Planes&) const = default;
  std::vector<std::uint8_t> codes, signs;
  std::vector<float> scale, zero, residual_norm;
};

inline StoredLayer layer(int number, int heads, std::int64_t tokens, int head_dim, std::int64_t first = 0, std::int64_t last = 0,
                         bool passthrough = false) {
  StoredLayer made;
  made.shape.layer = number;
  made.shape.num_kv_heads = heads;
  made.shape.num_q_heads = 2 * heads;
  made.shape.head_dim = head_dim;
  made.shape.tokens = tokens;
  made.shape.k_dtype = DType::F16;
  made.shape.v_dtype = DType::F32;
  made.passthrough = passthrough;
  made.reason = passthrough ? "--skip-layers" : "";
  made.exact_first = first;
  made.exact_last = last;
  return made;
}

/// Gaussian rows with a mean, seeded by what they are.
inline std::vector<float> rows_of(int layer_number, Side side, int head, std::int64_t tokens, int head_dim) {
  std::mt19937 random(static_cast<unsigned>(layer_number * 1000 + (side == Side::K ? 0 : 500) + head));
  std::normal_distribution<float> normal(0.25f, 1.5f);
  std::vector<float> rows(static_cast<std::size_t>(tokens * head_dim));
  for (float& value : rows) value = half_to_float(float_to_half(normal(random)));
  return rows;
}

/// Every table filled: a scaled rotation and its inverse, centres, for K a mean before RoPE in one head, pair points where `pairs`.
inline LayerCalibration calibrate(const StoredLayer& stored, int pair_bits) {
  LayerCalibration made;
  made.layer = stored.shape.layer;
  made.num_kv_heads = stored.shape.num_kv_heads;
  made.head_dim = stored.shape.head_dim;
  made.rope_theta = 10000;
  made.rope_dim = stored.shape.head_dim / 2;
  const auto heads = static_cast<std::size_t>(made.num_kv_heads), dim = static_cast<std::size_t>(made.head_dim);
  const Rotation rotation = make_rotation(RotationKind::Haar, made.head_dim, 7);
  for (SideCalibration* side : {&made.k, &made.v}) {
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t i = 0; i < dim * dim; ++i) side->forward.push_back(2 * rotation.matrix[i]);
      for (std::size_t i = 0; i < dim; ++i) {
        for (std::size_t j = 0; j < dim; ++j) side->inverse.push_back(0.5f * rotation.matrix[j * dim + i]);
      }
      for (std::size_t j = 0; j < dim; ++j) side->centre.push_back(0.25f + 0.001f * static_cast<float>(j));
    }
    if (pair_bits > 0) {
      side->pair_points = gaussian_pair_table(pair_bits, made.head_dim).points;
      for (float& value : side->pair_points) value *= 1.01f;
    }
  }
  made.k.centre.clear();
  for (std::size_t i = 0; i < heads * dim; ++i) made.k.rope_mu.push_back(0.01f * static_cast<float>(i % 13));
  return made;
}

/// The codec the container must use for a side of a layer.
inline Codec codec_for(const SideSpec& spec, int head_dim, const SideCalibration* tables) {
  if (tables == nullptr || tables->pair_points.empty() || !spec.pair_codebook) return Codec(spec, head_dim);
  const PairTable pairs{spec.bits, head_dim, tables->pair_points};
  return Codec(spec, head_dim, make_codebook(spec.codebook, spec.bits, head_dim), make_rotation(spec.rotation, head_dim, spec.seed),
               &pairs);
}

/// Encodes rows_of() everything and writes it in pieces of `step` tokens.
inline void write_container(const std::string& path, const CodecSpec& spec, const std::vector<StoredLayer>& layers,
                            const Calibration* calibration = nullptr, bool overwrite = false, std::int64_t step = 37) {
  DumpInfo source;
  source.path = "/somewhere/dump.h5";
  source.model = "test model";
  source.sm_scale = 0.125;
  source.attributes = {{"model", "test model"}, {"note", "quotes \" and \"xxh3\":\"0123456789abcdef\" and \xff bytes"}};
  const auto writer = create_container(path, spec, source, layers, calibration, overwrite);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerInfo& shape = layers[i].shape;
    const std::int64_t first = layers[i].passthrough ? shape.tokens : layers[i].exact_first, last = layers[i].exact_last,
                       encoded = shape.tokens - first - last;
    const LayerCalibration* tables = calibration == nullptr || layers[i].passthrough ? nullptr : calibration->find(shape.layer);
    for (const Side side : {Side::V, Side::K}) {
      for (int head = shape.num_kv_heads - 1; head >= 0; --head) {
        const std::vector<float> rows = rows_of(shape.layer, side, head, shape.tokens, shape.head_dim);
        std::vector<std::uint16_t> halves(rows.size());
        from_float(rows.data(), rows.size(), DType::F16, halves.data());
        const auto dim = static_cast<std::size_t>(shape.head_dim);
        if (first > 0) writer->write_exact(i, side, head, 0, first, halves.data());
        if (last > 0) writer->write_exact(i, side, head, first, last, halves.data() + static_cast<std::size_t>(first + encoded) * dim);
        if (encoded == 0) continue;
        const Codec codec = codec_for(side == Side::K ? spec.k : spec.v, shape.head_dim,
                                      tables == nullptr ? nullptr
                                      : side == Side::K ? &tables->k
                                                        : &tables->v);
        for (std::int64_t t = 0; t < encoded; t += step) {
          const std::int64_t n = std::min(step, encoded - t);
          Planes planes(codec, n);
          codec.encode(rows.data() + static_cast<std::size_t>(first + t) * dim, DType::F32, n, planes.out(),
                       head_transform(tables, side, head, first + t));
          writer->write(i, side, head, t, n, planes.in());
        }
      }
    }
  }
  writer->commit();
}

}  // namespace tq4::test
