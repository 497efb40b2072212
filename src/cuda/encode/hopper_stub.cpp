// Stands in for hopper_wide.cu where the build has no code for sm_90a.
#include "cuda/encode/hopper_wide.h"

namespace tq4::gpu {

bool wide_rows_serve(const WideRowsArgs&, const DeviceInfo&) { return false; }
void launch_wide_rows(const char*, const WideRowsArgs&, const DeviceInfo&, cudaStream_t) {}

}  // namespace tq4::gpu
