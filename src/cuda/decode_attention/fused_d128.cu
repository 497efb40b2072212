// Instantiations of the fused decode kernel at head_dim 128, the shape most served models have: <head_dim, K bits, V bits, query rows>.
#include "cuda/decode_attention/fused_instance.cuh"

namespace tq4::gpu::fused {
const Instance kInstances128[] = {instance<128, 4, 4, 4>(),
                                  instance<128, 4, 4, 8>(),
                                  instance<128, 4, 4, 16>(),
                                  instance<128, 4, 3, 4>(),
                                  instance<128, 4, 3, 8>(),
                                  instance<128, 3, 3, 4>(),
                                  instance<128, 3, 3, 8>(),
                                  instance<128, 2, 2, 4>(),
                                  instance<128, 8, 4, 4>(),
                                  instance<128, 8, 4, 8>(),
                                  {}};
}
