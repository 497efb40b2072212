// FlashAttention for prefill on m16n8k16 tensor cores: a block of 4 warps takes 128 query rows (64 at head sizes above 128) of one kv head,
// the rows being (query, head of the group) pairs so that K and V are read once for the group; tiles of 64 keys are staged by cp.async, one
// tile ahead. Queries of any length may be mixed in one launch; row tiles past a sequence's queries leave at once. Tiles wholly outside
// the causal triangle or the window are not visited, only those on an edge are masked.
#include <cuda_fp16.h>

#include "cuda/launch.cuh"
#include "cuda/prefill_attention/flash.h"
#include "cuda/prefill_attention/row_end.cuh"
#include "cuda/ptx.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kKeys = 64;
constexpr float kLog2e = 1.4426950408889634f;

template <int HD>
struct Tile {
  static constexpr int kM = HD <= 128 ? 2 : 1;  ///< 16-row tiles a warp
  static constexpr int kRows = kWarps * 16 * kM;
  static constexpr int kPitch = HD + 8;
  static constexpr int kQueryBytes = kRows * kPitch * 2;
  static constexpr int kTileBytes = kKeys * kPitch * 2;
  static constexpr int kBytes = kQueryBytes + 4 * kTileBytes;
};

template <int HD>
__global__ void __launch_bounds__(kThreads) flash_kernel(const __grid_constant__ FlashArgs a) {
  using T = Tile<HD>;
  TQ4_DYNAMIC_SHARED(unsigned char, shared);
  const int sequence = blockIdx.z, head = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int dim = a.head_dim, group = a.num_q_heads / a.num_kv_heads;
  const int q_begin = a.cu_q[sequence], q_len = a.cu_q[sequence + 1] - q_begin;
  const int rows = q_len * group,
            tile_index = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);  // long rows of the triangle first
  const int row0 = tile_index * T::kRows;
  if (row0 >= rows) return;
  const int kv_len = a.cu_k ? a.cu_k[sequence + 1] - a.cu_k[sequence] : q_len + (a.prefix_lens ? a.prefix_lens[sequence] : 0);
  const int offset = kv_len - q_len;  // position of query 0
  const int first_position = offset + row0 / group, last_position = offset + (min(row0 + T::kRows, rows) - 1) / group;
  const int kv_end = a.causal ? min(kv_len, last_position + 1) : kv_len;
  const int kv_begin = a.window > 0 ? max(0, first_position - a.window + 1) : 0;
  const int tile_begin = kv_begin / kKeys, tile_end = (kv_end + kKeys - 1) / kKeys;

  auto* query = reinterpret_cast<__half*>(shared);
  const auto q_index = [&](int row) {
    return (static_cast<std::int64_t>(q_begin + row / group) * a.num_q_heads + head * group + row % group) * dim;
  };
  for (int i = threadIdx.x; i < T::kRows * (HD / 8); i += kThreads) {
    const int r = i / (HD / 8), g = i % (HD / 8), row = row0 + r;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < rows && g * 8 < dim) {
      v = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(a.q) + q_index(row) + g * 8);
      if (a.dtype == static_cast<int>(DType::BF16)) {
        unsigned* w = &v.x;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          w[k] = bf16x2_to_half2(w[k]);
        }
      }
    }
    *reinterpret_cast<uint4*>(query + r * T::kPitch + g * 8) = v;
  }
  if (dim < HD) {  // columns past head_dim stay 0
    for (int i = threadIdx.x; i < 4 * T::kTileBytes / 16; i += kThreads)
      reinterpret_cast<uint4*>(shared + T::kQueryBytes)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }
  const std::int64_t base = (static_cast<std::int64_t>(sequence) * a.num_kv_heads + head) * a.capacity * dim;
  const int chunks = dim / 8;
  const auto issue = [&](int tile, int stage) {
    if (tile < tile_end) {
      const unsigned to = shared_address(shared + T::kQueryBytes + stage * 2 * T::kTileBytes);
      for (int i = threadIdx.x; i < kKeys * chunks; i += kThreads) {
        const int r = i / chunks, c = i - r * chunks, key = tile * kKeys + r;
        const std::int64_t at = base + static_cast<std::int64_t>(min(key, kv_len - 1)) * dim + c * 8;
        const int valid = key < kv_len ? 16 : 0;
        copy_async_16(to + r * T::kPitch * 2 + c * 16, a.k + at, valid);
        copy_async_16(to + T::kTileBytes + r * T::kPitch * 2 + c * 16, a.v + at, valid);
      }
    }
    copy_async_commit();
  };

  float out[T::kM][HD / 8][4];
  float maximum[T::kM][2], sum[T::kM][2], slope[T::kM][2];
  int position[T::kM][2];
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int n = 0; n < HD / 8; ++n) out[m][n][0] = out[m][n][1] = out[m][n][2] = out[m][n][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = min(row0 + (warp * T::kM + m) * 16 + (lane >> 2) + 8 * i, rows - 1);
      maximum[m][i] = -INFINITY;
      sum[m][i] = 0.0f;
      position[m][i] = offset + row / group;
      slope[m][i] = a.alibi_slopes ? a.alibi_slopes[head * group + row % group] : 0.0f;
    }
  }
  const bool plain = a.soft_cap == 0.0f && !a.alibi_slopes;
  const float scale = plain ? a.sm_scale * kLog2e : a.sm_scale;
  issue(tile_begin, 0);
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    const int stage = (tile - tile_begin) & 1;
    issue(tile + 1, stage ^ 1);
    copy_async_wait<1>();
    __syncthreads();
    const unsigned k_tile = shared_address(shared + T::kQueryBytes + stage * 2 * T::kTileBytes);
    const unsigned v_tile = k_tile + T::kTileBytes;
    float logits[T::kM][kKeys / 8][4];
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) logits[m][n][0] = logits[m][n][1] = logits[m][n][2] = logits[m][n][3] = 0.0f;
    }
    const unsigned q_address = shared_address(query + (warp * T::kM * 16 + (lane & 15)) * T::kPitch + (lane >> 4) * 8);
    const unsigned k_address = k_tile + (((lane & 7) + (lane >> 4) * 8) * T::kPitch + ((lane >> 3) & 1) * 8) * 2;
#pragma unroll
    for (int kk = 0; kk < HD / 16; ++kk) {
      unsigned qf[T::kM][4];
#pragma unroll
      for (int m = 0; m < T::kM; ++m) ldmatrix_x4(qf[m], q_address + m * 16 * T::kPitch * 2 + kk * 32);
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        unsigned kf[4];
        ldmatrix_x4(kf, k_address + n * 16 * T::kPitch * 2 + kk * 32);
#pragma unroll
        for (int m = 0; m < T::kM; ++m) {
          mma_16816(logits[m][2 * n], qf[m], kf[0], kf[1]);
          mma_16816(logits[m][2 * n + 1], qf[m], kf[2], kf[3]);
        }
      }
    }
    const int key0 = tile * kKeys;
    const bool edge =
        key0 + kKeys > kv_len || (a.causal && key0 + kKeys - 1 > first_position) || (a.window > 0 && key0 <= last_position - a.window);
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& v = logits[m][n][2 * i + j];
            v *= scale;
            const int key = key0 + n * 8 + 2 * (lane & 3) + j;
            if (!plain) {
              if (a.soft_cap > 0.0f) v = a.soft_cap * tanhf(v / a.soft_cap);
              v = fmaf(slope[m][i], static_cast<float>(key - position[m][i]), v) * kLog2e;
            }
            if (edge) {
              const bool seen = key < kv_len && (!a.causal || key <= position[m][i]) && (a.window == 0 || key > position[m][i] - a.window);
              if (!seen) v = -INFINITY;
            }
            largest = fmaxf(largest, v);
          }
        }
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float next = fmaxf(maximum[m][i], largest), anchor = next == -INFINITY ? 0.0f : next;
        const float alpha = exp2f(maximum[m][i] - anchor);
        maximum[m][i] = next;
        float total = 0.0f;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& v = logits[m][n][2 * i + j];
            v = exp2f(v - anchor);
            total += v;
          }
        }
        sum[m][i] = fmaf(sum[m][i], alpha, total);
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
          out[m][n][2 * i] *= alpha;
          out[m][n][2 * i + 1] *= alpha;
        }
      }
    }
    const unsigned v_address = v_tile + (((lane & 7) + ((lane >> 3) & 1) * 8) * T::kPitch + (lane >> 4) * 8) * 2;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      unsigned p[T::kM][4];
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
#pragma unroll
        for (int h = 0; h < 4; ++h) {  // (row, key half): (0, 0), (8, 0), (0, 8), (8, 8)
          p[m][h] = half2_bits(logits[m][2 * k + (h >> 1)][2 * (h & 1)], logits[m][2 * k + (h >> 1)][2 * (h & 1) + 1]);
        }
      }
#pragma unroll
      for (int n = 0; n < HD / 16; ++n) {
        unsigned vf[4];
        ldmatrix_x4_trans(vf, v_address + k * 16 * T::kPitch * 2 + n * 32);
#pragma unroll
        for (int m = 0; m < T::kM; ++m) {
          mma_16816(out[m][2 * n], p[m], vf[0], vf[1]);
          mma_16816(out[m][2 * n + 1], p[m], vf[2], vf[3]);
        }
      }
    }
    __syncthreads();
  }
  copy_async_wait<0>();
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row0 + (warp * T::kM + m) * 16 + (lane >> 2) + 8 * i;
      const RowEnd end = end_row(maximum[m][i], sum[m][i], a.sink_logits ? a.sink_logits + head * group + row % group : nullptr);
      if (row >= rows) continue;
      const std::int64_t at = q_index(row);
      if (a.lse && (lane & 3) == 0) a.lse[at / dim] = end.lse();
#pragma unroll
      for (int n = 0; n < HD / 8; ++n) {
        if (n * 8 < dim) {
          *reinterpret_cast<unsigned*>(static_cast<std::uint16_t*>(a.out) + at + n * 8 + 2 * (lane & 3)) =
              pack_pair(out[m][n][2 * i] * end.factor, out[m][n][2 * i + 1] * end.factor, a.dtype);
        }
      }
    }
  }
}

template <int HD>
void launch(const FlashArgs& a, const DeviceInfo& device, cudaStream_t stream) {
  using T = Tile<HD>;
  allow_shared(flash_kernel<HD>, T::kBytes, device.shared_bytes_per_block, "prefill");
  const std::int64_t rows = static_cast<std::int64_t>(a.max_q_len) * (a.num_q_heads / a.num_kv_heads);
  const dim3 grid(static_cast<unsigned>((rows + T::kRows - 1) / T::kRows), static_cast<unsigned>(a.num_kv_heads),
                  static_cast<unsigned>(a.num_seqs));
  launch_kernel("prefill", {grid, kThreads, T::kBytes, stream}, flash_kernel<HD>, a);
}

}  // namespace

void launch_flash(const FlashArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  if (args.head_dim <= 64) {
    launch<64>(args, device, stream);
  } else if (args.head_dim <= 128) {
    launch<128>(args, device, stream);
  } else {
    launch<256>(args, device, stream);
  }
}

}  // namespace tq4::gpu
