// What ptx.cuh and wgmma.cuh are, for instructions that only the kernels of many rows need (encode, store): apart from those, so that the others are not
// compiled again for them. It has a twin for the host in tests/emulator/include, too.
#pragma once

#include <cstdint>

#include "cuda/wgmma.cuh"

namespace tq4::gpu {

/// p, which the compiler must keep in registers and cannot compute again.
template <class T>
__device__ __forceinline__ T* opaque_pointer(T* p) {
  asm volatile("" : "+l"(p));
  return p;
}

/// The 128 bytes around p are asked for from the second-level cache's side.
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/// `bytes` (a multiple of 16) from p on (aligned to 16) likewise, by one thread. Nothing on GPUs older than sm_90.
__device__ __forceinline__ void prefetch_l2_bulk(const void* p, std::uint32_t bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

/// wgmma_rows_rows() and wgmma_registers_rows() of bf16.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TQ4_FOUR(d, i) "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3])
#define TQ4_SIXTEEN(d, i) TQ4_FOUR(d, i), TQ4_FOUR(d, (i) + 4), TQ4_FOUR(d, (i) + 8), TQ4_FOUR(d, (i) + 12)
#define TQ4_NAMES                                                                                                                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
  "%28, %29, %30, %31"
#define TQ4_MORE_NAMES                                                                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, " \
  "%57, %58, %59, %60, %61, %62, %63"
#endif
__device__ __forceinline__ void wgmma_bf16_rows_rows(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TQ4_NAMES TQ4_MORE_NAMES
               "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
               : TQ4_SIXTEEN(d, 0), TQ4_SIXTEEN(d, 16), TQ4_SIXTEEN(d, 32), TQ4_SIXTEEN(d, 48)
               : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#endif
}
__device__ __forceinline__ void wgmma_bf16_registers_rows(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" TQ4_NAMES
               "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
               : TQ4_SIXTEEN(d, 0), TQ4_SIXTEEN(d, 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
#endif
}
__device__ __forceinline__ void wgmma_bf16_registers_rows(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" TQ4_NAMES TQ4_MORE_NAMES
               "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
               : TQ4_SIXTEEN(d, 0), TQ4_SIXTEEN(d, 16), TQ4_SIXTEEN(d, 32), TQ4_SIXTEEN(d, 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
#endif
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#undef TQ4_FOUR
#undef TQ4_SIXTEEN
#undef TQ4_NAMES
#undef TQ4_MORE_NAMES
#endif

}  // namespace tq4::gpu
