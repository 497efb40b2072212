// The uncompressed baseline's kernel: FlashDecoding with m16n8k16, a block a (split of the context, kv head, sequence). Each warp walks its own
// 16-token tiles with the next ones in flight by cp.async and keeps a softmax of its own; the block merges its warps, and the last block of a
// sequence's head merges the splits, so that there is one launch. E4M3 goes from shared memory to fragments in registers: keys by loads of 16
// bytes under a permutation of the dimensions that the query shares, values by transposed pairs of bytes.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/baseline/paged_decode.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace tq4::gpu {

constexpr int kBaselineMaxSplits = 128;

struct BaselineArgs {
  BaselineParams p;
  int group, splits;
  int split_tiles;         ///< 16-token tiles of a split
  float scale;             ///< sm_scale * log2(e)
  std::uint32_t* arrived;  ///< [num_seqs, num_kv_heads] splits done; 0 before and after a call
  float2* part_ml;         ///< [num_seqs, num_q_heads, splits]: maximum (base 2) and sum
  float* part_out;         ///< [num_seqs, num_q_heads, splits, D]
};

/// HD: head_dim rounded up to 64, 128 or 256; the dimensions behind head_dim are zeros.
template <int HD, bool Fp8, int Warps, int Stages, int Blocks>
struct BaselineShape {
  static constexpr int kHeadDim = HD, kWarps = Warps, kThreads = Warps * 32, kStages = Stages,
                       kBlocks = Blocks;  ///< kBlocks: on an SM at once
  static constexpr bool kFp8 = Fp8;
  static constexpr int kRow = HD * (Fp8 ? 1 : 2) < 128 ? 128 : HD * (Fp8 ? 1 : 2);  ///< bytes of a staged row
  static constexpr int kChunks = HD * (Fp8 ? 1 : 2) / 16;                           ///< 16-byte chunks of a row
  static constexpr int kTile = 16 * kRow;
  static constexpr int kWarpBytes = Stages * 2 * kTile;
  static constexpr int kPitch = HD + 8;  ///< halves of a query row
  static constexpr int kQueryBytes = 16 * kPitch * 2;
  static constexpr int kStats = kQueryBytes;
  static constexpr int kTiles = (kStats + Warps * 16 * 8 + 127) / 128 * 128;  ///< the stages begin here
  static constexpr int kBytes = kTiles + Warps * kWarpBytes;
  static_assert(kWarpBytes >= 16 * HD * 4, "a warp's sums lie where its tiles were");
  static_assert(Warps * kWarpBytes >= 16 * kBaselineMaxSplits * 4, "the splits' weights lie there too");
};

/// A staged row's chunk c lies at chunk c ^ baseline_swizzle(row): eight rows of one chunk, and two rows of four, in banks of their own.
__device__ constexpr int baseline_swizzle(int row) { return (row & 1) * 4 + (row >> 1 & 3); }

/// Two FP8 E4M3 numbers as fp16. Without an instruction for it: moved to where fp16 has exponent and fraction, which is 2^-8 of them (NaN becomes 480).
__device__ __forceinline__ unsigned e4m3_pair(unsigned two) {
  if (!converts_to_e4m3()) {
    const unsigned apart = (two & 0xffu) | (two & 0xff00u) << 8, half = (apart & 0x00800080u) << 8 | (apart & 0x007f007fu) << 7;
    return fma_half2(half, 0x5c005c00u, 0x80008000u);  // times 256, plus -0
  }
  const __half2_raw v = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two), __NV_E4M3);
  return static_cast<unsigned>(v.x) | static_cast<unsigned>(v.y) << 16;
}

/// Queries of one kv head to shared memory, rows beyond the group and dimensions beyond head_dim zero. For E4M3 keys a lane's 16 bytes are dimensions
/// 16 c to 16 c + 15 of 64, which four products take four at a time.
template <class S>
__device__ inline void baseline_query(const BaselineArgs& a, std::int64_t q_row, __half* query) {
  for (int i = threadIdx.x; i < 16 * S::kHeadDim / 8; i += S::kThreads) {
    const int r = i / (S::kHeadDim / 8), d = i % (S::kHeadDim / 8) * 8;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (r < a.group && d < a.p.head_dim)
      v = *reinterpret_cast<const uint4*>(static_cast<const __half*>(a.p.q) + (q_row + r) * a.p.head_dim + d);
    if constexpr (S::kFp8) {
      const unsigned w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int x = d + 2 * k, at = x / 64 * 64 + x % 16 / 4 * 16 + x % 64 / 16 * 2 + x % 4 / 2 * 8;
        *reinterpret_cast<unsigned*>(query + r * S::kPitch + at) = w[k];
      }
    } else {
      *reinterpret_cast<uint4*>(query + r * S::kPitch + d) = v;
    }
  }
}

/// logits[t] += query x 8 keys; q: fragments of the query.
template <class S>
__device__ __forceinline__ void baseline_logits(float (&logits)[2][4], const unsigned (&q)[S::kHeadDim / 16][4], unsigned k_tile,
                                                int lane) {
  if constexpr (S::kFp8) {
    const int row = lane >> 2;
#pragma unroll
    for (int g = 0; g < S::kHeadDim / 64; ++g) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        unsigned w[4];
        lds128(k_tile + static_cast<unsigned>((row + 8 * t) * S::kRow + ((4 * g + (lane & 3)) ^ baseline_swizzle(row)) * 16), w);
#pragma unroll
        for (int s = 0; s < 4; ++s) mma_16816(logits[t], q[4 * g + s], e4m3_pair(w[s] & 0xffffu), e4m3_pair(w[s] >> 16));
      }
    }
  } else {
    const int row = (lane & 7) + (lane >> 4) * 8, half = (lane >> 3) & 1;
#pragma unroll
    for (int kk = 0; kk < S::kHeadDim / 16; ++kk) {
      unsigned k[4];
      ldmatrix_x4(k, k_tile + static_cast<unsigned>(row * S::kRow + ((2 * kk + half) ^ baseline_swizzle(row)) * 16));
      mma_16816(logits[0], q[kk], k[0], k[1]);
      mma_16816(logits[1], q[kk], k[2], k[3]);
    }
  }
}

/// out += probabilities x 16 values. Where out[n][e] lies: baseline_dimension().
template <class S>
__device__ __forceinline__ void baseline_output(float (&out)[S::kHeadDim / 8][4], const unsigned (&p)[4], unsigned v_tile, int lane) {
  const int row = lane & 15;
#pragma unroll
  for (int c = 0; c < S::kChunks; c += 2) {
    unsigned v[4];
    ldmatrix_x4_trans(v, v_tile + static_cast<unsigned>(row * S::kRow + ((c + (lane >> 4)) ^ baseline_swizzle(row)) * 16));
    if constexpr (S::kFp8) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {  // bytes: two dimensions of one token, two of the next; to two tokens of each dimension
        const unsigned low = __byte_perm(v[2 * h], 0, 0x3120), high = __byte_perm(v[2 * h + 1], 0, 0x3120);
        mma_16816(out[2 * (c + h)], p, e4m3_pair(low & 0xffffu), e4m3_pair(high & 0xffffu));
        mma_16816(out[2 * (c + h) + 1], p, e4m3_pair(low >> 16), e4m3_pair(high >> 16));
      }
    } else {
      mma_16816(out[c], p, v[0], v[1]);
      mma_16816(out[c + 1], p, v[2], v[3]);
    }
  }
}
template <class S>
__device__ __forceinline__ int baseline_dimension(int n, int e, int lane) {
  return S::kFp8 ? n / 2 * 16 + 4 * (lane & 3) + 2 * (e & 1) + n % 2 : n * 8 + 2 * (lane & 3) + (e & 1);
}

/// Probabilities (base 2) of a tile's logits as the second product's operand; maximum, sum and out follow. `valid`: tokens of the tile that exist.
template <int Tiles>
__device__ __forceinline__ void baseline_softmax(const float (&logits)[2][4], float scale, int valid, float (&maximum)[2], float (&sum)[2],
                                                 float (&out)[Tiles][4], unsigned (&p)[4], int lane) {
  float rescale[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = maximum[i], v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = 2 * (lane & 3) + (j & 1) + (j >> 1) * 8;
      v[j] = column < valid ? logits[j >> 1][(j & 1) + 2 * i] * scale : -INFINITY;
      m = fmaxf(m, v[j]);
    }
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
    m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    rescale[i] = exp2_fast(maximum[i] - m);
    maximum[i] = m;
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[j] = exp2_fast(v[j] - m);
      total += v[j];
    }
    sum[i] = fmaf(sum[i], rescale[i], total);
    const __half2 low = __floats2half2_rn(v[0], v[1]), high = __floats2half2_rn(v[2], v[3]);
    p[i] = *reinterpret_cast<const unsigned*>(&low);
    p[2 + i] = *reinterpret_cast<const unsigned*>(&high);
  }
  if (__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
    for (int n = 0; n < Tiles; ++n) {
      out[n][0] *= rescale[0];
      out[n][1] *= rescale[0];
      out[n][2] *= rescale[1];
      out[n][3] *= rescale[1];
    }
  }
}

/// The last block of a sequence's head: `parts` partial results of each query to the output.
template <class S>
__device__ inline void baseline_merge(const BaselineArgs& a, std::int64_t q_row, int parts, float* weights) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, dim = a.p.head_dim;
  for (int r = warp; r < a.group; r += S::kWarps) {
    const float2* ml = a.part_ml + (q_row + r) * a.splits;
    float m = -INFINITY, l = 0.0f;
    for (int s = lane; s < parts; s += 32) m = fmaxf(m, __ldcg(ml + s).x);
    for (int o = 16; o > 0; o /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    for (int s = lane; s < parts; s += 32) {
      const float2 v = __ldcg(ml + s);
      const float w = exp2_fast(v.x - m);
      weights[r * kBaselineMaxSplits + s] = w;
      l = fmaf(v.y, w, l);
    }
    for (int o = 16; o > 0; o /= 2) l += __shfl_xor_sync(~0u, l, o);
    __syncwarp();
    for (int s = lane; s < parts; s += 32) weights[r * kBaselineMaxSplits + s] /= l;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.group * dim / 4; i += S::kThreads) {
    const int r = i / (dim / 4), d = i % (dim / 4) * 4;
    const float* from = a.part_out + (q_row + r) * a.splits * dim + d;
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 8
    for (int s = 0; s < parts; ++s) {
      const float4 v = __ldcg(reinterpret_cast<const float4*>(from + static_cast<std::int64_t>(s) * dim));
      const float w = weights[r * kBaselineMaxSplits + s];
      total.x = fmaf(v.x, w, total.x), total.y = fmaf(v.y, w, total.y), total.z = fmaf(v.z, w, total.z), total.w = fmaf(v.w, w, total.w);
    }
    auto* to = reinterpret_cast<__half2*>(static_cast<__half*>(a.p.out) + (q_row + r) * dim + d);
    to[0] = __floats2half2_rn(total.x, total.y);
    to[1] = __floats2half2_rn(total.z, total.w);
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) baseline_kernel(const __grid_constant__ BaselineArgs a) {
  TQ4_DYNAMIC_SHARED(unsigned char, shared);
  wait_for_previous_kernels();
  launch_dependents();
  const int split = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int dim = a.p.head_dim, tiles_a_page = a.p.block_size / 16, begin = split * a.split_tiles + warp;
  const std::int64_t q_row = static_cast<std::int64_t>(sequence) * a.p.num_q_heads + head * a.group;
  const std::int32_t* table = a.p.block_table + sequence * a.p.block_table_stride;
  auto* query = reinterpret_cast<__half*>(shared);
  unsigned char* own = shared + S::kTiles + warp * S::kWarpBytes;

  // A lane knows where this warp's tiles 32 j + lane lie, for the j at work and the next; the first are asked for with the length.
  const int most = static_cast<int>(a.p.max_seq_len + 15) / 16;
  const auto place_of = [&](int n) {
    const int tile = min(begin + n * S::kWarps, most - 1);
    return (table[tile / tiles_a_page] * a.p.num_kv_heads + head) * tiles_a_page + tile % tiles_a_page;
  };
  int places = most > 0 ? place_of(lane) : 0;
  const int length = min(a.p.seq_lens[sequence], static_cast<int>(a.p.max_seq_len)), tiles = (length + 15) / 16;
  const int parts = max((tiles + a.split_tiles - 1) / a.split_tiles, 1), end = min(tiles, (split + 1) * a.split_tiles);
  if (split >= parts) return;
  int next_places = 32 * S::kWarps + begin < end ? place_of(32 + lane) : 0;
  if (dim < S::kHeadDim) {
    for (int i = lane; i < S::kWarpBytes / 16; i += 32) *reinterpret_cast<uint4*>(own + i * 16) = make_uint4(0, 0, 0, 0);
    __syncwarp();
  }

  constexpr int kLanesARow = S::kChunks < 32 ? S::kChunks : 32, kRows = 32 / kLanesARow;  // of one copy by the warp
  const int row_bytes = dim * (S::kFp8 ? 1 : 2), tile_bytes = 16 * row_bytes, chunk = lane % kLanesARow, first_row = lane / kLanesARow;
  const bool copies = chunk * 16 < row_bytes;
  const auto issue = [&](int n, int stage) {
    if (begin + n * S::kWarps < end) {
      if (n > 0 && n % 32 == 0) {
        places = next_places;
        next_places = begin + (n + 32) * S::kWarps < end ? place_of(n + 32 + lane) : 0;
      }
      const std::int64_t at = static_cast<std::int64_t>(__shfl_sync(~0u, places, n % 32)) * tile_bytes + first_row * row_bytes + chunk * 16;
      const unsigned to = shared_address(own + stage * 2 * S::kTile);
      if (copies) {
#pragma unroll
        for (int i = 0; i < 16 / kRows; ++i) {
          const int row = first_row + i * kRows;
          const unsigned slot = static_cast<unsigned>(row * S::kRow + (chunk ^ baseline_swizzle(row)) * 16);
          copy_async_16(to + slot, static_cast<const unsigned char*>(a.p.k) + at + i * kRows * row_bytes);
          copy_async_16(to + S::kTile + slot, static_cast<const unsigned char*>(a.p.v) + at + i * kRows * row_bytes);
        }
      }
    }
    copy_async_commit();
  };
  for (int n = 0; n < S::kStages - 1; ++n) issue(n, n);
  baseline_query<S>(a, q_row, query);
  __syncthreads();
  unsigned q[S::kHeadDim / 16][4];
#pragma unroll
  for (int kk = 0; kk < S::kHeadDim / 16; ++kk)
    ldmatrix_x4(q[kk], shared_address(query + (lane & 15) * S::kPitch + (lane >> 4) * 8 + kk * 16));

  float out[S::kHeadDim / 8][4];
#pragma unroll
  for (int n = 0; n < S::kHeadDim / 8; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  int stage = 0;
  for (int n = 0, tile = begin; tile < end; ++n, tile += S::kWarps) {
    issue(n + S::kStages - 1, stage == 0 ? S::kStages - 1 : stage - 1);
    copy_async_wait<S::kStages - 1>();
    __syncwarp();
    unsigned char* staged = own + stage * 2 * S::kTile;
    const unsigned k_tile = shared_address(staged), v_tile = k_tile + S::kTile;
    const int valid = length - tile * 16;
    if (valid < 16) {  // rows past the length may hold NaN: probability 0 times NaN is NaN
      for (int i = valid * (S::kRow / 16) + lane; i < S::kTile / 16; i += 32)
        *reinterpret_cast<uint4*>(staged + S::kTile + i * 16) = make_uint4(0, 0, 0, 0);
      __syncwarp();
    }
    float logits[2][4] = {};
    unsigned p[4];
    baseline_logits<S>(logits, q, k_tile, lane);
    baseline_softmax(logits, a.scale, valid, maximum, sum, out, p, lane);
    baseline_output<S>(out, p, v_tile, lane);
    __syncwarp();
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
  }
  copy_async_wait<0>();
  __syncwarp();

  // The warps' sums, each where its tiles were, to the block's.
  const int quad_row = lane >> 2;
  auto* stats = reinterpret_cast<float2*>(shared + S::kStats);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
    sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
    if ((lane & 3) == 0) stats[warp * 16 + quad_row + 8 * i] = make_float2(maximum[i], sum[i]);
    if (quad_row + 8 * i < a.group) {
#pragma unroll
      for (int n = 0; n < S::kHeadDim / 8; ++n) {
        for (int e = 0; e < 2; ++e)
          reinterpret_cast<float*>(own)[(quad_row + 8 * i) * S::kHeadDim + baseline_dimension<S>(n, e, lane)] = out[n][2 * i + e];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < a.group * S::kHeadDim / 4; i += S::kThreads) {
    const int r = i / (S::kHeadDim / 4), d = i % (S::kHeadDim / 4) * 4;
    float m = -INFINITY, l = 0.0f;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) m = fmaxf(m, stats[w * 16 + r].x);
    const float base = m == -INFINITY ? 0.0f : m;
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) {
      const float2 ml = stats[w * 16 + r];
      const float weight = exp2_fast(ml.x - base);
      const float4 v = *reinterpret_cast<const float4*>(shared + S::kTiles + w * S::kWarpBytes + (r * S::kHeadDim + d) * 4);
      l = fmaf(ml.y, weight, l);
      total.x = fmaf(v.x, weight, total.x), total.y = fmaf(v.y, weight, total.y), total.z = fmaf(v.z, weight, total.z),
      total.w = fmaf(v.w, weight, total.w);
    }
    if (d >= dim) continue;
    if (parts > 1) {
      *reinterpret_cast<float4*>(a.part_out + ((q_row + r) * a.splits + split) * dim + d) = total;
      if (d == 0) a.part_ml[(q_row + r) * a.splits + split] = make_float2(m, l);
    } else {
      const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
      auto* to = reinterpret_cast<__half2*>(static_cast<__half*>(a.p.out) + (q_row + r) * dim + d);
      to[0] = __floats2half2_rn(total.x * inverse, total.y * inverse);
      to[1] = __floats2half2_rn(total.z * inverse, total.w * inverse);
    }
  }
  if (parts == 1) return;
  __syncthreads();
  auto* last = reinterpret_cast<std::uint32_t*>(shared);  // where the query was
  if (threadIdx.x == 0) {
    std::uint32_t* counter = a.arrived + sequence * a.p.num_kv_heads + head;
    *last = count_acq_rel(counter) + 1 == static_cast<std::uint32_t>(parts);
    if (*last) *counter = 0;
  }
  __syncthreads();
  if (*last) baseline_merge<S>(a, q_row, parts, reinterpret_cast<float*>(shared + S::kTiles));
}

}  // namespace tq4::gpu
