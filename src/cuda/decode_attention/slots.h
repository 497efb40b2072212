// The fast decode path for vLLM's slots (Hopper): which calls it serves, its workspace, its launches.
#pragma once

#include <cstddef>
#include <string>

#include "tq4/gpu.h"

namespace tq4::gpu {

/// Whether the slots kernel serves this call; `why` (may be null) gets the reason when it does not.
bool slots_supported(const DeviceCodec& codec, const DecodeParams& params, std::string* why);
/// The beginning of the workspace that has to be zero before the first call, whatever its query rows, and is so after each.
std::size_t slots_kept_bytes(const DeviceCodec& codec);
std::size_t slots_workspace_bytes(const DeviceCodec& codec, const DecodeParams& params);
void slots_decode(const DeviceCodec& codec, const DecodeParams& params, Stream stream);

}  // namespace tq4::gpu
