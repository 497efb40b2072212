// Planes back to fp16 or bf16 rows of the original space on Hopper GPUs, at memory speed: see hopper_planes.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/encode/row.h"

namespace tq4::gpu {

struct PlanesBackArgs {
  RowCodec codec;
  EncodedIn in;
  std::int64_t rows;
  int heads;         ///< row i belongs to head i % heads (centres)
  int row_bits;      ///< bits a code takes in a row (4 for turboquant-vllm's nibbles)
  int nibbles_high;  ///< the even coordinate is in the high nibble
  void* out;         ///< [rows, D]
};
/// Whether launch_planes_back() serves the call: scalar codes of at most 4 bits, D = 64, 128, 256, one matrix, everything aligned to 16 bytes.
bool planes_back_serves(const PlanesBackArgs& args, DType out_dtype, const DeviceInfo& device);
void launch_planes_back(const char* what, const PlanesBackArgs& args, DType out_dtype, const DeviceInfo& device, cudaStream_t stream);

}  // namespace tq4::gpu
