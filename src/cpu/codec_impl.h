// What a Codec owns: the tables in the public types, and flat copies for the kernels. Private to codec.cpp and codec_run.cpp.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/kernels.h"
#include "tq4/codec.h"

namespace tq4 {

struct Codec::Impl {
  SideSpec spec;
  int dim = 0;
  Codebook codebook, outlier_codebook;
  Rotation rotation;
  PairTable pair_table;
  std::vector<float> qjl;

  // Storage behind the pointers of the two tables below.
  std::vector<float> centroids, boundaries, outlier_centroids, outlier_boundaries;
  std::vector<float> rotation_t, qjl_t;
  cpu::TransformTables transform;  ///< the codec's own rotation
  cpu::CodeTables codes;

  Impl() = default;
  Impl(const Impl&) = delete;  // the tables point into this object
  Impl& operator=(const Impl&) = delete;
};

}  // namespace tq4
