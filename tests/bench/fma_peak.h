// The roof of the dense rotation: fused multiply-adds a second of one core, from registers alone.
#pragma once

#include <cstdint>

namespace tq4::bench {

/// Runs about `count` fp32 fused multiply-adds with the widest vectors of this processor in independent chains; returns how many it ran.
std::int64_t run_fmas(std::int64_t count);

}  // namespace tq4::bench
