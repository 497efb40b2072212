// Hopper's warpgroup products (wgmma, sm_90a) and what a kernel built on them needs beside ptx.cuh: descriptors of operands in shared memory, register
// budgets, named barriers, mbarriers of many arrivals. Like ptx.cuh it has a twin for the host in tests/emulator/include.
//
// Operands in shared memory are stored in rows of 128 bytes, 16-byte chunk c of row r at chunk c ^ (r & 7) ("128-byte swizzle"), 8 rows (1024 bytes,
// aligned so) after another. Matrices wider than 128 bytes are cut in panels of 128 bytes that lie one after the other.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"
#include "tq4/gpu.h"

namespace tq4::gpu {

/// Whether this build has warpgroup products. Elsewhere the functions below that multiply, wait or move registers do nothing.
__device__ __forceinline__ constexpr bool warpgroup_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#else
  return false;
#endif
}
/// Whether the code that runs on this device has them.
inline bool warpgroup_products_on([[maybe_unused]] const DeviceInfo& device) {
#if defined(TQ4_SM90A)
  return device.compute_major == 9;
#else
  return false;
#endif
}
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TQ4_WGMMA(...) asm volatile(__VA_ARGS__)
#else
#define TQ4_WGMMA(...) static_cast<void>(0)
#endif

/// Descriptor of an operand whose rows run along the summed index (K-major): A and B of the products of queries and keys.
__device__ __forceinline__ std::uint64_t wgmma_rows(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 |
         std::uint64_t{1} << 62;
}
/// Descriptor of a B whose rows run along its columns and whose row index is summed over (MN-major): values. Panels are `panel` bytes apart.
__device__ __forceinline__ std::uint64_t wgmma_columns(std::uint32_t address, std::uint32_t panel) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | static_cast<std::uint64_t>(panel >> 4) << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

/// The operand `bytes` (a multiple of 16) further on.
__device__ __forceinline__ std::uint64_t wgmma_further(std::uint64_t operand, std::uint32_t bytes) {
  return (operand & 0xffffffff00000000u) | (static_cast<std::uint32_t>(operand) + (bytes >> 4));  // the address field is the low 14 bits
}

/// Registers written before it are seen by the products after it.
__device__ __forceinline__ void wgmma_begin() { TQ4_WGMMA("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { TQ4_WGMMA("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `Pending` committed groups are under way. settle() what they wrote before reading it.
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  TQ4_WGMMA("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
/// Waits for all groups, but not before x (never negative) is known: left alone, the assembler moves the wait ahead of the arithmetic that was to
/// run beside the products. `unused`: 4 bytes of shared memory that a negative x would go to.
__device__ __forceinline__ void wgmma_wait_all_after(float x, std::uint32_t unused) {
  TQ4_WGMMA("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p st.shared.f32 [%1], %0;\nwgmma.wait_group.sync.aligned 0;\n}\n" ::"f"(x),
            "r"(unused)
            : "memory");
}
/// Keeps the compiler from moving accesses of d across this place.
template <int N>
__device__ __forceinline__ void settle(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void settle(int (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Products of 64 rows, asynchronous. Lane l of warp w holds of d: row 16 w + l / 4 + 8 i, column 8 n + 2 (l % 4) + j at d[4 n + 2 i + j]. A from registers
// lies as that of mma.m16n8k16, and must not change until waited for.

/// What an instruction calls 32 or 64 registers of d, and the constraints that bind them.
#define TQ4_NAMES_32                                                                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
  "%28, %29, %30, %31"
#define TQ4_NAMES_64                                                                                                                     \
  TQ4_NAMES_32                                                                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, " \
  "%58, "                                                                                                                                \
  "%59, %60, %61, %62, %63"
#define TQ4_BIND_4(kind, d, i) kind((d)[i]), kind((d)[(i) + 1]), kind((d)[(i) + 2]), kind((d)[(i) + 3])
#define TQ4_BIND_16(kind, d, i) \
  TQ4_BIND_4(kind, d, i), TQ4_BIND_4(kind, d, (i) + 4), TQ4_BIND_4(kind, d, (i) + 8), TQ4_BIND_4(kind, d, (i) + 12)
#define TQ4_BIND_32(kind, d) TQ4_BIND_16(kind, d, 0), TQ4_BIND_16(kind, d, 16)
#define TQ4_BIND_64(kind, d) TQ4_BIND_32(kind, d), TQ4_BIND_16(kind, d, 32), TQ4_BIND_16(kind, d, 48)

/// d (+)= A B^T over 16 fp16 coordinates, A 64 rows, B 128 rows, both by wgmma_rows().
__device__ __forceinline__ void wgmma_rows_rows(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  TQ4_WGMMA("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" TQ4_NAMES_64
            "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
            : TQ4_BIND_64("+f", d)
            : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
/// The same over 32 int8 coordinates.
__device__ __forceinline__ void wgmma_rows_rows(int (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  TQ4_WGMMA("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" TQ4_NAMES_64
            "}, %64, %65, p;\n}\n"
            : TQ4_BIND_64("+r", d)
            : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
/// d (+)= A B^T over 16 fp16 coordinates, A from registers, B 128 rows by wgmma_rows().
__device__ __forceinline__ void wgmma_registers_rows(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  TQ4_WGMMA("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" TQ4_NAMES_64
            "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
            : TQ4_BIND_64("+f", d)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}
/// The same for 64 rows of B.
__device__ __forceinline__ void wgmma_registers_rows(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  TQ4_WGMMA("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" TQ4_NAMES_32
            "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
            : TQ4_BIND_32("+f", d)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
}
/// d += A B over 16 fp16 rows of B (wgmma_columns()), 128 columns; A from registers.
__device__ __forceinline__ void wgmma_registers_columns(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
  TQ4_WGMMA("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" TQ4_NAMES_64 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
            : TQ4_BIND_64("+f", d)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
/// The same for 64 columns.
__device__ __forceinline__ void wgmma_registers_columns(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b) {
  TQ4_WGMMA("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" TQ4_NAMES_32 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
            : TQ4_BIND_32("+f", d)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef TQ4_NAMES_32
#undef TQ4_NAMES_64
#undef TQ4_BIND_4
#undef TQ4_BIND_16
#undef TQ4_BIND_32
#undef TQ4_BIND_64

// ---- Registers, barriers, copies ----

/// Gives registers of this warpgroup back, or takes them (counts a thread); all of its warps call.
template <int Count>
__device__ __forceinline__ void registers_down() {
  TQ4_WGMMA("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void registers_up() {
  TQ4_WGMMA("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
/// Barrier `id` (1 to 15) of `threads` threads, whole warps: with the wait, or only counted.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void mbarrier_init_count(std::uint32_t bar, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals));
}
__device__ __forceinline__ void mbarrier_arrive(std::uint32_t bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/// Arrives, and makes the phase wait for `bytes` of bulk copies.
__device__ __forceinline__ void mbarrier_arrive_expect(std::uint32_t bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/// One thread asks for `bytes` (a multiple of 16) from global to shared memory, announced at `bar`.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const void* from, int bytes, std::uint32_t bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
               "r"(bar)
               : "memory");
}
#undef TQ4_WGMMA

}  // namespace tq4::gpu
