// One side's codec as the encode, store and dequant kernels take it: everything the scalar reference of the CPU knows, as a plain struct.
#pragma once

#include <cstdint>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Cell of z: bits 16 to 22 of 3 + z times this, which leaves cell 127 free (code_table.cuh).
constexpr float kCodeCellScale = 0.984f;
/// A cell's word that makes code 0 of what is no number (its bits are 0x7fffffff).
constexpr std::uint32_t kNoNumberCell = 0x80000001u;

struct RowCodec {
  int kind = 0;           ///< CodeKind
  int dim = 0, bits = 0;  ///< bits of a code (Mixed: the lower; 8 for Fp8, 16 for Fp16)
  int outliers = 0;       ///< Mixed: coordinates 0 .. outliers-1 take one bit more
  int code_bytes = 0;
  int scale_rule = 0, scale_f16 = 0, fp8 = 0, norm_correction = 0;
  int peer_norm = 0;  ///< turboquant-vllm's way of summing |x| (cpu/codec_run.cpp)
  int has_scale = 0, has_zero = 0, has_signs = 0;
  int rope_dim = 0;
  SideTables t;
};

RowCodec row_codec(const DeviceCodec& codec, Side side);
/// Dynamic shared memory for the tables of a side, in bytes (load_tables in row.cuh).
int table_bytes(const RowCodec& codec);

}  // namespace tq4::gpu
