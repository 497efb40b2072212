// A calibration as tensors and metadata: alone in a .tq4cal file, or inside of a container for the layers it holds.
#pragma once

#include <string>
#include <vector>

#include "io/sealed_file.h"
#include "tq4/calibration.h"

namespace tq4::io {

struct CalibrationTensors {
  std::vector<PlannedTensor> tensors;
  std::vector<const float*> data;  ///< into the calibration
};
/// Usage when a table's size does not fit its layer.
CalibrationTensors calibration_tensors(const Calibration& calibration);
std::string calibration_to_json(const Calibration& calibration);
/// From metadata entry "calibration" and the tensors it promises.
Calibration read_calibration_tensors(SealedFile& file);

}  // namespace tq4::io
