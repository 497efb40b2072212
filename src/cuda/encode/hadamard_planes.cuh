// encode of many plain rows (is_plain()) of planes turned by a Hadamard matrix: tiles of 8 rows that lie one behind the other come to shared memory by
// cp.async while those before are coded, a warp has a ring of its own. What hadamard.cuh does with other rows, in a tenth fewer instructions: the sum of
// squares is a product of rows with themselves, and what lanes know of all rows stays in registers.
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

/// The sum of x^2 of 8 rows of fp16 numbers, for each lane that of its row g (odd or not): the diagonal of their product with themselves.
template <int Chunks>
__device__ __forceinline__ float row_squares(const unsigned (&x)[Chunks][4], int lane, bool odd) {
  float low[4] = {}, high[4] = {};  // words 0 and 2, 1 and 3
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
#pragma unroll
    for (int k = 0; k < 4; k += 2) mma_k8(low, x[c][k], x[c][k + 1], x[c][k]), mma_k8(high, x[c][k], x[c][k + 1], x[c][k + 1]);
  }
  const float here = (odd ? low[1] : low[0]) + (odd ? high[3] : high[2]);  // lane t = g / 2 of row g has its sum
  return __shfl_sync(~0u, here, (lane & 28) + (lane >> 3));
}

template <int D>
constexpr int kPlaneThreads = D == 256 ? 384 : 512;
/// A warp's tiles in shared memory, all but one of them under way.
template <int D>
constexpr int kPlaneStages = D == 64    ? 0
                             : D == 128 ? 3
                                        : 2;
constexpr int plane_tile_bytes(int dim) { return kHadamardRows * dim * 2; }
template <int D>
constexpr std::size_t kPlanesShared = kCodeTableBytes + 1024 +
                                      static_cast<std::size_t>(kPlaneThreads<D> / 32 * kPlaneStages<D> * plane_tile_bytes(D));

/// At least 8 rows.
template <int D, class Sink>
__global__ void __launch_bounds__(kPlaneThreads<D>, 1) hadamard_planes(const __grid_constant__ RotateArgs<Sink> a) {
  constexpr int kChunks = kLaneChunks<D>, kWarps = kPlaneThreads<D> / 32, kStages = kPlaneStages<D>, kTileBytes = plane_tile_bytes(D);
  constexpr float kToPlace = static_cast<float>(kCodeCellScale * (D == 128 ? 0.08838834764831845 : 0.0625));  // over the root of D
  static_assert(D == 128 || D == 256);
  TQ4_DYNAMIC_SHARED(float, memory);
  const RotateSide& side = a.side[0];
  const RowCodec codec = plain_codec(side.codec, D);
  const SideTables& tables = side.codec.t;
  const int thread = static_cast<int>(threadIdx.x), warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
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

  // The last tile is the last 8 rows whatever their number: some are coded twice, to the same bytes.
  const unsigned rows = row_count(a), last = opaque(rows - kHadamardRows), step = opaque(gridDim.x * kWarps * kHadamardRows);
  const auto begin_tile = [&](unsigned row, std::uint32_t slot) {
    if (row < rows) {
      const std::uint16_t* from = x + std::uint64_t{min(row, last)} * D;
#pragma unroll
      for (int j = 0; j < kTileBytes / 512; ++j) copy_async_16(to + slot + 512u * static_cast<unsigned>(j), from + 256 * j);
    }
    copy_async_commit();
  };
  unsigned first = (static_cast<unsigned>(warp) * gridDim.x + blockIdx.x) * kHadamardRows;
  std::uint32_t slot = 0;
  begin_tile(first, slot);
  const CodeTable table = code_table<kWarps>(memory, parts, warp, lane);
  __syncthreads();
  take_fragments(fragments, kept_fragments(memory), lane);
  if constexpr (kStages == 3) {  // not before the first tile is there: the launch's first tiles come sooner so
    copy_async_wait<0>();
    begin_tile(first + step, kTileBytes);
  }
  for (; first < rows; first += step) {
    unsigned w[kChunks][4];
    copy_async_wait<kStages - 2>();
    __syncwarp();
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      lds128((c % 2 == 0 ? even_chunks : odd_chunks) + slot + static_cast<std::uint32_t>(2 * pair_chunk(0, c - c % 2)), w[c]);
    begin_tile(first + (kStages - 1) * step, slot == 0 ? (kStages - 1) * kTileBytes : slot - kTileBytes);
    slot = slot == (kStages - 1) * kTileBytes ? 0 : slot + kTileBytes;
    const float square = row_squares(w, lane, turned != 0);
    HadamardSums<D> y{};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) add_chunk<D, false>(y, c, w[c], fragments);
    finish_sums(y);

    const bool regular = square > 0.0f && square < INFINITY;
    const auto work = look_up_codes<D / 4, true>(
        table, [&](int i) { return y.v[i / 8][i / 4 % 2][i % 4]; }, regular ? rsqrt_fast(square) * kToPlace : 0.0f, turned);
    const float scale =
        row_scale(codec, {square, square, 0.0f, regular}, sum_lanes<4>(work.dot), sum_lanes<4>(work.centroids), tables.image_scale);
    const std::uint64_t row = min(first, last) + mine;
#pragma unroll
    for (int c = 0; c < kChunks; c += 2)
      __stcs(reinterpret_cast<uint2*>(codes_out + row * (D / 2) + pair_chunk(0, c) / 2), make_uint2(work.low[c], work.low[c + 1]));
    if (t == 0) __stcs(a.sink.out.scale + row, scale);
  }
}

}  // namespace tq4::gpu
