// Instantiations of the fused decode kernel at head_dim 256. Other codecs have no room for a ring and a state in it: they take the general path.
#include "cuda/decode_attention/fused_instance.cuh"

namespace tq4::gpu::fused {
const Instance kInstances256[] = {instance<256, 4, 4, 4>(), instance<256, 4, 4, 8>(), instance<256, 3, 3, 4>(), {}};
}
