// Instances of the Hopper prefill attention, and which calls it serves.
#include "cuda/prefill_attention/hopper_flash.cuh"

namespace tq4::gpu {

const char* hopper_flash_lacks(const FlashArgs& a, const DeviceInfo& device) {
  if (device.compute_major != 9) return "a Hopper GPU";
  if (a.head_dim != 64 && a.head_dim != 128) return "head_dim 64 or 128";
  if (a.soft_cap != 0.0f || a.alibi_slopes) return "logits without soft cap and ALiBi";
  if (!(a.sm_scale > 0.0f)) return "a positive sm_scale";
  return nullptr;
}

void launch_hopper_flash(const HopperFlashArgs& args, const DeviceInfo& device, cudaStream_t stream) {
  if (args.tiles.k8) {
    launch_hopper<128, true, true>(args, device, stream);
  } else if (args.flash.head_dim == 128) {
    launch_hopper<128, false, true>(args, device, stream);
  } else {
    launch_hopper<64, false, true>(args, device, stream);
  }
}

}  // namespace tq4::gpu
