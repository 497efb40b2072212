// The fast decode path (Hopper). decode.cpp asks fused_supported first and takes the general path otherwise.
#pragma once

#include <cstddef>
#include <string>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Whether the fused kernel serves this call; `why` (may be null) gets the reason when it does not.
bool fused_supported(const DeviceCodec& codec, const DecodeParams& params, std::string* why);
std::size_t fused_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params);
void fused_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream);

}  // namespace tq4::gpu
