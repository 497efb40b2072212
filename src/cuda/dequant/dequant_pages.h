// dequant_pages() for the prefill attention of Hopper GPUs.
#pragma once

#include "tq4/gpu.h"

namespace tq4::gpu {

/// dequant_pages() to fp16 in the original space, straight to the tiles of prefill_attention/hopper.h; max_seq_len is a multiple of their rows. False, and
/// nothing is done, where the tensor cores do not serve the codecs. Rows from a sequence's length on are left alone.
bool dequant_pages_to_tiles(const DeviceCodec& codec, const DequantPagesParams& params, Stream stream);

}  // namespace tq4::gpu
