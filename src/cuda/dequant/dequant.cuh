// What dequant.cu (planes) and dequant_pages.cu share: the block that turns encoded rows of one head into numbers.
#pragma once

#include "cuda/encode/row.cuh"
#include "cuda/transform.cuh"

namespace tq4::gpu {

constexpr int kDequantThreads = 128, kDequantRows = 16;

/// One encoded row: `byte(i)` is the address of byte i of its codes; in units (core/units.h) of the first byte of the group that would begin there.
struct RowIn {
  float scale, zero, residual_norm;
  const std::uint8_t* signs;
  bool split_groups;  ///< 8 codes may lie in two places
  bool nibbles_high;
  bool units;
};

/// Codes of one row to y [dim] in shared memory, by one warp; the same numbers as cpu/scalar_decode.cpp. `codes` [2 dim] is scratch.
template <class Byte>
__device__ inline void decode_row(const RowCodec& r, const RowTables& t, const RowIn& in, const Byte& byte, unsigned char* codes, float* y,
                                  int lane) {
  if (r.bits == 16) {
    for (int j = lane; j < 2 * r.dim; j += 32) codes[j] = *byte(j);
    __syncwarp();
    for (int j = lane; j < r.dim; j += 32) y[j] = __half2float(reinterpret_cast<const __half*>(codes)[j]);
    __syncwarp();
    return;
  }
  for (int g = lane; g < r.dim / 8; g += 32) {
    int2 place = group_place(r, g);
    if (in.nibbles_high) place = make_int2(4 * g, 4);
    unsigned long long bits = 0;
    if (in.units) {
      bits = get_unit_group(byte(place.x));
    } else if (in.split_groups) {
      for (int b = 0; b < place.y; ++b) bits |= static_cast<unsigned long long>(*byte(place.x + b)) << (8 * b);
    } else {
      bits = get_bytes(byte(place.x), place.y);
    }
    const unsigned code_mask = (1u << (g * 8 < r.outliers ? r.bits + 1 : r.bits)) - 1;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int shift = in.nibbles_high ? 4 * (k ^ 1) : place.y * k;
      codes[g * 8 + k] = static_cast<unsigned char>(static_cast<unsigned>(bits >> shift) & code_mask);
    }
  }
  __syncwarp();
  switch (static_cast<CodeKind>(r.kind)) {
    case CodeKind::Uniform:
      for (int j = lane; j < r.dim; j += 32) y[j] = __fmaf_rn(in.scale, static_cast<float>(codes[j]), in.zero);
      break;
    case CodeKind::Fp8:
      for (int j = lane; j < r.dim; j += 32) y[j] = fp8_value(r.fp8, codes[j]);
      break;
    default:
      centroids_of(r, t, codes, y, lane);
      for (int j = lane; j < r.dim; j += 32) y[j] = __fmul_rn(y[j], in.scale);
      if (r.has_signs) {  // y += sqrt(pi/2) / D * residual_norm * S^T sign
        const float gain = __fmul_rn(static_cast<float>(1.2533141373155002512 / r.dim), in.residual_norm);
        for (int j = lane; j < r.dim; j += 32) {
          float sum = 0.0f;
          for (int i = 0; i < r.dim; ++i) {
            const float s = r.t.qjl[i * r.dim + j];
            sum = (in.signs[i / 8] >> (i % 8) & 1) != 0 ? __fadd_rn(sum, s) : __fsub_rn(sum, s);
          }
          y[j] = __fmaf_rn(gain, sum, y[j]);
        }
      }
  }
  __syncwarp();
}

/// What planes (codes, scales, ...) and the codec that wrote them say of row `at`.
__device__ inline RowIn plane_row(const RowCodec& r, const EncodedIn& in, std::int64_t at, bool nibbles_high) {
  return {r.has_scale ? in.scale[at] : 1.0f,
          r.has_zero ? in.zero[at] : 0.0f,
          r.has_signs ? in.residual_norm[at] : 0.0f,
          r.has_signs ? in.signs + at * (r.dim / 8) : nullptr,
          false,
          nibbles_high,
          false};
}

/// A block's rows of planes to y [kDequantRows][dim] in shared memory, a warp a row. `row_of(r)` is the row's index in the planes, < 0 = none:
/// zeros. `codes` [warps][2 dim] is scratch. The caller synchronises before it reads y.
template <class RowOf>
__device__ inline void decode_plane_rows(const RowCodec& codec, const RowTables& tables, const EncodedIn& in, int row_bytes,
                                         bool nibbles_high, unsigned char* codes, float* y, const RowOf& row_of) {
  const int dim = codec.dim, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int r = warp; r < kDequantRows; r += kDequantThreads / 32) {
    float* row = y + r * dim;
    const std::int64_t at = row_of(r);
    if (at < 0) {
      for (int j = lane; j < dim; j += 32) row[j] = 0.0f;
      continue;
    }
    const std::uint8_t* from = in.codes + at * row_bytes;
    decode_row(
        codec, tables, plane_row(codec, in, at, nibbles_high), [&](int i) { return from + i; }, codes + warp * 2 * dim, row, lane);
  }
}

/// rows [kDequantRows][dim] in shared memory to the caller's, 8 coordinates a thread. `row_of(r)` gives the first element's index, < 0 = none.
template <class RowOf>
__device__ inline void write_rows(const float* rows, int dim, void* out, DType dtype, const RowOf& row_of) {
  const int groups = dim / 8;
  for (int i = threadIdx.x; i < kDequantRows * groups; i += kDequantThreads) {
    const int r = i / groups, g = i % groups;
    const std::int64_t at = row_of(r);
    if (at < 0) continue;
    const float* v = rows + r * dim + g * 8;
    if (dtype == DType::F32) {
      auto* to = static_cast<float*>(out) + at + g * 8;
      if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
        reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
        continue;
      }
    } else {
      auto* to = static_cast<unsigned short*>(out) + at + g * 8;
      if (reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        unsigned w[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (dtype == DType::F16) {
            const __half2 h = __floats2half2_rn(v[2 * k], v[2 * k + 1]);
            w[k] = *reinterpret_cast<const unsigned*>(&h);
          } else {
            w[k] = to_bf16_bits(v[2 * k]) | static_cast<unsigned>(to_bf16_bits(v[2 * k + 1])) << 16;
          }
        }
        *reinterpret_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
        continue;
      }
    }
    for (int k = 0; k < 8; ++k) store_element(out, dtype, at + g * 8 + k, v[k]);
  }
}

/// Shared memory of a dequant block: y [rows][D] fp32, x [rows][D] fp32, codes [warps][2 D] bytes, tables.
__host__ __device__ inline std::size_t dequant_shared(const RowCodec& r, int tables) {
  return static_cast<std::size_t>(kDequantRows * r.dim) * 8 + static_cast<std::size_t>(kDequantThreads / 32 * 2 * r.dim) +
         static_cast<std::size_t>(tables);
}

}  // namespace tq4::gpu
