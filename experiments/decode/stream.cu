// What reading alone costs: thread blocks stream the tiles of a decode step (2,048 B of codes and 64 B of scales of one kv head and 16 tokens) exactly as
// the fused kernel does, 16 warps with rings of 4 stages, and compute nothing. No decode kernel that reads tiles in such an order is faster. Orders:
//   head: the fused kernel's line, by kv head, then sequence, then tile; a warp takes a run of it
//   page: a block takes a run of pages, a warp one kv head of half of them
//   side by side: the same, but the two warps of a head take pages in turn, so that the 8 heads of a page are read at about the same time
// Pages are permuted or in order; 8 kv heads, head_dim 128, 4 bits, 32 sequences. Launches follow each other without early start.
//   nvcc -O3 -std=c++20 -gencode arch=compute_90a,code=sm_90a --expt-relaxed-constexpr -I src -o stream experiments/decode/stream.cu && ./stream
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/ptx.cuh"

namespace {

using namespace tq4::gpu;

constexpr int kHeads = 8, kCodes = 2048, kScales = 64, kSlot = kCodes + kScales, kStages = 4, kWarps = 16, kSequences = 32;
constexpr int kShared = 1024 + kWarps * kStages * kSlot;
enum class Order { Head, Page, SideBySide };

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "stream: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

/// pages [pages][heads' codes, heads' scales]; block_table [kSequences * tiles].
__global__ void __launch_bounds__(kWarps * 32, 1)
    stream(const std::uint8_t* pages, const int* __restrict__ block_table, int tiles, Order order, std::uint32_t* out) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = kSequences * tiles;
  const std::uint32_t bars = shared_address(shared) + warp * kStages * 8, ring = shared_address(shared) + 1024 + warp * kStages * kSlot;
  if (lane < kStages) mbarrier_init(bars + lane * 8);
  fence_mbarrier_init();
  __syncwarp();
  const std::uint64_t policy = stream_policy();
  const int units = order == Order::Head ? kHeads * row : row, length = (units + gridDim.x - 1) / gridDim.x;
  const int begin = blockIdx.x * length, n = min(begin + length, units) - begin;
  int pos = begin + warp % 2, end = begin + n, step = 2, head = warp / 2;
  if (order == Order::Head) pos = begin + n * warp / kWarps, end = begin + n * (warp + 1) / kWarps, step = 1;
  if (order == Order::Page) pos = begin + n * (warp % 2) / 2, end = begin + n * (warp % 2 + 1) / 2, step = 1;
  const int count = max(0, (end - pos + step - 1) / step);
  const auto page_of = [&](int k) { return k < count ? __ldg(block_table + (pos + k * step) % row) : 0; };
  int ids = 0, next = page_of(lane), asked = 0;
  const auto ask = [&](int stage) {
    if (asked % 32 == 0) {
      ids = next;
      next = page_of(asked + 32 + lane);
    }
    const int page = __shfl_sync(~0u, ids, asked % 32), h = order == Order::Head ? (pos + asked) / row : head;
    const std::uint8_t* at = pages + static_cast<std::size_t>(page) * kHeads * kSlot;
    bulk_load<kCodes, kScales>(ring + stage * kSlot, at + h * kCodes, at + kHeads * kCodes + h * kScales, bars + stage * 8, policy);
    ++asked;
  };
  for (int i = 0; i < kStages && asked < count; ++i) ask(i);
  std::uint32_t sum = 0, parity = 0;
  for (int k = 0, stage = 0; k < count; ++k) {
    mbarrier_wait(bars + stage * 8, parity);
    sum ^= lds32(ring + stage * kSlot + lane * 4);
    __syncwarp();
    if (asked < count) ask(stage);
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  if (sum == 0x12345678) *out = sum;  // keeps the reads
}

__global__ void fill(uint4* to, std::size_t n) {
  for (std::size_t i = blockIdx.x * std::size_t{blockDim.x} + threadIdx.x; i < n; i += std::size_t{gridDim.x} * blockDim.x)
    to[i] = make_uint4(i, i * 3, i * 7, i * 11);
}
/// The ceiling of the decode benchmarks: all of memory once, in order.
__global__ void read(const uint4* from, std::size_t n, std::uint32_t* out) {
  std::uint32_t sum = 0;
  constexpr int kEach = 8;
  const std::size_t tile = std::size_t{blockDim.x} * kEach;
  for (std::size_t b = blockIdx.x * tile; b + tile <= n; b += gridDim.x * tile) {
    uint4 v[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) v[i] = __ldcs(from + b + threadIdx.x + i * std::size_t{blockDim.x});
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
  }
  if (sum == 0x12345678) *out = sum;
}

/// Median time of one of `run`'s launches in microseconds.
template <class Run>
float median(int launches, Run&& run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 15; ++i) {
    check(cudaEventRecord(begin));
    for (int l = 0; l < launches; ++l) run(l);
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms;
    check(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms * 1e3f / launches);
  }
  check(cudaGetLastError());
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  constexpr int kCaches = 4, kTiles = 2048;  // caches in turn: none is in L2 when it is read
  constexpr std::size_t kPages = std::size_t{kSequences} * kTiles, kBytes = kPages * kHeads * kSlot;
  std::uint8_t* caches[kCaches];
  for (auto& cache : caches) {
    check(cudaMalloc(&cache, kBytes));
    fill<<<1024, 512>>>(reinterpret_cast<uint4*>(cache), kBytes / 16);
  }
  std::uint32_t* out;
  check(cudaMalloc(&out, 4));
  std::vector<int> table(kPages);
  std::iota(table.begin(), table.end(), 0);
  int* tables[2];
  for (int i = 0; i < 2; ++i) {
    if (i == 1) std::shuffle(table.begin(), table.end(), std::mt19937(3));
    check(cudaMalloc(&tables[i], kPages * sizeof(int)));
    check(cudaMemcpy(tables[i], table.data(), kPages * sizeof(int), cudaMemcpyHostToDevice));
  }
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  check(cudaFuncSetAttribute(stream, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const float linear = median(
      kCaches, [&](int l) { read<<<device.multiProcessorCount * 8, 512>>>(reinterpret_cast<const uint4*>(caches[l]), kBytes / 16, out); });
  std::printf("%s\nin order, all of it: %.1f us, %.0f GB/s\n", device.name, linear, kBytes / linear / 1e3);
  for (const auto& [order, name] : {std::pair{Order::Head, "head"}, {Order::Page, "page"}, {Order::SideBySide, "side by side"}})
    for (int permuted : {0, 1})
      for (int tiles : {512, kTiles}) {
        const float us = median(kCaches, [&](int l) {
          stream<<<device.multiProcessorCount, kWarps * 32, kShared>>>(caches[l], tables[permuted], tiles, order, out);
        });
        const double bytes = double(kSequences) * tiles * kHeads * kSlot;
        std::printf("%-12s pages %s, 32 x %5d tokens: %6.1f us, %.0f GB/s, %.1f%% of in order\n", name, permuted ? "permuted" : "in order",
                    tiles * 16, us, bytes / us / 1e3, 100 * bytes / us / (kBytes / linear));
      }
}
