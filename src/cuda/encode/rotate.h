// Which encodes and stores the tensor cores serve (rotate.cuh); the others take the kernels that repeat the CPU's sums (row.cuh).
#pragma once

#include "cuda/encode/row.h"

namespace tq4::gpu {

/// Whether rows of this codec at x, `token_stride` and `head_stride` elements apart, n tokens of `heads` heads, go there.
bool rotate_serves(const RowCodec& codec, const void* x, DType dtype, std::int64_t n, int heads, std::int64_t token_stride,
                   std::int64_t head_stride);

}  // namespace tq4::gpu
