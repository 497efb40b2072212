// encode of many fp16 rows of 256 coordinates turned by a dense matrix, on Hopper GPUs: see hopper_wide.cu.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/encode/row.h"

namespace tq4::gpu {

struct WideRowsArgs {
  RowCodec codec;
  const void* x;      ///< fp16 [rows, 256], aligned to 16 bytes as are codes
  std::int64_t rows;  ///< below 2^31 - 2^20
  EncodedOut out;
};
/// Whether launch_wide_rows() serves the call: one orthogonal matrix for all heads, scalar codes of at most 4 bits, no centre, and rows enough to fill the device.
bool wide_rows_serve(const WideRowsArgs& args, const DeviceInfo& device);
void launch_wide_rows(const char* what, const WideRowsArgs& args, const DeviceInfo& device, cudaStream_t stream);

}  // namespace tq4::gpu
