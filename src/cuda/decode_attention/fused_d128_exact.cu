// Instantiations of the fused decode kernel at head_dim 128 with exact tokens (sinks and a recent window) beside the compressed ones.
#include "cuda/decode_attention/fused_instance.cuh"

namespace tq4::gpu::fused {
const Instance kInstances128Exact[] = {
    instance<128, 4, 4, 4, true>(), instance<128, 4, 4, 8, true>(), instance<128, 4, 3, 4, true>(), instance<128, 3, 3, 4, true>(), {}};
}
