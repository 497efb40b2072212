// Instantiations of the slots kernel at head_dim 256, for vLLM's presets: <head_dim, K bits, V bits, query rows, spread, warps>.
#include "cuda/decode_attention/slots_instance.cuh"

namespace tq4::gpu::fused {
const SlotInstance kSlots256[] = {slots<256, 4, 4, 4, true, 8>(), slots<256, 4, 4, 8, true, 8>(), slots<256, 4, 4, 8, false, 8>(),
                                  slots<256, 8, 4, 8, true, 8>(), slots<256, 4, 4, 4, true>(),    {}};
}
