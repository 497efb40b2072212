// The fast decode path (Hopper). decode.cpp asks fused_supported first and takes the general path otherwise.
#pragma once

#include <cstddef>
#include <string>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Whether the fused kernel serves this call; `why` (may be null) gets the reason when it does not.
bool fused_supported(const DeviceCodec& codec, const DecodeParams& params, std::string* why);
/// Thread blocks a cluster when each (sequence, kv head) of the call is the work of one cluster; 0 when they share the line of all tiles.
int fused_cluster_blocks(const DeviceCodec& codec, const DecodeParams& params);
std::size_t fused_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params);
void fused_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream);

}  // namespace tq4::gpu
