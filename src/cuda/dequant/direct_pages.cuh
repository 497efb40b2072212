// Rows of pages that no matrix turns, the CPU's numbers: fp8 and uniform codes, and scalar codes left in rotated space. D / 8 neighbouring lanes have a row,
// 8 coordinates each; a warp's batch of rows lies in one page, so that its place is found once.
#pragma once

#include "cuda/dequant/page_rows.cuh"

namespace tq4::gpu {

/// sum c^2 over a row of centroids as the CPU adds: 16 partial sums of every 16th, then a tree. D / 8 lanes, `chunk` counts them, each with a word of 8
/// codes; the same to all.
template <int D, int Bits>
__device__ __forceinline__ float squares_in_turn(unsigned word, float table, int chunk) {
  constexpr int kLanes = D / 8;
  const int shift = Bits * (D == 64 ? chunk : chunk / 2 % 8);  // a lane's partial sum: that + 8 (chunk % 2), with few lanes both
  float partial[2] = {};
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
#pragma unroll
    for (int odd = 0; odd < (D == 64 ? 2 : 1); ++odd) {
      const unsigned other = __shfl_sync(~0u, word, 2 * i + (D == 64 ? odd : chunk % 2), kLanes);
      const float c = __shfl_sync(~0u, table, static_cast<int>(other >> shift));
      partial[odd] = __fmaf_rn(c, c, partial[odd]);
    }
  }
  float sum = D == 64 ? __fadd_rn(partial[0], partial[1]) : __fadd_rn(partial[0], __shfl_xor_sync(~0u, partial[0], 1));
  constexpr int kFour = D == 64 ? 4 : 8;
#pragma unroll
  for (int o = kFour; o >= kFour / 4; o /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, o));
  return sum;
}

constexpr int kDirectThreads = 256, kDirectBatch = 4;
template <int D>
constexpr int kDirectRows = 32 / (D / 8) * kDirectBatch;  ///< of a warp's batch: 16 at most

/// Bits a code takes in a row; words: they lie at multiples of 4 bytes.
template <int D, CodeKind Kind, int Bits, bool Words>
__device__ __forceinline__ void direct_rows(const PageRows& a) {
  constexpr int kLanes = D / 8, kRows = 32 / kLanes;
  const PageSide& side = a.page_side();
  const RowCodec& codec = side.inverse.codec;
  const int lane = static_cast<int>(threadIdx.x) & 31, chunk = lane % kLanes, sub = lane / kLanes;
  const float table = Kind == CodeKind::Mse ? __ldg(codec.t.cells + 64 + lane) : 0.0f;
  const bool swap = side.inverse.nibbles_high != 0, corrected = Kind == CodeKind::Mse && codec.norm_correction != 0;
  const std::int64_t head = a.image_head();
  const bool units = Bits == 3 && side.access == PageAccess::Units;
  const std::uint8_t* codes_at = a.data + side.codes.first + head * side.codes.head +
                                 (units ? side.unit_group(D, chunk) : chunk / (kLanes / 8) * side.group_jump + chunk % (kLanes / 8) * Bits);
  const std::uint8_t *scale_at = a.data + side.scale.first + head * side.scale.head,
                     *zero_at = a.data + side.zero.first + head * side.zero.head;
  const std::int64_t out = a.line() * a.max_seq_len * D + 8 * chunk;
  const unsigned rows = a.count(), step = gridDim.x * (kDirectThreads / 32) * kDirectRows<D>;
  for (unsigned first = (threadIdx.x / 32 * gridDim.x + blockIdx.x) * kDirectRows<D>; first < rows; first += step) {
    const PageRows::Place at = a.place(first);
    unsigned raw[kDirectBatch][4], scale[kDirectBatch], zero[kDirectBatch];
    bool odd[kDirectBatch];
#pragma unroll
    for (int b = 0; b < kDirectBatch; ++b) {
      const int offset = at.offset + b * kRows + sub;  // of rows past the last one, too: their page has a place for them
      const std::uint8_t* p = codes_at + at.page + side.codes.token(offset);
      odd[b] = Bits == 3 && !units && (reinterpret_cast<std::uintptr_t>(p) & 1) != 0;
      const auto* half = reinterpret_cast<const unsigned short*>(p - (odd[b] ? 1 : 0));
      if constexpr (Words) {
        raw[b][0] = __ldg(reinterpret_cast<const unsigned*>(p));
        if constexpr (Bits == 8) raw[b][1] = __ldg(reinterpret_cast<const unsigned*>(p) + 1);
      } else if (units) {
#pragma unroll
        for (int i = 0; i < 3; ++i) raw[b][i] = __ldg(p + 4 * i);
      } else {
#pragma unroll
        for (int i = 0; i < (Bits + 1) / 2; ++i) raw[b][i] = __ldg(half + i);
      }
      if constexpr (Kind != CodeKind::Fp8) scale[b] = a.raw_scale(scale_at + at.page + side.scale.token(offset));
      if constexpr (Kind == CodeKind::Uniform)
        zero[b] = __ldg(reinterpret_cast<const unsigned short*>(zero_at + at.page + side.zero.token(offset)));
    }
#pragma unroll
    for (int b = 0; b < kDirectBatch; ++b) {
      const unsigned row = first + static_cast<unsigned>(b * kRows + sub);
      unsigned low = raw[b][0], high = 0;
      if constexpr (!Words) {
        if constexpr (Bits > 2) low |= raw[b][1] << 16;
        if constexpr (Bits == 8) high = raw[b][2] | raw[b][3] << 16;
        if (odd[b]) low >>= 8;
        if (units) low = core::group_from_unit(raw[b][0] | raw[b][1] << 8 | raw[b][2] << 16);
      } else if constexpr (Bits == 8) {
        high = raw[b][1];
      }
      float v[8];
      if constexpr (Kind == CodeKind::Fp8) {
        if (converts_to_e4m3() && codec.fp8 == static_cast<int>(Fp8Kind::E4M3)) {
#pragma unroll
          for (int k = 0; k < 8; k += 2) {
            const std::uint32_t two = e4m3x2_to_half2(static_cast<std::uint16_t>((k < 4 ? low : high) >> (8 * (k % 4))));
            const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&two));
            v[k] = f.x, v[k + 1] = f.y;
          }
        } else {
#pragma unroll
          for (int k = 0; k < 8; ++k) v[k] = fp8_value(codec.fp8, (k < 4 ? low : high) >> (8 * (k % 4)) & 0xffu);
        }
      } else if constexpr (Kind == CodeKind::Uniform) {
        const float s = a.scale_value(scale[b]), z = __half2float(__ushort_as_half(static_cast<unsigned short>(zero[b])));
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const unsigned code = (Bits == 8 && k >= 4 ? high : low) >> (Bits == 8 ? 8 * (k % 4) : Bits * k) & ((1u << Bits) - 1);
          v[k] = __fmaf_rn(s, __fsub_rn(__uint_as_float(0x4b000000u | code), 8388608.0f), z);
        }
      } else {
        if (Bits == 4 && swap) low = (low >> 4 & 0x0f0f0f0fu) | (low & 0x0f0f0f0fu) << 4;
        const float s = a.scale_value(scale[b]);
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = __shfl_sync(~0u, table, static_cast<int>(low >> (Bits * k)));
        if (corrected) {
          const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(squares_in_turn<D, Bits>(low, table, chunk), 1e-16f)));
#pragma unroll
          for (float& f : v) f = __fmul_rn(f, inverse);
        }
#pragma unroll
        for (float& f : v) f = __fmul_rn(f, s);
      }
      if (row < rows) put_eight(side.out, static_cast<DType>(a.dtype), out + static_cast<std::int64_t>(row) * D, v);
    }
  }
}

template <int D, CodeKind Kind, int Bits>
__device__ __forceinline__ void direct_rows_of(const PageRows& a) {
  if (Bits % 4 == 0 && a.page_side().access != PageAccess::Halves) {
    direct_rows<D, Kind, Bits, Bits % 4 == 0>(a);
  } else {
    direct_rows<D, Kind, Bits, false>(a);
  }
}
template <int D>
__global__ void __launch_bounds__(kDirectThreads, 4) direct_pages(const __grid_constant__ PageRows a) {
  wait_for_previous_kernels();
  launch_dependents();
  const int bits = a.side().row_bits;
  if (a.side().codec.kind == static_cast<int>(CodeKind::Fp8)) {
    direct_rows_of<D, CodeKind::Fp8, 8>(a);
  } else if (a.side().codec.kind == static_cast<int>(CodeKind::Uniform)) {
    bits == 2   ? direct_rows_of<D, CodeKind::Uniform, 2>(a)
    : bits == 3 ? direct_rows_of<D, CodeKind::Uniform, 3>(a)
    : bits == 4 ? direct_rows_of<D, CodeKind::Uniform, 4>(a)
                : direct_rows_of<D, CodeKind::Uniform, 8>(a);
  } else {
    bits == 2   ? direct_rows_of<D, CodeKind::Mse, 2>(a)
    : bits == 3 ? direct_rows_of<D, CodeKind::Mse, 3>(a)
                : direct_rows_of<D, CodeKind::Mse, 4>(a);
  }
}

/// Whether a side's rows are made so: scalar codes and uniform ones of 2 to 4 bits, uniform ones of 8, fp8; D = 64, 128, 256; pages of a multiple of 16
/// tokens. `out` is where they go.
inline bool direct_serves(const RowCodec& r, const CacheView& cache, bool rotated, const void* out) {
  const auto kind = static_cast<CodeKind>(r.kind);
  const bool same = rotated || (r.t.identity && !r.t.centre && !r.t.rope_mu), few = r.bits >= 2 && r.bits <= 4;
  return same && has_image(r.dim) && cache.block_size % 16 == 0 && reinterpret_cast<std::uintptr_t>(out) % 16 == 0 &&
         (kind == CodeKind::Fp8 || (kind == CodeKind::Uniform && (few || r.bits == 8)) ||
          (kind == CodeKind::Mse && few && r.t.cells && !r.t.pair_points));
}

/// `rows` rows for each of grid_y heads, grid_z sequences and sides.
inline void launch_direct(const char* what, const PageRows& a, std::int64_t rows, unsigned grid_y, unsigned grid_z, int dim,
                          const DeviceInfo& device, cudaStream_t stream) {
  const std::int64_t block_rows = kDirectThreads / (dim / 8) * kDirectBatch, needed = (rows + block_rows - 1) / block_rows,
                     most = std::max<std::int64_t>(1, 16 * device.sm_count / static_cast<std::int64_t>(grid_y * grid_z));
  const dim3 grid(static_cast<unsigned>(std::min(needed, most)), grid_y, grid_z);
  const auto launch = [&](auto* kernel) {
    launch_kernel_early_if(launches_early(device), what, {grid, kDirectThreads, 0, stream}, kernel, a);
  };
  dim == 64 ? launch(direct_pages<64>) : dim == 128 ? launch(direct_pages<128>) : launch(direct_pages<256>);
}

}  // namespace tq4::gpu
