// How a row of attention ends, in both prefill kernels: lanes' sums added, the sink logit's share, the factor of the output, the log-sum-exp, and
// pairs of coordinates as they go out.
#pragma once

#include <cuda_fp16.h>

#include "cuda/ptx.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu {

struct RowEnd {
  float top, sum;  ///< logits are at most `top` (times log2(e)); sum of 2^(logit - top)
  float factor;    ///< of the weighted values
  __device__ __forceinline__ float lse() const { return sum > 0.0f ? (top + log2f(sum)) * 0.6931471805599453f : -INFINITY; }
};
/// `sum`: of the lane's keys; the four lanes of a row call together. sink_logit: the row's, or null.
__device__ __forceinline__ RowEnd end_row(float top, float sum, const float* sink_logit) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  float weight = 1.0f;
  if (sink_logit) {
    const float sink = *sink_logit * 1.4426950408889634f, higher = fmaxf(top, sink);
    weight = exp2f(top - higher);
    sum = fmaf(sum, weight, exp2f(sink - higher));
    top = higher;
  }
  return {top, sum, sum > 0.0f ? weight / sum : 0.0f};
}

__device__ __forceinline__ std::uint32_t pack_pair(float x, float y, int dtype) {
  return dtype == static_cast<int>(DType::BF16) ? bf16x2_bits(x, y) : half2_bits(x, y);
}
/// Two bf16 as two fp16.
__device__ __forceinline__ std::uint32_t bf16x2_to_half2(std::uint32_t v) {
  return half2_bits(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

}  // namespace tq4::gpu
