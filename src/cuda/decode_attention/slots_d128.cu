// Instantiations of the slots kernel at head_dim 128, for vLLM's presets: <head_dim, K bits, V bits, query rows, spread>.
#include "cuda/decode_attention/slots_instance.cuh"

namespace tq4::gpu::fused {
const SlotInstance kSlots128[] = {slots<128, 4, 4, 4, true>(),  slots<128, 4, 4, 8, true>(),  slots<128, 4, 4, 4, false>(),
                                  slots<128, 4, 4, 8, false>(), slots<128, 3, 4, 4, true>(),  slots<128, 3, 4, 8, true>(),
                                  slots<128, 3, 4, 4, false>(), slots<128, 3, 4, 8, false>(), slots<128, 3, 3, 4, true>(),
                                  slots<128, 3, 3, 8, true>(),  slots<128, 3, 3, 4, false>(), slots<128, 3, 3, 8, false>(),
                                  slots<128, 8, 4, 4, true>(),  slots<128, 8, 4, 8, true>(),  {}};
}
