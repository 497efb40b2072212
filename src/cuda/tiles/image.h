// How a [D, D] matrix lies in device memory for the tensor cores: fp16, one or two parts (matrix = hi + lo), rows and columns in the order in
// which the lanes of a warp hold what is multiplied, 16-byte chunks swizzled over the banks as wgmma reads them. A block copies a part to
// shared memory as it is (product.cuh); small launches read fragments from global memory (encode/rotate.cuh). Host and device compile this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tq4/types.h"

namespace tq4::gpu {

/// Position p = 8 m + 2 t + e of a fragment's columns belongs to lane t of four. Which coordinate it is:
/// Chunks: lane t holds 8 coordinates of every 32 (16-byte loads and stores of fp16 rows); Quarters: lane t holds coordinates D/4 t to
/// D/4 (t + 1) (their codes are neighbours in memory); InOrder: position p is coordinate p (rows that lie in shared memory).
enum class LaneOrder { Chunks, Quarters, InOrder };
constexpr int lane_coordinate(LaneOrder order, int dim, int p) {
  if (order == LaneOrder::InOrder) return p;
  const int m = p / 8, t = p % 8 / 2, e = p % 2;
  return order == LaneOrder::Chunks ? 32 * (m / 4) + 8 * t + 2 * (m % 4) + e : dim / 4 * t + 2 * m + e;
}

/// Byte of element (row n, column k) in a part: columns in blocks of 64, a block's rows 128 bytes apart, chunk c of row n at c ^ (n & 7).
constexpr int image_byte(int dim, int n, int k) {
  const int within = n * 128 + k % 64 * 2;
  return k / 64 * dim * 128 + (within ^ (within >> 3 & 0x70));
}
constexpr int image_part_bytes(int dim) { return dim * dim * 2; }
/// Sizes that have an image.
constexpr bool has_image(int dim) { return dim == 64 || dim == 128 || dim == 256; }

/// The image of [heads, D, D] `matrix`, `parts` parts a head. unit_signs: of +-1 with the matrix's signs (Hadamard: exact in one part).
inline std::vector<std::uint16_t> matrix_image(const std::vector<float>& matrix, int heads, int dim, LaneOrder rows, LaneOrder columns,
                                               int parts, bool unit_signs) {
  const std::size_t square = static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim);
  std::vector<std::uint16_t> image(static_cast<std::size_t>(heads * parts) * square);
  for (int h = 0; h < heads; ++h) {
    const float* m = matrix.data() + static_cast<std::size_t>(h) * square;
    std::uint16_t* to = image.data() + static_cast<std::size_t>(h * parts) * square;
    for (int n = 0; n < dim; ++n) {
      for (int k = 0; k < dim; ++k) {
        const float v = m[lane_coordinate(rows, dim, n) * dim + lane_coordinate(columns, dim, k)];
        const std::size_t at = static_cast<std::size_t>(image_byte(dim, n, k)) / 2;
        const std::uint16_t hi = float_to_half(unit_signs ? (v < 0.0f ? -1.0f : 1.0f) : v);
        to[at] = hi;
        if (parts > 1) to[square + at] = float_to_half(v - half_to_float(hi));
      }
    }
  }
  return image;
}

/// An image of two fp16 parts in two of bf16: 16 of its 22 bits, 2^-18 of an element.
inline std::vector<std::uint16_t> bf16_image(const std::vector<std::uint16_t>& image, int dim) {
  const std::size_t square = static_cast<std::size_t>(dim) * static_cast<std::size_t>(dim);
  std::vector<std::uint16_t> out(image.size());
  for (std::size_t part = 0; part < image.size(); part += 2 * square) {
    for (std::size_t i = part; i < part + square; ++i) {
      const float v = half_to_float(image[i]) + half_to_float(image[square + i]);
      out[i] = float_to_bf16(v);
      out[square + i] = float_to_bf16(v - bf16_to_float(out[i]));
    }
  }
  return out;
}

}  // namespace tq4::gpu
