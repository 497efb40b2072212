// The profiler's comparison with the CPU: float64 attention on what the device's planes or pages hold.
#pragma once

#include <vector>

#include "tq4/calibration.h"
#include "tq4/prefill.h"

namespace tq4::gpu {

/// Relative error of one sequence's first kv head's query heads. `table`: the sequence's blocks.
double check_decode(const DeviceCodec& codec, const DecodeParams& p, const std::vector<std::int32_t>& table, std::int32_t length,
                    const LayerCalibration& calibration);
/// Relative error of the last query of the first sequence (`length` tokens), first kv head's query heads; planes, causal.
double check_prefill(const DeviceCodec& codec, const PrefillParams& p, std::int64_t length, const LayerCalibration& calibration);

}  // namespace tq4::gpu
