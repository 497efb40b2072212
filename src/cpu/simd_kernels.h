// The SIMD tables this processor can run, for tests and benchmarks that want to name one; codecs take the best (simd_kernels()).
#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace tq4::cpu {

/// Best first; empty where the processor has none of the targets that are built.
const std::vector<const Kernels*>& supported_simd_kernels();

}  // namespace tq4::cpu
