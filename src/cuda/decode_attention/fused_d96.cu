// Instantiations of the fused decode kernel at head_dim 96. Values of 3 bits do not fit native pages there (tq4/layout.h).
#include "cuda/decode_attention/fused_instance.cuh"

namespace tq4::gpu::fused {
const Instance kInstances96[] = {instance<96, 4, 4, 4>(),       instance<96, 4, 4, 8>(), instance<96, 4, 4, 16>(),
                                 instance<96, 4, 4, 4, true>(), instance<96, 8, 4, 4>(), {}};
}
