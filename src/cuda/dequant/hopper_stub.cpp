// Stands in for hopper_planes.cu where the build has no code for sm_90a.
#include "cuda/dequant/hopper_planes.h"

namespace tq4::gpu {

bool planes_back_serves(const PlanesBackArgs&, DType, const DeviceInfo&) { return false; }
void launch_planes_back(const char*, const PlanesBackArgs&, DType, const DeviceInfo&, cudaStream_t) {}

}  // namespace tq4::gpu
