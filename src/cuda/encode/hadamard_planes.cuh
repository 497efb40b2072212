// encode of many plain rows (is_plain()) of planes turned by a Hadamard matrix: tiles of 8 rows that lie one behind the other come to shared memory by
// cp.async while those before are coded, a warp has a ring of its own. What hadamard.cuh does with other rows, bound by instructions here too, products most of
// all: additions take the place of those that only add, what lanes know of all rows stays in registers, scales are made for several tiles at once. A launch's
// first tiles are asked for from the second-level cache's side before the kernels ahead have ended.
//
// Rows of odd number have their chunks 2 i and 2 i + 1 the other way round, so that lanes of neighbouring rows read all banks. A chunk's number is
// part of a coordinate's, and the matrix turns that exchange into a sign: sums of chunks 2 i + 1 are minus what they should be in such rows
// (`turned`).
#pragma once

#include "cuda/encode/rotate_args.cuh"
#include "cuda/rows_ptx.cuh"
#include "cuda/tiles/hadamard.cuh"

namespace tq4::gpu {

constexpr int kHadamardRows = 8;  ///< a warp's
/// The first coordinate of chunk c of 8: a lane has two that are neighbours, four lanes 64 coordinates. Which bits of a coordinate number lanes and which
/// chunks is free (tiles/hadamard.cuh).
__device__ __forceinline__ constexpr int pair_chunk(int t, int c) { return 8 * (c % 2) + 16 * t + c / 2 * 64; }

/// Fragments go through memory (1,024 bytes) and back: those that are equal must not become one register, which would be copied before each product.
__device__ __forceinline__ uint4* kept_fragments(void* memory) {
  return reinterpret_cast<uint4*>(static_cast<unsigned char*>(memory) + kCodeTableBytes);
}
__device__ __forceinline__ void keep_fragments(const HadamardFragments& f, uint4* kept, int thread) {
  if (thread >= 32) return;
  kept[thread] = make_uint4(f.b[0][0][0], f.b[0][0][1], f.b[0][1][0], f.b[0][1][1]);
  kept[32 + thread] = make_uint4(f.b[1][0][0], f.b[1][0][1], f.b[1][1][0], f.b[1][1][1]);
}
__device__ __forceinline__ void take_fragments(HadamardFragments& f, const uint4* kept, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) lds64(shared_address(kept + 32 * (i / 2) + lane) + 8 * (i % 2), f.b[i / 2][i % 2]);
}

/// Sums over four lanes of what each has of N tiles: lane t gets that of tile t % N.
__device__ __forceinline__ float sum_tiles(const float (&v)[2], int t) { return sum_two(v[0], v[1], (t & 1) != 0); }
__device__ __forceinline__ float sum_tiles(const float (&v)[4], int t) {
  const bool odd = (t & 1) != 0, upper = (t & 2) != 0;
  float low = odd ? v[1] : v[0], high = odd ? v[3] : v[2];
  low += __shfl_xor_sync(~0u, odd ? v[0] : v[1], 1);
  high += __shfl_xor_sync(~0u, odd ? v[2] : v[3], 1);
  return (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, 2);
}

template <int D>
constexpr int kPlaneThreads = D == 256 ? 384 : 512;
/// A warp's tiles in shared memory, half of them under way; scales are made for so many at once.
template <int D>
constexpr int kPlaneStages = D == 64    ? 0
                             : D == 128 ? 4
                                        : 2;
constexpr int plane_tile_bytes(int dim) { return kHadamardRows * dim * 2; }
template <int D>
constexpr std::size_t kPlanesShared = kCodeTableBytes + 1024 +
                                      static_cast<std::size_t>(kPlaneThreads<D> / 32 * kPlaneStages<D> * plane_tile_bytes(D));

/// At least 8 rows.
template <int D, class Sink>
__global__ void __launch_bounds__(kPlaneThreads<D>, 1) hadamard_planes(const __grid_constant__ RotateArgs<Sink> a) {
  constexpr int kChunks = kLaneChunks<D>, kWarps = kPlaneThreads<D> / 32, kStages = kPlaneStages<D>, kTileBytes = plane_tile_bytes(D);
  constexpr int kAhead = kStages / 2, kGroup = 2;                                                             // chunks that products add up
  constexpr float kToPlace = static_cast<float>(kCodeCellScale * (D == 128 ? 0.08838834764831845 : 0.0625));  // over the root of D
  static_assert(D == 128 || D == 256);
  TQ4_DYNAMIC_SHARED(float, memory);
  const RotateSide& side = a.side[0];
  const RowCodec codec = plain_codec(side.codec, D);
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  // The last tile is the last 8 rows whatever their number: some are coded twice, to the same bytes.
  const unsigned rows = row_count(a), last = opaque(rows - kHadamardRows), step = opaque(gridDim.x * kWarps * kHadamardRows);
  const unsigned order = static_cast<unsigned>(kWarps - 1 - warp), spared = rows > 4 * step ? kWarps : 0;
  const WarpTiles own = warp_tiles(order, kWarps, spared);
  unsigned first = own.first * kHadamardRows, stride = own.stride * kHadamardRows;
  if (lane == 0 && first < rows)
    prefetch_l2_bulk(static_cast<const std::uint16_t*>(side.x) + std::uint64_t{min(first, last)} * D, kTileBytes);
  const CodeTableParts parts = code_table_parts<kWarps>(tables, warp, lane);
  HadamardFragments fragments = hadamard_fragments(false, lane);
  keep_fragments(fragments, kept_fragments(memory), thread);
  wait_for_previous_kernels();
  launch_dependents();  // not earlier: see DecodeParams::fresh_tokens

  const bool odd = (g & 1) != 0;
  const unsigned turned = opaque(odd ? 0x80000000u : 0u), mine = opaque(static_cast<unsigned>(g));
  const std::uint32_t ring = shared_address(memory) + kCodeTableBytes + 1024 + static_cast<std::uint32_t>(warp * kStages * kTileBytes),
                      to = opaque(ring + 16u * static_cast<std::uint32_t>(lane)),
                      even_chunks = opaque(ring + static_cast<std::uint32_t>(2 * (g * D + pair_chunk(t, odd)))),
                      odd_chunks = opaque(ring + static_cast<std::uint32_t>(2 * (g * D + pair_chunk(t, !odd))));
  const std::uint16_t* x = opaque_pointer(static_cast<const std::uint16_t*>(side.x) + 8 * lane);
  unsigned char* codes_out = opaque_pointer(a.sink.out.codes + pair_chunk(t, 0) / 2);
  const auto begin_tile = [&](unsigned row, int stage) {
    if (row < rows) {
      const std::uint16_t* from = x + std::uint64_t{min(row, last)} * D;
#pragma unroll
      for (int j = 0; j < kTileBytes / 512; ++j) copy_async_16(to + static_cast<unsigned>(stage * kTileBytes + 512 * j), from + 256 * j);
    }
    copy_async_commit();
  };
  begin_tile(first, 0);
  const CodeTable table = code_table<kWarps>(memory, parts, warp, lane);
  __syncthreads();
  take_fragments(fragments, kept_fragments(memory), lane);
  if constexpr (kAhead > 1) {  // not before the first tile is there: the launch's first tiles come sooner so
    copy_async_wait<0>();
    begin_tile(first + stride, 1);
  }
#pragma unroll 1
  for (; first < rows; first += stride + (kStages - 1) * step, stride = step) {
    float dot[kStages] = {}, centroids[kStages] = {};
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      const unsigned here = i == 0 ? first : first + stride + static_cast<unsigned>(i - 1) * step;
      if (here >= rows) continue;
      unsigned w[kChunks][4];
      copy_async_wait<kAhead - 1>();
      __syncwarp();
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        lds128((c % 2 == 0 ? even_chunks : odd_chunks) + static_cast<std::uint32_t>(i * kTileBytes + 2 * pair_chunk(0, c - c % 2)), w[c]);
      begin_tile(first + stride + static_cast<unsigned>(i + kAhead - 1) * step, (i + kAhead) % kStages);
      HadamardSums<D> y{};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) add_chunk<D, false, kGroup>(y, c, w[c], fragments);
      // Additions keep the sum of squares but for a factor. With a little more of it rows of zeros have no infinite inverse.
      const float energy = square_of<D / 4, 4>([&](int k) { return y.v[k / 8][k / 4 % 2][k % 4]; });
      const float to_place = rsqrt_fast(__fmaf_rn(energy, 2.0f * kChunks / kGroup / D, 1e-30f)) * kToPlace;
      finish_sums<D, kGroup>(y);
      const auto work = look_up_codes<D / 4, true>(
          table, [&](int k) { return y.v[k / 8][k / 4 % 2][k % 4]; }, to_place, turned);
      dot[i] = work.dot, centroids[i] = work.centroids;
      const std::uint64_t row = min(here, last) + mine;
#pragma unroll
      for (int c = 0; c < kChunks; c += 2)
        __stcs(reinterpret_cast<uint2*>(codes_out + row * (D / 2) + pair_chunk(0, c) / 2), make_uint2(work.low[c], work.low[c + 1]));
    }
    // 0 and what is no number come out as such.
    const float scale = row_scale(codec, {0.0f, 0.0f, 0.0f, true}, sum_tiles(dot, t), sum_tiles(centroids, t), tables.image_scale);
    const unsigned here = t == 0 ? first : first + stride + static_cast<unsigned>(t - 1) * step;
    if (t < kStages && here < rows) __stcs(a.sink.out.scale + (min(here, last) + mine), scale);
  }
}

}  // namespace tq4::gpu
