// General decode attention, last launch: parts of the context become one output by log-sum-exp, the compressed share is rotated back and
// gets its centre, the exact share (already in original space) is added, a learned sink logit takes its share of the sum.
#include <cuda_fp16.h>

#include "cuda/decode_attention/general.h"
#include "cuda/launch.cuh"
#include "cuda/transform.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {
namespace {

constexpr int kRows = 4, kThreads = 512;
constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float warp_sum(float v) {
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o > 0; o /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ GeneralArgs a) {
  // Weights [kRows][parts, to a multiple of 4], compressed [kRows][D], rotated back [kRows][D], scratch.
  TQ4_DYNAMIC_SHARED(float, memory);
  __shared__ float compressed_share[kRows];
  const int dim = a.head_dim, sequence = blockIdx.z, head = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int row0 = blockIdx.x * kRows, total = a.q_len * a.group, part_pitch = (a.parts + 3) & ~3;
  const int rotated_parts = a.exact.rotated ? a.parts : a.splits;  // these share the space of the codes
  float *weights = memory, *compressed = weights + kRows * part_pitch, *back = compressed + kRows * dim;
  const auto q_row = [&](int row) {
    return (static_cast<std::int64_t>(sequence) * a.q_len + row / a.group) * a.num_q_heads + head * a.group + row % a.group;
  };

  // A warp a row: weights of the parts.
  const int row = row0 + warp;
  float share = 0.0f;
  if (warp < kRows && row < total) {
    const std::int64_t at = q_row(row);
    const float sink = a.sink_logits ? a.sink_logits[head * a.group + row % a.group] : -INFINITY;
    float m = sink;
    for (int p = lane; p < a.parts; p += 32) m = fmaxf(m, a.part_ml[at * a.parts + p].x);
    m = warp_max(m);
    const float base = m == -INFINITY ? 0.0f : m;
    float l = 0.0f;
    for (int p = lane; p < a.parts; p += 32) {
      const float2 ml = a.part_ml[at * a.parts + p];
      const float weight = exp2f((ml.x - base) * kLog2e);
      weights[warp * part_pitch + p] = weight;
      l += ml.y * weight;
      if (p < rotated_parts) share += ml.y * weight;
    }
    l = warp_sum(l) + (a.sink_logits ? exp2f((sink - base) * kLog2e) : 0.0f);
    share = warp_sum(share);
    const float inverse = l > 0.0f ? 1.0f / l : 0.0f;
    for (int p = lane; p < a.parts; p += 32) weights[warp * part_pitch + p] *= inverse;
    share *= inverse;
    if (lane == 0 && a.lse) a.lse[at] = l > 0.0f ? base + logf(l) : -INFINITY;
  }
  if (lane == 0 && warp < kRows) compressed_share[warp] = share;
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * dim; i += kThreads) {
    const int r = i / dim, d = i % dim;
    float sum = 0.0f;
    if (row0 + r < total) {
      const std::int64_t at = q_row(row0 + r) * a.parts;
#pragma unroll 8
      for (int p = 0; p < rotated_parts; ++p) {
        const float weight = weights[r * part_pitch + p];
        const float value = weight != 0.0f ? a.part_out[(at + p) * dim + d] : 0.0f;  // an empty part holds no output
        sum = fmaf(weight, value, sum);
      }
    }
    compressed[i] = sum;
  }
  RowTransform t = inverse_transform(a.v_tables, head, dim);
  t.identity = t.identity || a.out_rotated != 0;
  t.butterflies = t.butterflies && a.out_rotated == 0;
  block_transform_split<kRows>(t, compressed, back, back + kRows * dim, dim, threadIdx.x, kThreads);
  for (int i = threadIdx.x; i < kRows * dim; i += kThreads) {
    const int r = i / dim, d = i % dim;
    if (row0 + r >= total) continue;
    const std::int64_t at = q_row(row0 + r);
    float value = back[i];
    if (a.v_tables.centre && !a.out_rotated) value = fmaf(compressed_share[r], a.v_tables.centre[head * dim + d], value);
    if (a.parts > rotated_parts) {
      const float weight = weights[r * part_pitch + a.splits];
      if (weight != 0.0f) value = fmaf(weight, a.part_out[(at * a.parts + a.splits) * dim + d], value);
    }
    store_element(a.out, static_cast<DType>(a.q_dtype), at * dim + d, value);
  }
}

}  // namespace

void launch_general_merge(const GeneralArgs& args, cudaStream_t stream) {
  const int rows = args.q_len * args.group;
  const dim3 grid(static_cast<unsigned>((rows + kRows - 1) / kRows), static_cast<unsigned>(args.num_kv_heads),
                  static_cast<unsigned>(args.num_seqs));
  const std::size_t shared =
      static_cast<std::size_t>(kRows * ((args.parts + 3) & ~3) + (2 + split_parts(args.head_dim, kThreads)) * kRows * args.head_dim) *
      sizeof(float);
  launch_kernel("decode (merge)", {grid, kThreads, shared, stream}, merge_kernel, args);
}

}  // namespace tq4::gpu
