// Instantiations of the fused decode kernel at head_dim 64.
#include "cuda/decode_attention/fused_instance.cuh"

namespace tq4::gpu::fused {
const Instance kInstances64[] = {instance<64, 4, 4, 4>(), instance<64, 4, 4, 8>(), instance<64, 3, 3, 4>(), instance<64, 8, 4, 4>(), {}};
}
