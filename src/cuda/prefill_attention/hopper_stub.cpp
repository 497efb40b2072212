// Stands in for the Hopper prefill attention where it is not built: every call takes the general path.
#include "cuda/check.h"
#include "cuda/prefill_attention/hopper.h"

namespace tq4::gpu {

const char* hopper_flash_lacks(const FlashArgs&, const DeviceInfo&) { return "a build with the Hopper kernels"; }
void launch_hopper_flash(const HopperFlashArgs&, const DeviceInfo&, cudaStream_t) {
  refuse("the Hopper kernels are not part of this build", "prefill");
}

}  // namespace tq4::gpu
