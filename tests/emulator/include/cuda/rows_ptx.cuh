// Stands in for src/cuda/rows_ptx.cuh in builds for the emulator.
#pragma once

#include "cuda/wgmma.cuh"

namespace tq4::gpu {

template <class T>
T* opaque_pointer(T* p) {
  return p;
}

inline void prefetch_l2(const void*) {}
inline void prefetch_l2_bulk(const void*, std::uint32_t) {}
inline void wgmma_bf16_rows_rows(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  emulated::wgmma_issue({d, nullptr, a, b, 128, add, false, false, true});
}
template <int N>
void wgmma_bf16_registers_rows(float (&d)[N], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  emulated::wgmma_issue({d, a, 0, b, 2 * N, add, false, false, true});
}

}  // namespace tq4::gpu
