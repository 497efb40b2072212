// 64 rows times a matrix on the tensor cores, by a warpgroup: a warp has 16 rows as fragments in registers, the matrix's image (image.h) is in
// shared memory. On sm_90a wgmma reads it there once for four warps; elsewhere ldmatrix and mma.sync do the same per warp.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"
#include "cuda/rows_ptx.cuh"
#include "cuda/tiles/image.h"
#include "cuda/wgmma.cuh"

namespace tq4::gpu {

/// What a lane (g = lane / 4, t = lane % 4) holds of 16 rows: a[s][0..3] = columns 16 s + 2 t of rows g and g + 8, columns 16 s + 8 + 2 t of both.
template <int D>
using RowFragments = std::uint32_t[D / 16][4];

/// sums[4 m + e] (row g) and sums[4 m + 2 + e] (row g + 8), columns column + 8 m + 2 t + e, += rows * image^T; `first`: = instead of +=. Columns: 64 or
/// 128 at a time. Between products_begin() and products_end() only; all of the warpgroup.
template <int D, int Columns, bool Bf16 = false>
__device__ __forceinline__ void add_columns(float (&sums)[Columns / 2], const RowFragments<D>& rows, std::uint32_t image, int column,
                                            bool first) {
  static_assert(Columns == 64 || Columns == 128);
  const std::uint32_t from = image + static_cast<std::uint32_t>(column * 128);
  if (warpgroup_products()) {
    const std::uint64_t operand = wgmma_rows(from);
#pragma unroll
    for (int s = 0; s < D / 16; ++s) {
      const std::uint64_t b = wgmma_further(operand, static_cast<std::uint32_t>(s / 4 * D * 128 + s % 4 * 32));
      if constexpr (Bf16) {
        wgmma_bf16_registers_rows(sums, rows[s], b, !(first && s == 0));
      } else {
        wgmma_registers_rows(sums, rows[s], b, !(first && s == 0));
      }
    }
    return;
  }
  if (first) {
#pragma unroll
    for (float& v : sums) v = 0.0f;
  }
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < Columns / 8; ++m) {
    float c[4] = {sums[4 * m], sums[4 * m + 1], sums[4 * m + 2], sums[4 * m + 3]};
#pragma unroll
    for (int s = 0; s < D / 16; s += 2) {
      unsigned b[4];
      const int chunk = 2 * (s % 4) + (lane >> 3), row = 8 * m + (lane & 7);
      ldmatrix_x4(b, from + static_cast<std::uint32_t>(s / 4 * D * 128 + row * 128 + ((chunk ^ (lane & 7)) << 4)));
      const auto product = [&](const std::uint32_t(&a)[4], unsigned b0, unsigned b1) {
        Bf16 ? mma_bf16(c, a[0], a[1], a[2], a[3], b0, b1) : mma(c, a[0], a[1], a[2], a[3], b0, b1);
      };
      product(rows[s], b[0], b[1]);
      product(rows[s + 1], b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[4 * m + i] = c[i];
  }
}
/// All columns of the result (D = 64 and 128).
template <int D, bool Bf16 = false>
__device__ __forceinline__ void add_product(float (&sums)[D / 2], const RowFragments<D>& rows, std::uint32_t image, bool first) {
  add_columns<D, D, Bf16>(sums, rows, image, 0, first);
}
/// The same of 64 rows in shared memory, laid out as image_byte(64, row, column) says: fp16 rows (Bf16: and an image of bf16) as they are. `held`: rows that
/// products read from registers, the caller's until products_end().
template <int D, bool Bf16 = false>
__device__ __forceinline__ void add_product(float (&sums)[D / 2], std::uint32_t rows, std::uint32_t image, bool first,
                                            RowFragments<D>& held) {
  if constexpr (D == 128) {
    if (warpgroup_products()) {
      const std::uint64_t a = wgmma_rows(rows), b = wgmma_rows(image);
#pragma unroll
      for (int s = 0; s < D / 16; ++s) {
        const std::uint64_t further_a = wgmma_further(a, static_cast<std::uint32_t>(s / 4 * 8192 + s % 4 * 32)),
                            further_b = wgmma_further(b, static_cast<std::uint32_t>(s / 4 * D * 128 + s % 4 * 32));
        Bf16 ? wgmma_bf16_rows_rows(sums, further_a, further_b, !(first && s == 0))
             : wgmma_rows_rows(sums, further_a, further_b, !(first && s == 0));
      }
      return;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) / 32 % 4;
#pragma unroll
  for (int s = 0; s < D / 16; ++s) {
    const int row = 16 * warp + (lane & 15), chunk = 2 * s + (lane >> 4);
    ldmatrix_x4(held[s], rows + static_cast<std::uint32_t>(image_byte(64, row, 8 * chunk)));
  }
  add_product<D, Bf16>(sums, held, image, first);
}
__device__ __forceinline__ void products_begin() { wgmma_begin(); }
/// Where work that is to run beside the products has branches, their group ends ahead of it: behind branches it takes an empty product to end it.
__device__ __forceinline__ void products_asked() { wgmma_commit(); }
__device__ __forceinline__ void products_wait() { wgmma_wait<0>(); }
__device__ __forceinline__ void products_end() {
  products_asked();
  products_wait();
}

/// Asks for one part of an image; there after finish_image() of the whole block, which synchronises.
template <int D>
__device__ __forceinline__ void begin_image(std::uint32_t to, const std::uint16_t* image, int thread, int threads) {
  const auto* from = reinterpret_cast<const unsigned char*>(image);
  for (int i = thread; i < image_part_bytes(D) / 16; i += threads) copy_async_16(to + static_cast<unsigned>(16 * i), from + 16 * i);
  copy_async_commit();
}
__device__ __forceinline__ void finish_image() {
  copy_async_wait<0>();
  fence_bulk_copies();
  __syncthreads();
}
/// `parts` parts of an image from global to shared memory, zeros behind them up to `all`; the whole block. It is there after finish_image().
template <int D>
__device__ inline void copy_image_begin(std::uint32_t to, const std::uint16_t* image, int parts, int all, int thread, int threads) {
  const auto* from = reinterpret_cast<const unsigned char*>(image);
  for (int i = parts * image_part_bytes(D) / 16 + thread; i < all * image_part_bytes(D) / 16; i += threads)
    sts128(to + static_cast<unsigned>(16 * i), 0.0f, 0.0f, 0.0f, 0.0f);
  for (int i = thread; i < parts * image_part_bytes(D) / 16; i += threads) copy_async_16(to + static_cast<unsigned>(16 * i), from + 16 * i);
  copy_async_commit();
}
template <int D>
__device__ inline void copy_image(std::uint32_t to, const std::uint16_t* image, int parts, int all, int thread, int threads) {
  copy_image_begin<D>(to, image, parts, all, thread, threads);
  finish_image();
}
/// Where in a block's dynamic shared memory (of image_shared_bytes) an image goes: wgmma wants 1024-byte alignment.
__device__ __forceinline__ std::uint32_t image_address(const void* dynamic_shared) {
  return (shared_address(dynamic_shared) + 1023u) & ~1023u;
}
__host__ __device__ constexpr std::size_t image_shared_bytes(int dim, int parts) {
  return static_cast<std::size_t>(parts * image_part_bytes(dim)) + 1024;
}

}  // namespace tq4::gpu
