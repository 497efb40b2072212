// Where the rows of a paged cache lie and where dequant_pages puts them: the `Rows` of the kernels with a matrix (tiles.cuh, hadamard.cuh), and rows that
// need none: fp8 and uniform codes, and any scalar codes left in rotated space. What a row is asked for stays as it lies in memory until it is used, so
// that a kernel works on one row while the next is on its way.
#pragma once

#include <algorithm>

#include "cuda/dequant/tiles.cuh"
#include "cuda/prefill_attention/tile_order.cuh"

namespace tq4::gpu {

/// How the codes of a side are read, which their alignment decides: 16-bit pieces (vLLM's slots, and all but 4 bits), words, 16 bytes.
enum class PageAccess : int { Halves, Words, Wide };

struct PageSide {
  InverseSide inverse;
  PageAccess access;
  int direct;      ///< no matrix turns the rows
  int group_jump;  ///< bytes from piece to piece: a lane's D/4 coordinates are two pieces of D/8
  void* out;       ///< [num_seqs, num_kv_heads, max_seq_len, D]
};

/// Rows of one sequence and kv head (blockIdx.y) and side (blockIdx.z).
struct PageRows {
  PageSide sides[2];
  CacheView cache;
  int dtype;
  const std::int32_t* block_table;
  std::int64_t block_table_stride;
  const std::int32_t* seq_lens;
  std::int64_t max_seq_len;
  int tiled;  ///< rows go to tiles (inverse_tiles only)
  unsigned zero = 0;

  template <int G>
  static constexpr int kRawWords = 2 * G;
  __device__ __forceinline__ bool direct() const { return page_side().direct != 0; }
  template <int D, int Threads>
  __device__ void direct_rows() const;
  __device__ __forceinline__ const PageSide& page_side() const { return sides[blockIdx.z]; }
  __device__ __forceinline__ const InverseSide& side() const { return page_side().inverse; }
  __device__ __forceinline__ const PartView& part() const { return blockIdx.z == 0 ? cache.k : cache.v; }
  __device__ __forceinline__ void* out() const { return page_side().out; }
  __device__ __forceinline__ int sequence() const { return static_cast<int>(blockIdx.y) / cache.num_kv_heads; }
  __device__ __forceinline__ int image_head() const { return static_cast<int>(blockIdx.y) % cache.num_kv_heads; }
  __device__ __forceinline__ unsigned count() const {
    return static_cast<unsigned>(max(std::int64_t{0}, min(static_cast<std::int64_t>(seq_lens[sequence()]), max_seq_len)));
  }

  /// The row's codes (native V: of its first piece), and its scale and zero.
  struct Place {
    const std::uint8_t *codes, *scale, *zero;
  };
  __device__ __forceinline__ Place place(unsigned i) const {
    const unsigned block = cache.block_shift >= 0 ? i >> cache.block_shift : i / static_cast<unsigned>(cache.block_size);
    const int head = image_head(), offset = static_cast<int>(i - block * static_cast<unsigned>(cache.block_size));
    const TokenRef ref = token_ref(cache, __ldg(block_table + sequence() * block_table_stride + block), offset, head);
    const PartView& p = part();
    const std::uint8_t* codes =
        cache.native
            ? ref.base + p.codes + (blockIdx.z == 0 ? ref.t * side().codec.code_bytes : ((ref.t >> 3) * 64 + (ref.t & 7)) * cache.v_piece)
            : codes_row(p, ref, head);
    return {codes, scale_ptr(cache, p, ref, head), zero_ptr(cache, p, ref, head)};
  }
  __device__ __forceinline__ std::int64_t row_out(unsigned i) const {
    return static_cast<std::int64_t>(blockIdx.y) * max_seq_len * cache.head_dim +
           (tiled ? tile_row(i, cache.head_dim) : static_cast<std::int64_t>(i) * cache.head_dim);
  }
  __device__ __forceinline__ std::int64_t chunk(std::int64_t out, int c) const { return tiled ? tile_chunk(out, c) : out + 8 * c; }
  __device__ __forceinline__ unsigned raw_scale(const std::uint8_t* p) const {
    return part().scale_f32 ? __ldg(reinterpret_cast<const unsigned*>(p)) : __ldg(reinterpret_cast<const unsigned short*>(p));
  }
  __device__ __forceinline__ float scale_value(unsigned raw) const {
    return part().scale_f32 ? __uint_as_float(raw) : __half2float(__ushort_as_half(static_cast<unsigned short>(raw)));
  }

  __device__ __forceinline__ InverseRow row(unsigned i) const {
    const Place at = place(i);
    return {at.codes, 0, image_head(), __uint_as_float(raw_scale(at.scale)), row_out(i)};
  }
  __device__ __forceinline__ float scale(const InverseRow& row) const { return scale_value(__float_as_uint(row.scale)); }
  /// A group of 8 codes at p as it lies there: `low`, and `high` for what 16 bits do not hold.
  __device__ __forceinline__ void fetch_group(unsigned& low, unsigned& high, const std::uint8_t* p, int bits) const {
    if (page_side().access != PageAccess::Halves) {
      low = __ldg(reinterpret_cast<const unsigned*>(p)), high = 0;
      return;
    }
    const auto* half = reinterpret_cast<const unsigned short*>(p - (bits == 3 ? reinterpret_cast<std::uintptr_t>(p) & 1 : 0));
    low = bits == 1 ? __ldg(p) : __ldg(half);
    high = bits > 2 ? __ldg(half + 1) : 0u;
  }
  __device__ __forceinline__ unsigned whole_group(unsigned low, unsigned high, bool odd) const {
    if (page_side().access != PageAccess::Halves) return low;
    const unsigned w = low | high << 16;
    return odd ? w >> 8 : w;
  }
  /// A lane's G groups; whether the first lies at an odd address is in the last bit of row.token.
  template <int Words>
  __device__ __forceinline__ void fetch(unsigned (&raw)[Words], InverseRow& row, int t) const {
    constexpr int G = Words / 2;
    const int bits = side().row_bits, jump = page_side().group_jump;
    const std::uint8_t* p = row.codes + 2 * t * jump;
    row.token = static_cast<int>(reinterpret_cast<std::uintptr_t>(p) & 1);
    if (page_side().access == PageAccess::Wide) {
#pragma unroll
      for (int g = 0; g < G; ++g) raw[G + g] = 0;
      if constexpr (G == 2) {
        const uint2 v = __ldg(reinterpret_cast<const uint2*>(p));
        raw[0] = v.x, raw[1] = v.y;
      } else {
#pragma unroll
        for (int g = 0; g < G; g += 4) {
          const uint4 v = __ldg(reinterpret_cast<const uint4*>(p) + g / 4);
          raw[g] = v.x, raw[g + 1] = v.y, raw[g + 2] = v.z, raw[g + 3] = v.w;
        }
      }
      return;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) fetch_group(raw[g], raw[G + g], p + g / (G / 2) * jump + g % (G / 2) * bits, bits);
  }
  template <int G>
  __device__ __forceinline__ void spread(unsigned (&w)[G], const unsigned (&raw)[2 * G], const InverseRow& row) const {
    const bool threes = side().row_bits == 3;
    const int odd_jump = page_side().group_jump & 1;
#pragma unroll
    for (int g = 0; g < G; ++g)
      w[g] = whole_group(raw[g], raw[G + g], threes && ((row.token + g / (G / 2) * odd_jump + g % (G / 2)) & 1) != 0);
  }
};

/// sum c^2 over a row of centroids as the CPU adds: 16 partial sums of every 16th, then a tree. D / 8 lanes, `chunk` counts them, each with a word of 8
/// codes; the same to all.
template <int D>
__device__ __forceinline__ float squares_in_turn(unsigned word, float table, int bits, int chunk) {
  constexpr int kLanes = D / 8;
  const int k = D == 64 ? chunk : chunk / 2 % 8;  // a lane's partial sum: k + 8 (chunk % 2), with few lanes both
  float partial[2] = {};
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
#pragma unroll
    for (int odd = 0; odd < (D == 64 ? 2 : 1); ++odd) {
      const unsigned other = __shfl_sync(~0u, word, 2 * i + (D == 64 ? odd : chunk % 2), kLanes);
      const float c = __shfl_sync(~0u, table, static_cast<int>(other >> (bits * k)));
      partial[odd] = __fmaf_rn(c, c, partial[odd]);
    }
  }
  float sum = D == 64 ? __fadd_rn(partial[0], partial[1]) : __fadd_rn(partial[0], __shfl_xor_sync(~0u, partial[0], 1));
  constexpr int kFour = D == 64 ? 4 : 8;
#pragma unroll
  for (int o = kFour; o >= kFour / 4; o /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, o));
  return sum;
}

/// Rows that no matrix turns, the CPU's numbers: D / 8 lanes a row, 8 coordinates a lane, kBatch rows of each in flight.
template <int D, int Threads>
__device__ __forceinline__ void PageRows::direct_rows() const {
  constexpr int kLanes = D / 8, kRows = 32 / kLanes, kBatch = 4;
  const PageSide& side = page_side();
  const RowCodec& codec = side.inverse.codec;
  const auto kind = static_cast<CodeKind>(codec.kind);
  const int lane = static_cast<int>(threadIdx.x) & 31, chunk = lane % kLanes, bits = side.inverse.row_bits;
  const int offset = chunk / (kLanes / 8) * side.group_jump + chunk % (kLanes / 8) * bits;
  const float table = kind == CodeKind::Mse ? __ldg(codec.t.cells + 64 + lane) : 0.0f;
  const unsigned rows = count(), step = gridDim.x * (Threads / 32) * kRows * kBatch;
  for (unsigned first = (threadIdx.x / 32 * gridDim.x + blockIdx.x) * kRows * kBatch; first < rows; first += step) {
    unsigned raw[kBatch][2], more[kBatch][2], scale[kBatch], zero[kBatch];
    bool odd[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const auto at = place(min(first + static_cast<unsigned>(b * kRows + lane / kLanes), rows - 1));
      const std::uint8_t* p = at.codes + offset;
      odd[b] = bits == 3 && (reinterpret_cast<std::uintptr_t>(p) & 1) != 0;
      fetch_group(raw[b][0], raw[b][1], p, bits);
      if (bits == 8) fetch_group(more[b][0], more[b][1], p + 4, bits);
      if (codec.has_scale) scale[b] = raw_scale(at.scale);
      if (codec.has_zero) zero[b] = __ldg(reinterpret_cast<const unsigned short*>(at.zero));
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const unsigned row = first + static_cast<unsigned>(b * kRows + lane / kLanes);
      unsigned low = whole_group(raw[b][0], raw[b][1], odd[b]);
      const unsigned high = bits == 8 ? whole_group(more[b][0], more[b][1], false) : 0;
      float v[8];
      if (kind == CodeKind::Fp8) {
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
      } else if (kind == CodeKind::Uniform) {
        const float s = scale_value(scale[b]), z = __half2float(__ushort_as_half(static_cast<unsigned short>(zero[b])));
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const unsigned code = bits == 8 ? (k < 4 ? low : high) >> (8 * (k % 4)) & 0xffu : low >> (bits * k) & ((1u << bits) - 1);
          v[k] = __fmaf_rn(s, __fsub_rn(__uint_as_float(0x4b000000u | code), 8388608.0f), z);
        }
      } else {
        if (side.inverse.nibbles_high) low = (low >> 4 & 0x0f0f0f0fu) | (low & 0x0f0f0f0fu) << 4;
        const float s = scale_value(scale[b]);
        float inverse = 1.0f;
        if (codec.norm_correction) inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(squares_in_turn<D>(low, table, bits, chunk), 1e-16f)));
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = __fmul_rn(__fmul_rn(__shfl_sync(~0u, table, static_cast<int>(low >> (bits * k))), inverse), s);
      }
      if (row < rows) put_eight(out(), static_cast<DType>(dtype), row_out(row) + 8 * chunk, v);
    }
  }
}

constexpr int kDirectThreads = 256;
/// Where no side is turned.
template <int D>
__global__ void __launch_bounds__(kDirectThreads, 4) direct_pages(const __grid_constant__ PageRows a) {
  wait_for_previous_kernels();
  launch_dependents();
  a.direct_rows<D, kDirectThreads>();
}

/// `rows` rows for each of `lines` sequences and heads, both sides.
inline void launch_direct(const char* what, const PageRows& a, std::int64_t rows, unsigned lines, int dim, const DeviceInfo& device,
                          cudaStream_t stream) {
  const std::int64_t block_rows = kDirectThreads / (dim / 8) * 4, needed = (rows + block_rows - 1) / block_rows,
                     most = std::max<std::int64_t>(1, 16 * device.sm_count / static_cast<std::int64_t>(2 * lines));
  const dim3 grid(static_cast<unsigned>(std::min(needed, most)), lines, 2);
  const auto launch = [&](auto* kernel) {
    launch_kernel_early_if(device.compute_major >= 9, what, {grid, kDirectThreads, 0, stream}, kernel, a);
  };
  dim == 64 ? launch(direct_pages<64>) : dim == 128 ? launch(direct_pages<128>) : launch(direct_pages<256>);
}

/// Whether a side's rows are made so: scalar codes of at most 4 bits, uniform and fp8 codes; D = 64, 128, 256; `out` is where they go.
inline bool direct_serves(const RowCodec& r, bool rotated, const void* out) {
  const auto kind = static_cast<CodeKind>(r.kind);
  const bool same = rotated || (r.t.identity && !r.t.centre && !r.t.rope_mu);
  return same && has_image(r.dim) && reinterpret_cast<std::uintptr_t>(out) % 16 == 0 &&
         (kind == CodeKind::Fp8 || (kind == CodeKind::Uniform && (r.bits <= 4 || r.bits == 8)) ||
          (kind == CodeKind::Mse && r.t.cells && !r.t.pair_points));
}

/// The side of `cache` whose codes take `bits` bits in a row.
inline PageSide page_side(const CacheView& cache, const PartView& part, bool key, const InverseSide& inverse, bool direct, void* out) {
  PageSide side{inverse, PageAccess::Halves, direct, inverse.codec.dim / 8 * inverse.row_bits / 8, out};
  const int bits = inverse.row_bits, piece = side.group_jump;
  if (cache.native && !key) side.group_jump = 8 * piece;
  // Every row's first byte, and every lane's.
  std::int64_t places = reinterpret_cast<std::intptr_t>(cache.data) | cache.block_stride | part.codes;
  places |= cache.native ? cache.tile_bytes | (key ? inverse.codec.code_bytes : piece) : cache.token_stride | part.codes_head;
  if (bits == 4 || bits == 8) {
    const int lane_bytes = inverse.codec.dim / 8;  // 4 bits
    if (places % 4 == 0) side.access = PageAccess::Words;
    if (!direct && bits == 4 && side.group_jump == piece && places % std::min(16, lane_bytes) == 0) side.access = PageAccess::Wide;
  }
  return side;
}

}  // namespace tq4::gpu
