// The uncompressed baseline: FlashDecoding with m16n8k16, one block of 4 warps a (sequence, kv head, split). A warp walks its own 16-token
// tiles with three tiles of K and V in flight by cp.async; fp8 tiles are widened to fp16 in shared memory before the products. A second
// launch merges the splits by log-sum-exp.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>

#include "cuda/baseline/paged_fp16.h"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace tq4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kStages = 3, kMaxSplits = 128;
constexpr float kLog2e = 1.4426950408889634f;
constexpr const char* kWhere = "baseline decode";

struct Args {
  BaselineParams p;
  int group, splits;
  float scale;      ///< sm_scale * log2(e)
  float* part_out;  ///< [num_seqs, num_q_heads, splits, D]
  float2* part_ml;  ///< [num_seqs, num_q_heads, splits], base 2
};

template <int HD, bool Fp8>
struct Plan {
  static constexpr int kPitch = HD + 8;                    ///< halves
  static constexpr int kRow = Fp8 ? HD + 16 : kPitch * 2;  ///< bytes of a staged row
  static constexpr int kTile = 16 * kRow;
  static constexpr int kWide = Fp8 ? 16 * kPitch * 2 : 0;  ///< fp16 tile of fp8 data
  static constexpr int kWarp = kStages * 2 * kTile + kWide;
  static constexpr int kQuery = 16 * kPitch * 2;
  static constexpr int kBytes =
      kQuery + kWarps * kWarp > kQuery + 16 * HD * 4 + 1024 ? kQuery + kWarps* kWarp : kQuery + 16 * HD * 4 + 1024;
};

/// 16 rows of E4M3 to fp16, by one warp.
template <int HD>
__device__ inline void widen(const unsigned char* from, int row_bytes, __half* to, int pitch, int dim, int lane) {
  for (int i = lane; i < 16 * (HD / 8); i += 32) {
    const int row = i % 16, g = i / 16;
    if (g * 8 >= dim) break;
    const uint2 raw = *reinterpret_cast<const uint2*>(from + row * row_bytes + g * 8);
    unsigned h[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const unsigned pair = (k < 2 ? raw.x : raw.y) >> (16 * (k & 1));
      const __half2_raw v = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair & 0xffffu), __NV_E4M3);
      h[k] = static_cast<unsigned>(v.x) | static_cast<unsigned>(v.y) << 16;
    }
    *reinterpret_cast<uint4*>(to + row * pitch + g * 8) = make_uint4(h[0], h[1], h[2], h[3]);
  }
}

template <int HD, bool Fp8>
__global__ void __launch_bounds__(kThreads, HD <= 128 ? 2 : 1) split_kernel(const __grid_constant__ Args a) {
  using P = Plan<HD, Fp8>;
  TQ4_DYNAMIC_SHARED(unsigned char, shared);
  const int split = blockIdx.x, head = blockIdx.y, sequence = blockIdx.z, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int dim = a.p.head_dim, quad_row = lane >> 2, quad_column = 2 * (lane & 3);
  const int length = a.p.seq_lens[sequence], tiles = (length + 15) / 16;
  const int per_split = (tiles + a.splits * kWarps - 1) / (a.splits * kWarps) * kWarps;
  const int tile_begin = split * per_split, tile_end = min(tiles, tile_begin + per_split);
  const std::int64_t q_row = static_cast<std::int64_t>(sequence) * a.p.num_q_heads + head * a.group;

  auto* query = reinterpret_cast<__half*>(shared);
  unsigned char* own = shared + P::kQuery + warp * P::kWarp;
  auto* wide = reinterpret_cast<__half*>(own + kStages * 2 * P::kTile);
  for (int i = threadIdx.x; i < 16 * HD / 8; i += kThreads) {
    const int r = i / (HD / 8), g = i % (HD / 8);
    uint4 v = make_uint4(0, 0, 0, 0);
    if (r < a.group && g * 8 < dim) v = *reinterpret_cast<const uint4*>(static_cast<const __half*>(a.p.q) + (q_row + r) * dim + g * 8);
    *reinterpret_cast<uint4*>(query + r * P::kPitch + g * 8) = v;
  }
  __syncthreads();

  const int tile_bytes = 16 * dim * (Fp8 ? 1 : 2), row_chunks = dim * (Fp8 ? 1 : 2) / 16, tiles_a_page = a.p.block_size / 16;
  const std::int64_t page_bytes = static_cast<std::int64_t>(a.p.num_kv_heads) * tiles_a_page * tile_bytes;
  const std::int64_t head_bytes = static_cast<std::int64_t>(head) * tiles_a_page * tile_bytes;
  const std::int32_t* table = a.p.block_table + sequence * a.p.block_table_stride;
  const auto page_of = [&](int tile) { return tile < tile_end ? table[tile / tiles_a_page] : 0; };
  const auto issue = [&](int tile, int page, int stage) {
    if (tile < tile_end) {
      const std::int64_t at = page * page_bytes + head_bytes + static_cast<std::int64_t>(tile % tiles_a_page) * tile_bytes;
      const unsigned to = shared_address(own + stage * 2 * P::kTile);
      for (int i = lane; i < 16 * row_chunks; i += 32) {
        const int row = i / row_chunks, chunk = i - row * row_chunks;
        copy_async_16(to + row * P::kRow + chunk * 16, static_cast<const unsigned char*>(a.p.k) + at + i * 16);
        copy_async_16(to + P::kTile + row * P::kRow + chunk * 16, static_cast<const unsigned char*>(a.p.v) + at + i * 16);
      }
    }
    copy_async_commit();
  };

  float out[HD / 8][4];
#pragma unroll
  for (int n = 0; n < HD / 8; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  int tile = tile_begin + warp;
  issue(tile, page_of(tile), 0);
  issue(tile + kWarps, page_of(tile + kWarps), 1);
  int next_page = page_of(tile + 2 * kWarps);
  for (int step = 0; tile < tile_end; ++step, tile += kWarps) {
    issue(tile + 2 * kWarps, next_page, (step + 2) % kStages);
    next_page = page_of(tile + 3 * kWarps);
    copy_async_wait<2>();
    __syncwarp();
    unsigned char* stage = own + (step % kStages) * 2 * P::kTile;
    auto* k_tile = reinterpret_cast<__half*>(stage);
    auto* v_tile = reinterpret_cast<__half*>(stage + P::kTile);
    if constexpr (Fp8) {
      widen<HD>(stage, P::kRow, wide, P::kPitch, dim, lane);
      __syncwarp();
      k_tile = v_tile = wide;
    }
    float logits[2][4] = {};
    const unsigned q_address = shared_address(query + (lane & 15) * P::kPitch + (lane >> 4) * 8);
    const unsigned k_address = shared_address(k_tile + ((lane & 7) + (lane >> 4) * 8) * P::kPitch + ((lane >> 3) & 1) * 8);
#pragma unroll
    for (int kk = 0; kk < HD / 16; ++kk) {
      if (kk * 16 < dim) {
        unsigned qf[4], kf[4];
        ldmatrix_x4(qf, q_address + kk * 32);
        ldmatrix_x4(kf, k_address + kk * 32);
        mma_16816(logits[0], qf, kf[0], kf[1]);
        mma_16816(logits[1], qf, kf[2], kf[3]);
      }
    }
    if constexpr (Fp8) {
      __syncwarp();
      widen<HD>(stage + P::kTile, P::kRow, wide, P::kPitch, dim, lane);
    }
    unsigned p[4];
    float rescale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float m = maximum[i], v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = quad_column + (j & 1) + (j >> 1) * 8;
        v[j] = tile * 16 + column < length ? logits[j >> 1][(j & 1) + 2 * i] * a.scale : -INFINITY;
        m = fmaxf(m, v[j]);
      }
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      rescale[i] = exp2f(maximum[i] - m);
      maximum[i] = m;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = exp2f(v[j] - m);
        total += v[j];
      }
      sum[i] = fmaf(sum[i], rescale[i], total);
      const __half2 low = __floats2half2_rn(v[0], v[1]), high = __floats2half2_rn(v[2], v[3]);
      p[i] = *reinterpret_cast<const unsigned*>(&low);
      p[2 + i] = *reinterpret_cast<const unsigned*>(&high);
    }
    if (__any_sync(~0u, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        out[n][0] *= rescale[0];
        out[n][1] *= rescale[0];
        out[n][2] *= rescale[1];
        out[n][3] *= rescale[1];
      }
    }
    // Rows past the length may hold NaN: probability 0 times NaN is NaN.
    if (tile * 16 + 16 > length) {
      __syncwarp();
      for (int i = lane; i < 16 * dim; i += 32) {
        if (tile * 16 + i / dim >= length) v_tile[i / dim * P::kPitch + i % dim] = __float2half(0.0f);
      }
    }
    __syncwarp();
    const unsigned v_address = shared_address(v_tile + ((lane & 7) + ((lane >> 3) & 1) * 8) * P::kPitch + (lane >> 4) * 8);
#pragma unroll
    for (int n = 0; n < HD / 16; ++n) {
      if (n * 16 < dim) {
        unsigned vf[4];
        ldmatrix_x4_trans(vf, v_address + n * 32);
        mma_16816(out[2 * n], p, vf[0], vf[1]);
        mma_16816(out[2 * n + 1], p, vf[2], vf[3]);
      }
    }
    __syncwarp();
  }
  copy_async_wait<0>();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
    sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
  }
  __syncthreads();
  auto* stats = reinterpret_cast<float2*>(shared + P::kQuery);
  auto* gather = reinterpret_cast<float*>(shared + P::kQuery + 1024);
  if ((lane & 3) == 0) {
    for (int i = 0; i < 2; ++i) stats[warp * 16 + quad_row + 8 * i] = make_float2(maximum[i], sum[i]);
  }
  __syncthreads();
  float weight[2], total_max[2], total_sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float m = -INFINITY, l = 0.0f;
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, stats[w * 16 + quad_row + 8 * i].x);
    const float base = m == -INFINITY ? 0.0f : m;
    for (int w = 0; w < kWarps; ++w) l += stats[w * 16 + quad_row + 8 * i].y * exp2f(stats[w * 16 + quad_row + 8 * i].x - base);
    total_max[i] = m;
    total_sum[i] = l;
    weight[i] = exp2f(maximum[i] - base);
  }
  for (int turn = 0; turn < kWarps; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        if (n * 8 < dim) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float* slot = gather + (quad_row + 8 * (e >> 1)) * HD + n * 8 + quad_column + (e & 1);
            const float value = out[n][e] * weight[e >> 1];
            *slot = turn == 0 ? value : *slot + value;
          }
        }
      }
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < a.group * dim; i += kThreads) {
    a.part_out[((q_row + i / dim) * a.splits + split) * dim + i % dim] = gather[i / dim * HD + i % dim];
  }
  if (warp == 0 && (lane & 3) == 0) {
    for (int i = 0; i < 2; ++i) {
      if (quad_row + 8 * i < a.group) a.part_ml[(q_row + quad_row + 8 * i) * a.splits + split] = make_float2(total_max[i], total_sum[i]);
    }
  }
}

/// A block a query row.
__global__ void __launch_bounds__(128) merge_kernel(const __grid_constant__ Args a) {
  __shared__ float weights[kMaxSplits];
  const std::int64_t row = blockIdx.x;
  const float2* ml = a.part_ml + row * a.splits;
  if (threadIdx.x < 32) {
    float m = -INFINITY, l = 0.0f;
    float2 v[kMaxSplits / 32];
#pragma unroll
    for (int k = 0; k < kMaxSplits / 32; ++k) {
      const int s = k * 32 + static_cast<int>(threadIdx.x);
      v[k] = s < a.splits ? ml[s] : make_float2(-INFINITY, 0.0f);
      m = fmaxf(m, v[k].x);
    }
    for (int o = 16; o > 0; o /= 2) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    const float base = m == -INFINITY ? 0.0f : m;
#pragma unroll
    for (int k = 0; k < kMaxSplits / 32; ++k) {
      v[k].x = exp2f(v[k].x - base);
      l = fmaf(v[k].y, v[k].x, l);
    }
    for (int o = 16; o > 0; o /= 2) l += __shfl_xor_sync(~0u, l, o);
    const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
#pragma unroll
    for (int k = 0; k < kMaxSplits / 32; ++k) weights[k * 32 + threadIdx.x] = v[k].x * inverse;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < a.p.head_dim; d += 128) {
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < a.splits; ++s) sum = fmaf(weights[s], a.part_out[(row * a.splits + s) * a.p.head_dim + d], sum);
    static_cast<__half*>(a.p.out)[row * a.p.head_dim + d] = __float2half_rn(sum);
  }
}

/// The smallest number of splits whose blocks fill at least 90% of the waves they take (or the fullest), two waves where a split keeps 2048 tokens.
int split_count(const BaselineParams& p, const DeviceInfo& device) {
  const std::int64_t slots = static_cast<std::int64_t>(device.sm_count) * (p.head_dim <= 128 ? 2 : 1);
  const std::int64_t base = static_cast<std::int64_t>(p.num_seqs) * p.num_kv_heads;
  const std::int64_t most = std::clamp<std::int64_t>(p.max_seq_len / 256, 1, kMaxSplits);
  int best = 1;
  double best_fill = 0;
  for (int s = 1; s <= most; ++s) {
    const std::int64_t waves = (base * s + slots - 1) / slots;
    const double fill = static_cast<double>(base * s) / static_cast<double>(waves * slots);
    if (fill > best_fill + 0.02 || (fill >= 0.9 && waves == 2 && p.max_seq_len / s >= 2048)) best = s, best_fill = fill;
    if (fill >= 0.9 && (waves >= 2 || p.max_seq_len / (s + 1) < 2048)) break;
  }
  return best;
}

template <int HD, bool Fp8>
void launch(const Args& a, const DeviceInfo& device, cudaStream_t stream) {
  using P = Plan<HD, Fp8>;
  allow_shared(split_kernel<HD, Fp8>, P::kBytes, device.shared_bytes_per_block, kWhere);
  const dim3 grid(static_cast<unsigned>(a.splits), static_cast<unsigned>(a.p.num_kv_heads), static_cast<unsigned>(a.p.num_seqs));
  launch_kernel(kWhere, {grid, kThreads, P::kBytes, stream}, split_kernel<HD, Fp8>, a);
}

std::size_t part_ml_bytes(const BaselineParams& p, int splits) {
  return (static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.num_q_heads * splits) * sizeof(float2) + 255) / 256 * 256;
}

}  // namespace

std::size_t baseline_workspace_bytes(const BaselineParams& p, const DeviceInfo& device) {
  const int splits = split_count(p, device);
  return part_ml_bytes(p, splits) +
         static_cast<std::size_t>(p.num_seqs) * static_cast<std::size_t>(p.num_q_heads * splits * p.head_dim) * sizeof(float);
}

void baseline_decode(const BaselineParams& p, const DeviceInfo& device, Stream stream) {
  require(p.num_kv_heads > 0 && p.num_q_heads % p.num_kv_heads == 0, "num_q_heads must be a multiple of num_kv_heads", kWhere);
  if (p.head_dim % 16 != 0 || p.head_dim > 256) refuse("head_dim must be a multiple of 16 up to 256", kWhere);
  if (p.num_q_heads / p.num_kv_heads > 16) refuse("at most 16 query heads a kv head", kWhere);
  require(p.block_size % 16 == 0, "block_size must be a multiple of 16", kWhere);
  require(p.workspace_bytes >= baseline_workspace_bytes(p, device), "the workspace is too small", kWhere);
  Args a{};
  a.p = p;
  a.group = p.num_q_heads / p.num_kv_heads;
  a.splits = split_count(p, device);
  a.scale = (p.sm_scale != 0 ? p.sm_scale : 1.0f / std::sqrt(static_cast<float>(p.head_dim))) * kLog2e;
  a.part_ml = static_cast<float2*>(p.workspace);
  a.part_out = reinterpret_cast<float*>(static_cast<std::uint8_t*>(p.workspace) + part_ml_bytes(p, a.splits));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (p.head_dim <= 64) {
    p.fp8 ? launch<64, true>(a, device, cuda_stream) : launch<64, false>(a, device, cuda_stream);
  } else if (p.head_dim <= 128) {
    p.fp8 ? launch<128, true>(a, device, cuda_stream) : launch<128, false>(a, device, cuda_stream);
  } else {
    p.fp8 ? launch<256, true>(a, device, cuda_stream) : launch<256, false>(a, device, cuda_stream);
  }
  launch_kernel(kWhere, {static_cast<unsigned>(p.num_seqs * p.num_q_heads), 128, 0, cuda_stream}, merge_kernel, a);
}

}  // namespace tq4::gpu
