// What the kernels that turn many rows at once are launched with, whatever becomes of the codes: sides, rows, and a sink, which knows where a row's bytes
// go (planes or pages).
#pragma once

#include "cuda/encode/code_table.cuh"
#include "cuda/encode/peer_norm.cuh"
#include "cuda/encode/unrotated.cuh"
#include "cuda/launch.cuh"

namespace tq4::gpu {

struct RotateSide {
  RowCodec codec;
  const void* x;
  std::int64_t token_stride, head_stride;  ///< elements
  int parts;                               ///< of the matrix that are used
};
template <class Sink>
struct RotateArgs {
  RotateSide side[2];
  Sink sink;
  int dtype;
  std::int64_t n;
  int heads;
  int by_head;                                  ///< matrices are per head: a block works for one head
  unsigned heads_inverse = 0, heads_shift = 0;  ///< row / heads = row * heads_inverse >> (31 + heads_shift) for rows below 2^31
  unsigned blocked_rows = 0;  ///< pages: so many rows, a multiple of 16 heads, are 16 tokens of a head, the same of the next head, ..
};

/// Row `row` of a block's rows is this token of this head.
struct RowPlace {
  std::int64_t token;
  int head;
};
template <bool Plain = false, class Sink>
__device__ __forceinline__ RowPlace row_place(const RotateArgs<Sink>& a, unsigned row) {
  if constexpr (Plain && Sink::kSides == 1) return {row, 0};
  if (a.by_head) return {row, static_cast<int>(blockIdx.y)};
  if constexpr (Sink::kSides == 2) {
    if (row < a.blocked_rows) {
      const unsigned block = __umulhi(2 * (row >> 4), a.heads_inverse) >> a.heads_shift;
      return {16 * block + (row & 15), static_cast<int>((row >> 4) - block * static_cast<unsigned>(a.heads))};
    }
  }
  const unsigned token = __umulhi(2 * row, a.heads_inverse) >> a.heads_shift;
  return {token, static_cast<int>(row - token * static_cast<unsigned>(a.heads))};
}
template <int D, bool Plain, class Sink>
__device__ __forceinline__ std::int64_t row_offset(const RotateArgs<Sink>&, const RotateSide& side, const RowPlace& place) {
  if constexpr (Plain && Sink::kSides == 1) return place.token * D;
  return place.token * side.token_stride + place.head * side.head_stride;
}
/// What the sink fetches for it.
template <bool Plain, class Sink>
__device__ __forceinline__ std::int64_t slot_of(const RotateArgs<Sink>& a, const RowPlace& place) {
  if constexpr (Plain && Sink::kSides == 1) return place.token;
  return a.sink.fetch(place);
}
template <class Sink>
__device__ __forceinline__ unsigned row_count(const RotateArgs<Sink>& a) {
  return static_cast<unsigned>(a.by_head ? a.n : a.n * a.heads);
}
/// Tiles of a warp or warpgroup, the order-th of `many` of a block: first, first + stride, then one a round of gridDim.x * many. In a chain of launches that
/// begin early the last block takes the multiprocessor that was free last, and fills its tables when the others have theirs: it takes no tile in the first
/// round if `spared` is `many` (0: all blocks alike).
struct WarpTiles {
  unsigned first, stride;
};
__device__ __forceinline__ WarpTiles warp_tiles(unsigned order, unsigned many, unsigned spared) {
  const unsigned round = gridDim.x * many, place = order * gridDim.x + blockIdx.x;
  if (spared == 0) return {place, round};
  if (blockIdx.x + 1 == gridDim.x) return {place + round - spared, round};
  return {place - order, round - spared + order};
}
/// An image of t, or that of the block's head.
__device__ __forceinline__ const std::uint16_t* image_of(const SideTables& t, const std::uint16_t* image, int dim) {
  return image + (t.per_head ? static_cast<std::int64_t>(blockIdx.y) * t.image_parts * dim * dim : 0);
}
__device__ __forceinline__ const float* centre_of(const SideTables& t, int dim, int head) {
  return t.centre ? t.centre + static_cast<std::int64_t>(head) * dim : nullptr;
}

/// What most launches are, and kernels of many rows are compiled for: fp16 rows (planes: one behind the other), not centred, no signs; Mse of 4 bits with
/// least-squares scales in fp16. Such a kernel takes plain_codec() for its codec.
__device__ __host__ __forceinline__ RowCodec plain_codec(RowCodec r, int dim) {
  r.kind = static_cast<int>(CodeKind::Mse);
  r.dim = dim;
  r.bits = 4;
  r.code_bytes = dim / 2;
  r.scale_rule = static_cast<int>(ScaleRule::LeastSquares);
  r.scale_f16 = r.has_scale = 1;
  r.norm_correction = r.has_zero = 0;
  return r;
}
template <class Sink>
bool is_plain(const RotateArgs<Sink>& a, const RotateSide& side) {
  const RowCodec& r = side.codec;
  const RowCodec p = plain_codec(r, r.dim);
  return static_cast<DType>(a.dtype) == DType::F16 && r.kind == p.kind && r.bits == p.bits && r.code_bytes == p.code_bytes &&
         r.scale_rule == p.scale_rule && r.scale_f16 == p.scale_f16 && r.has_scale == p.has_scale &&
         r.norm_correction == p.norm_correction && r.has_zero == p.has_zero && !r.t.identity && r.t.centre == nullptr &&
         r.t.hadamard_signs == nullptr && (Sink::kSides == 2 || (a.heads == 1 && !a.by_head && side.token_stride == r.dim));
}

}  // namespace tq4::gpu
