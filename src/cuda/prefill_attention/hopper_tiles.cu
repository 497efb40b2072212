// What the Hopper prefill attention reads: rows of K and V as tiles, queries and keys as int8.
#include <cuda_fp16.h>

#include "cuda/launch.cuh"
#include "cuda/prefill_attention/hopper.h"

namespace tq4::gpu {
namespace {

struct TilesArgs {
  FlashArgs flash;
  TiledKeys tiles;
  int first_side, sides;  ///< tile_kernel: 0 = K, 1 = V
};

__device__ __forceinline__ int keys_of(const FlashArgs& a, int sequence) {
  if (a.cu_k) return a.cu_k[sequence + 1] - a.cu_k[sequence];
  return a.cu_q[sequence + 1] - a.cu_q[sequence] + (a.prefix_lens ? a.prefix_lens[sequence] : 0);
}
/// Byte of 16-byte chunk c of key r in a tile of 16-bit rows.
__device__ __forceinline__ int tile_byte(int r, int c) { return (c >> 3) * (kTileKeys * 128) + r * 128 + ((c & 7) ^ (r & 7)) * 16; }

constexpr int kTileThreads = 256;

/// One tile of K or V in place: all of it is read before any is written.
template <int HD>
__global__ void __launch_bounds__(kTileThreads) tile_kernel(const __grid_constant__ TilesArgs a) {
  constexpr int kChunks = HD / 8, kEach = kTileKeys * kChunks / kTileThreads;
  const int sequence = blockIdx.z, head = blockIdx.y / a.sides, side = a.first_side + blockIdx.y % a.sides, tile = blockIdx.x;
  const int valid = keys_of(a.flash, sequence) - tile * kTileKeys;
  if (valid <= 0) return;
  const std::int64_t at = (static_cast<std::int64_t>(sequence) * a.flash.num_kv_heads + head) * a.tiles.tiles + tile;
  std::uint8_t* memory = (side == 1 ? a.tiles.v : a.tiles.k) + at * (kTileKeys * HD * 2);
  uint4 v[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int chunk = i * kTileThreads + static_cast<int>(threadIdx.x);
    v[i] = chunk / kChunks < valid ? *reinterpret_cast<const uint4*>(memory + chunk * 16) : make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int chunk = i * kTileThreads + static_cast<int>(threadIdx.x);
    *reinterpret_cast<uint4*>(memory + tile_byte(chunk / kChunks, chunk % kChunks)) = v[i];
  }
}

__device__ __forceinline__ void halves(const uint2& four, float (&x)[4]) {
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&four.x)),
               high = __half22float2(*reinterpret_cast<const __half2*>(&four.y));
  x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
}

/// A row of 128 on a warp, 4 coordinates a lane, times the Hadamard matrix over sqrt(128), as bytes; returns the step between two of them.
__device__ __forceinline__ float quantize_row(float (&x)[4], int lane, unsigned& bytes) {
  float a = x[0] + x[1], b = x[0] - x[1], c = x[2] + x[3], d = x[2] - x[3];
  x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float other = __shfl_xor_sync(~0u, x[i], h);
      x[i] = lane & h ? other - x[i] : x[i] + other;
    }
  }
  float largest = fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3])));
#pragma unroll
  for (int h = 1; h < 32; h *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, h));
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  bytes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) bytes |= (static_cast<unsigned>(__float2int_rn(x[i] * inverse)) & 255u) << (8 * i);
  return largest > 0.0f ? largest * (0.08838834764831845f / 127.0f) : 1.0f;
}

__global__ void __launch_bounds__(kTileThreads) quantize_queries_kernel(const __grid_constant__ TilesArgs a) {
  const int sequence = blockIdx.y, lane = static_cast<int>(threadIdx.x) & 31;
  const std::int64_t begin = static_cast<std::int64_t>(a.flash.cu_q[sequence]) * a.flash.num_q_heads,
                     end = static_cast<std::int64_t>(a.flash.cu_q[sequence + 1]) * a.flash.num_q_heads;
  const std::int64_t row = begin + static_cast<std::int64_t>(blockIdx.x) * (kTileThreads / 32) + (threadIdx.x >> 5);
  if (row >= end) return;
  const uint2 four = *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(a.flash.q) + row * 128 + lane * 4);
  float x[4];
  if (a.flash.dtype == static_cast<int>(DType::BF16)) {
    x[0] = __uint_as_float(four.x << 16), x[1] = __uint_as_float(four.x & 0xffff0000u);
    x[2] = __uint_as_float(four.y << 16), x[3] = __uint_as_float(four.y & 0xffff0000u);
  } else {
    halves(four, x);
  }
  unsigned bytes;
  const float scale = quantize_row(x, lane, bytes);
  reinterpret_cast<unsigned*>(a.tiles.q8)[row * 32 + lane] = bytes;
  if (lane == 0) a.tiles.q8_scale[row] = scale;
}

__global__ void __launch_bounds__(kTileThreads) quantize_keys_kernel(const __grid_constant__ TilesArgs a) {
  const int sequence = blockIdx.z, head = blockIdx.y, tile = blockIdx.x, lane = static_cast<int>(threadIdx.x) & 31;
  if (keys_of(a.flash, sequence) <= tile * kTileKeys) return;
  const std::int64_t at = (static_cast<std::int64_t>(sequence) * a.flash.num_kv_heads + head) * a.tiles.tiles + tile;
  const std::uint8_t* from = a.tiles.k + at * (kTileKeys * 256);
  std::int8_t* to = a.tiles.k8 + at * (kTileKeys * 128);
  for (int r = static_cast<int>(threadIdx.x) >> 5; r < kTileKeys; r += kTileThreads / 32) {
    const uint2 four = *reinterpret_cast<const uint2*>(from + tile_byte(r, lane >> 1) + (lane & 1) * 8);
    float x[4];
    halves(four, x);
    unsigned bytes;
    const float scale = quantize_row(x, lane, bytes);
    *reinterpret_cast<unsigned*>(to + r * 128 + ((lane >> 2) ^ (r & 7)) * 16 + (lane & 3) * 4) = bytes;
    if (lane == 0) a.tiles.k8_scale[at * kTileKeys + r] = scale;
  }
}

}  // namespace

void launch_tile_rows(const FlashArgs& args, const TiledKeys& tiles, bool k, bool v, cudaStream_t stream) {
  if (!k && !v) return;
  const TilesArgs a{args, tiles, k ? 0 : 1, k && v ? 2 : 1};
  const dim3 grid(static_cast<unsigned>(tiles.tiles), static_cast<unsigned>(a.sides * args.num_kv_heads),
                  static_cast<unsigned>(args.num_seqs));
  launch_kernel("prefill (tiles)", {grid, kTileThreads, 0, stream}, args.head_dim == 128 ? tile_kernel<128> : tile_kernel<64>, a);
}

void launch_quantize_queries(const FlashArgs& args, const TiledKeys& tiles, cudaStream_t stream) {
  const std::int64_t rows = static_cast<std::int64_t>(args.max_q_len) * args.num_q_heads;
  const dim3 grid(static_cast<unsigned>((rows + kTileThreads / 32 - 1) / (kTileThreads / 32)), static_cast<unsigned>(args.num_seqs));
  const TilesArgs a{args, tiles, 0, 0};
  launch_kernel("prefill (int8 queries)", {grid, kTileThreads, 0, stream}, quantize_queries_kernel, a);
}

void launch_quantize_keys(const FlashArgs& args, const TiledKeys& tiles, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(tiles.tiles), static_cast<unsigned>(args.num_kv_heads), static_cast<unsigned>(args.num_seqs));
  const TilesArgs a{args, tiles, 0, 0};
  launch_kernel("prefill (int8 keys)", {grid, kTileThreads, 0, stream}, quantize_keys_kernel, a);
}

}  // namespace tq4::gpu
