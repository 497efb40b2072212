// Instantiations of the slots kernel at head_dim 64, for vLLM's presets: <head_dim, K bits, V bits, query rows, spread>. Three-bit values end
// within a byte here: they take the general path.
#include "cuda/decode_attention/slots_instance.cuh"

namespace tq4::gpu::fused {
const SlotInstance kSlots64[] = {
    slots<64, 4, 4, 8, true>(), slots<64, 4, 4, 8, false>(), slots<64, 3, 4, 8, true>(), slots<64, 8, 4, 8, true>(), {}};
}
