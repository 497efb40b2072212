// Stands in for src/cuda/rows_ptx.cuh in builds for the emulator.
#pragma once

#include "cuda/wgmma.cuh"

namespace tq4::gpu {

inline void mma_k8(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t b0) {
  emulated::MmaOperand o{c, {a0, a1, 0, 0}, {b0, 0}};
  emulator::meet("mma.m16n8k8", ~0u, &o, emulated::mma_work<emulated::half_value>);
}
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
