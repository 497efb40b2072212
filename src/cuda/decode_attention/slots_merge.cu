// The parts that the slots kernel left, merged by log-sum-exp: a thread block a query row. Values of these layouts are not rotated, so that the merged
// row is the output.
#include "cuda/decode_attention/fused_plan.cuh"
#include "cuda/decode_attention/slots_launch.h"
#include "cuda/launch.cuh"
#include "cuda/views.cuh"

namespace tq4::gpu::fused {
namespace {

constexpr int kMaxThreads = 1024;

__global__ void __launch_bounds__(kMaxThreads) slots_merge_kernel(const __grid_constant__ SlotParams p, int dim) {
  __shared__ float4 sums[kMaxThreads];
  const int row = blockIdx.x, seq = blockIdx.y, lane = threadIdx.x % 32, rows = p.group * p.q_len, all_rows = gridDim.x;
  wait_for_previous_kernels();
  launch_dependents();

  // Where the sequence lies on the line, and with it its parts: make_plan's arithmetic.
  int before = 0, total = 0;
  for (int b = lane; b < p.num_seqs; b += 32) {
    const int units = Tokens(p, __ldg(p.seq_lens + b)).units();
    total += units;
    if (b < seq) before += units;
  }
  total = __reduce_add_sync(~0u, total);
  before = __reduce_add_sync(~0u, before);
  const int length = divide(total + p.blocks - 1, p.blocks), units = Tokens(p, __ldg(p.seq_lens + seq)).units();
  const int first = divide(before, length), parts = (divide(before + units - 1, length) - first + 1) * p.groups;
  const std::int64_t base = (std::int64_t)(seq + first) * p.groups;
  const auto at = [&](int part) { return (base + part) * all_rows + row; };

  float top = -1e30f, sum = 0.f;  // every warp by itself
  for (int i = lane; i < parts; i += 32) top = fmaxf(top, __ldcg(p.partial_sums + at(i)).x);
  for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
  for (int i = lane; i < parts; i += 32) {
    const float2 ml = __ldcg(p.partial_sums + at(i));
    sum += ml.y * exp2_fast(ml.x - top);
  }
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);

  const int lanes = dim / 4, slots = blockDim.x / lanes, slot = threadIdx.x / lanes, column = threadIdx.x % lanes;
  float4 out = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
  for (int i = slot; i < parts; i += slots) {
    const float w = exp2_fast(__ldcg(p.partial_sums + at(i)).x - top);
    const float4 v = __ldcg(reinterpret_cast<const float4*>(p.partial + at(i) * dim) + column);
    out.x += w * v.x, out.y += w * v.y, out.z += w * v.z, out.w += w * v.w;
  }
  sums[threadIdx.x] = out;
  __syncthreads();
  const int head = row / rows, r = row % rows, token = r / p.group;
  const std::int64_t to = ((std::int64_t)seq * p.q_len + token) * (p.heads * p.group) + head * p.group + r % p.group;
  if (slot == 0) {
    for (int i = 1; i < slots; ++i) {
      const float4 v = sums[i * lanes + column];
      out.x += v.x, out.y += v.y, out.z += v.z, out.w += v.w;
    }
    const float unit = sum > 0.f ? 1.f / sum : 0.f;
    const DType dtype = p.q_is_bf16 ? DType::BF16 : DType::F16;
    const std::int64_t element = to * dim + 4 * column;
    store_element(p.out, dtype, element, out.x * unit);
    store_element(p.out, dtype, element + 1, out.y * unit);
    store_element(p.out, dtype, element + 2, out.z * unit);
    store_element(p.out, dtype, element + 3, out.w * unit);
  }
  if (threadIdx.x == 0 && p.lse) p.lse[to] = sum > 0.f ? (top + log2f(sum)) * 0.69314718056f : -INFINITY;
}

}  // namespace

void launch_slots_merge(const SlotParams& params, int head_dim, Stream stream) {
  const int parts = (params.blocks / params.num_seqs + 2) * params.groups;  // of a row, about
  launch_kernel_early("decode (slots, merge)",
                      {dim3(static_cast<unsigned>(params.heads * params.group * params.q_len), static_cast<unsigned>(params.num_seqs)),
                       parts > 64 ? kMaxThreads : 256u, 0, static_cast<cudaStream_t>(stream)},
                      slots_merge_kernel, params, head_dim);
}

}  // namespace tq4::gpu::fused
