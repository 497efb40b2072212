// Small kernels of the profiler: random data, a reading kernel, an empty one. Launchers only, so that profile.cpp stays plain C++.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tq4::gpu {

/// Gaussian fp16 numbers of deviation 1, from a counter.
void fill_gaussian(std::uint16_t* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream);
/// to[i] += rows[i % period] (fp16, fp32).
void add_rows(std::uint16_t* to, std::int64_t count, const float* rows, std::int64_t period, cudaStream_t stream);
/// Random finite E4M3 bytes.
void fill_e4m3(std::uint8_t* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream);
/// Reads `bytes` (a multiple of 16) and writes nothing that depends on them but by chance.
void read_all(const void* from, std::size_t bytes, std::uint32_t* sink, int sm_count, cudaStream_t stream);
void empty_launch(cudaStream_t stream);

}  // namespace tq4::gpu
