// General decode attention, first launch: queries to the keys' rotated space in fp16, each divided by its largest coordinate, and the
// scalars a row needs later (q . centre, the sum of its coordinates). Four query rows of one kv head a block share the matrix they read.
#include <cuda_fp16.h>

#include "cuda/decode_attention/general.h"
#include "cuda/launch.cuh"
#include "cuda/transform.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {
namespace {

constexpr int kRows = 4, kThreads = 512;

__device__ __forceinline__ float warp_sum(float v) {
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o > 0; o /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

/// fp16 of row / amax by one warp; returns amax.
__device__ inline float write_normalised(const float* row, int dim, std::uint16_t* to, int lane) {
  float largest = 0.0f;
  for (int i = lane; i < dim; i += 32) largest = fmaxf(largest, fabsf(row[i]));
  largest = warp_max(largest);
  const float inverse = largest > 0.0f ? 1.0f / largest : 0.0f;
  for (int i = lane; i < dim; i += 32) reinterpret_cast<__half*>(to)[i] = __float2half_rn(row[i] * inverse);
  return largest;
}

__global__ void __launch_bounds__(kThreads) pre_kernel(const __grid_constant__ GeneralArgs a) {
  TQ4_DYNAMIC_SHARED(float, rows);  // [kRows][D] queries, [kRows][D] rotated, scratch of the product
  const int dim = a.head_dim, sequence = blockIdx.z, head = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int row0 = blockIdx.x * kRows, total = a.q_len * a.group;
  float* rotated = rows + kRows * dim;
  const auto q_row = [&](int row) {
    return (static_cast<std::int64_t>(sequence) * a.q_len + row / a.group) * a.num_q_heads + head * a.group + row % a.group;
  };
  for (int i = threadIdx.x; i < kRows * dim; i += kThreads) {
    const int row = row0 + i / dim;
    rows[i] = row < total ? load_element(a.q, static_cast<DType>(a.q_dtype), q_row(row) * dim + i % dim) : 0.0f;
  }
  RowTransform t = query_transform(a.k_tables, head, dim);
  t.identity = t.identity || a.q_rotated != 0;
  t.butterflies = t.butterflies && a.q_rotated == 0;
  block_transform_split<kRows>(t, rows, rotated, rotated + kRows * dim, dim, threadIdx.x, kThreads);

  const int row = row0 + warp;  // a warp a row
  if (warp >= kRows || row >= total) return;
  const std::int64_t at = q_row(row);
  float4 info = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  info.x = write_normalised(rotated + warp * dim, dim, a.q_rot + at * dim, lane) * a.sm_scale;
  if (a.q_exact) info.y = write_normalised(rows + warp * dim, dim, a.q_exact + at * dim, lane) * a.sm_scale;
  // q . centre. Centring before RoPE turns the first rope_dim coordinates with the position: only the others belong here.
  const float* centre = a.k_tables.rope_mu ? a.k_tables.rope_mu : a.q_rotated ? a.k_tables.centre_rotated : a.k_tables.centre;
  float dot = 0.0f, sum = 0.0f;
  for (int i = lane; i < dim; i += 32) {
    if (centre && i >= a.rope_dim) dot = fmaf(rows[warp * dim + i], centre[head * dim + i], dot);
    sum += rotated[warp * dim + i];
  }
  info.z = warp_sum(dot) * a.sm_scale;
  info.w = warp_sum(sum) * a.sm_scale;
  if (lane == 0) a.q_info[at] = info;
}

}  // namespace

void launch_general_pre(const GeneralArgs& args, cudaStream_t stream) {
  const int rows = args.q_len * args.group;
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(args.num_seqs));
  const int parts = split_parts(args.head_dim, kThreads);
  launch_kernel("decode (query rotation)",
                {grid, kThreads, static_cast<std::size_t>((2 + parts) * kRows * args.head_dim) * sizeof(float), stream}, pre_kernel, args);
}

}  // namespace tq4::gpu
