// Keys, values and queries of one layer of a dump, as the profiler takes them (fp16, tokens first).
#pragma once

#include <string>

#include "tq4/calibration.h"
#include "tq4/dump.h"
#include "tq4/profile.h"

namespace tq4::cli {

struct LayerData {
  LayerInfo layer;
  gpu::ProfileData data;
  Calibration calibration;  ///< what data.calibration points into
};
/// Layer number `layer` of a dump, or its middle one where `layer` is negative; `calibration`: a .tq4cal file of the same model, or empty.
/// Throws Usage for a layer that is not there, BadInput for values that fp16 cannot hold or a calibration of another model.
void load_layer_data(const std::string& dump, int layer, const std::string& calibration, LayerData& out);

}  // namespace tq4::cli
