// See profile_kernels.h.
#include <cuda_fp16.h>

#include "cuda/launch.cuh"
#include "cuda/profile_kernels.h"

namespace tq4::gpu {
namespace {

__device__ __forceinline__ std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

__global__ void gaussian_kernel(__half2* to, std::int64_t pairs, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pairs; i += step) {
    const std::uint64_t r = mix(seed * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(i));
    const float u = (static_cast<float>(static_cast<unsigned>(r) >> 8) + 0.5f) * 0x1p-24f,
                v = static_cast<float>(static_cast<unsigned>(r >> 32)) * 0x1p-31f;
    const float radius = sqrtf(-2.0f * logf(u));
    float s, c;
    sincospif(v, &s, &c);
    to[i] = __floats2half2_rn(radius * c, radius * s);
  }
}

__global__ void add_rows_kernel(__half* to, std::int64_t count, const float* rows, std::int64_t period) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    to[i] = __float2half_rn(__half2float(to[i]) + rows[i % period]);
}

__global__ void e4m3_kernel(std::uint8_t* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const unsigned r = static_cast<unsigned>(mix(seed * 0x9e3779b97f4a7c15ull + static_cast<std::uint64_t>(i)));
    to[i] = static_cast<std::uint8_t>((r & 0x80u) | (0x28u + (r >> 8) % 0x18u));  // 0.0625 .. 3.75, both signs
  }
}

__global__ void __launch_bounds__(512) read_kernel(const uint4* from, std::int64_t count, std::uint32_t* sink) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  std::uint32_t sum = 0;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < count; i += step) {
    const uint4 v = __ldcs(from + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x9e3779b9u) *sink = sum;
}

__global__ void empty_kernel() {}

}  // namespace

void fill_gaussian(std::uint16_t* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  launch_kernel("fill_gaussian", {2048, 256, 0, stream}, gaussian_kernel, reinterpret_cast<__half2*>(to), count / 2, seed);
}
void add_rows(std::uint16_t* to, std::int64_t count, const float* rows, std::int64_t period, cudaStream_t stream) {
  launch_kernel("add_rows", {2048, 256, 0, stream}, add_rows_kernel, reinterpret_cast<__half*>(to), count, rows, period);
}
void fill_e4m3(std::uint8_t* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  launch_kernel("fill_e4m3", {2048, 256, 0, stream}, e4m3_kernel, to, count, seed);
}
void read_all(const void* from, std::size_t bytes, std::uint32_t* sink, int sm_count, cudaStream_t stream) {
  launch_kernel("read_all", {static_cast<unsigned>(sm_count * 4), 512, 0, stream}, read_kernel, static_cast<const uint4*>(from),
                static_cast<std::int64_t>(bytes / 16), sink);
}
void empty_launch(cudaStream_t stream) { launch_kernel("empty_launch", {1, 32, 0, stream}, empty_kernel); }

}  // namespace tq4::gpu
