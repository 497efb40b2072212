// Every instruction the kernels write as inline PTX, and nothing else: tensor-core products, ldmatrix, movmatrix, shared memory by 32-bit address,
// asynchronous copies (cp.async, bulk copies with mbarriers), fences, programmatic dependent launch. One header, so that a build for the host
// (tests/emulator/include/cuda/ptx.cuh) can put another in its place: what is added here is added there. Fragment layouts are those of the PTX manual (lane = 4 * row + column pair).
#pragma once

#include <cstdint>

namespace tq4::gpu {

// ---- Tensor cores, and what moves fragments between lanes ----

/// c += a (16x16 fp16, row) * b (16x8 fp16, column), fp32 sums.
__device__ __forceinline__ void mma(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/// The same of bf16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3,
                                         std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_16816(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  mma(d, a[0], a[1], a[2], a[3], b0, b1);
}
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
/// The 8x8 matrix of 16-bit elements the warp holds (lane = 4 * row + column pair), transposed.
__device__ __forceinline__ std::uint32_t transpose8x8(std::uint32_t x) {
  std::uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

/// threadIdx.x, read anew at every call.
__device__ __forceinline__ int thread_number() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// ---- Arithmetic ----

/// v, which the compiler must keep and cannot compute again.
__device__ __forceinline__ std::uint32_t opaque(std::uint32_t v) {
  asm volatile("" : "+r"(v));
  return v;
}

/// The bits of a * b + 3; 0x7fffffff if that is no number.
__device__ __forceinline__ std::uint32_t bits_above_three(float a, float b) { return __float_as_uint(__fmaf_rn(a, b, 3.0f)); }
/// The bits of x where mask has ones, else those of y.
__device__ __forceinline__ std::uint32_t select_bits(std::uint32_t x, std::uint32_t mask, std::uint32_t y) {
  std::uint32_t v;
  asm("lop3.b32 %0, %1, %2, %3, 0xe2;" : "=r"(v) : "r"(x), "r"(mask), "r"(y));
  return v;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1 / x of a normal number whose inverse is one, to 1 unit in the last place.
__device__ __forceinline__ float inverse_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1 / sqrt(x) for normal x, to 2 units in the last place; infinite for 0, 0 for infinity.
__device__ __forceinline__ float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// Four of the eight bytes of (low, high), chosen by the nibbles of `select` (each below 8).
__device__ __forceinline__ std::uint32_t pick_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t select) {
  std::uint32_t v;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(v) : "r"(low), "r"(high), "r"(select));
  return v;
}
/// a * b + c of two fp16 numbers at once.
__device__ __forceinline__ std::uint32_t fma_half2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
/// Two FP8 E4M3 bytes to a half2, the lower byte to the lower half.
__device__ __forceinline__ std::uint32_t e4m3x2_to_half2(std::uint16_t two) {
  std::uint32_t v;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(v) : "h"(two));
  return v;
}

// ---- Shared memory by 32-bit address ----

__device__ __forceinline__ std::uint32_t shared_address(const void* p) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ std::uint32_t lds32(std::uint32_t a) {
  std::uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(a));
  return v;
}
__device__ __forceinline__ std::uint32_t lds16(std::uint32_t a) {
  std::uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(a));
  return v;
}
__device__ __forceinline__ void lds64(std::uint32_t a, std::uint32_t* v) {
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(a));
}
__device__ __forceinline__ void lds128(std::uint32_t a, std::uint32_t* v) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(a));
}
/// Like lds128 (of a + Offset), and ordered with other accesses of memory.
template <int Offset>
__device__ __forceinline__ void lds128_ordered(std::uint32_t a, int& x, int& y, int& z, int& w) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4+%5];" : "=r"(x), "=r"(y), "=r"(z), "=r"(w) : "r"(a), "n"(Offset) : "memory");
}
__device__ __forceinline__ float lds_f32(std::uint32_t a) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(a) : "memory");
  return v;
}
/// Table reads carry no "volatile": the compiler may schedule them freely (the table never changes after the prologue).
template <int Offset>
__device__ __forceinline__ std::uint32_t table_read(std::uint32_t a) {
  std::uint32_t v;
  asm("ld.shared.b32 %0, [%1+%2];" : "=r"(v) : "r"(a), "n"(Offset));
  return v;
}
__device__ __forceinline__ void sts32(std::uint32_t a, std::uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(a), "r"(v) : "memory");
}
__device__ __forceinline__ void sts16(std::uint32_t a, std::uint32_t v) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(a), "h"((std::uint16_t)v) : "memory");
}
__device__ __forceinline__ void sts128(std::uint32_t a, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(a), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}
template <int Offset>
__device__ __forceinline__ void sts128_words(std::uint32_t a, int x, int y, int z, int w) {
  asm volatile("st.shared.v4.b32 [%0+%5], {%1,%2,%3,%4};" ::"r"(a), "r"(x), "r"(y), "r"(z), "r"(w), "n"(Offset) : "memory");
}

// ---- Asynchronous copies of 16 bytes (cp.async, sm_80) ----

/// 16 bytes from global to shared memory; the bytes from `valid` on become 0.
__device__ __forceinline__ void copy_async_16(unsigned shared, const void* global, int valid = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- Bulk copies and the mbarriers that announce them (sm_90) ----

/// An mbarrier of one arrival.
__device__ __forceinline__ void mbarrier_init(std::uint32_t bar) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar)); }
/// Waits until the phase of this parity has completed.
__device__ __forceinline__ void mbarrier_wait(std::uint32_t bar, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra wait;\ndone:\n}\n" ::"r"(bar),
      "r"(parity)
      : "memory");
}
/// Every byte is read once, do not keep it in L2: what createpolicy.fractional.L2::evict_first gives, as a constant (it needs no registers).
__device__ __forceinline__ constexpr std::uint64_t stream_policy() { return 0x12F0000000000000; }
/// One elected lane asks for a tile: its codes and its scales, announced together at `bar`. All of the warp calls.
template <int CodeBytes, int ScaleBytes>
__device__ __forceinline__ void bulk_load(std::uint32_t dst, const std::uint8_t* codes, const std::uint8_t* scales, std::uint32_t bar,
                                          std::uint64_t policy) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %5;\n"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%1], [%2], %6, [%0], %4;\n"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%8], [%3], %7, [%0], %4;\n}\n" ::"r"(bar),
      "r"(dst), "l"(codes), "l"(scales), "l"(policy), "n"(CodeBytes + ScaleBytes), "n"(CodeBytes), "n"(ScaleBytes), "r"(dst + CodeBytes)
      : "memory");
}
/// One elected lane has a tile brought to the second-level cache. All of the warp calls.
template <int CodeBytes, int ScaleBytes>
__device__ __forceinline__ void bulk_prefetch(const std::uint8_t* codes, const std::uint8_t* scales) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "@p cp.async.bulk.prefetch.L2.global [%0], %2;\n"
      "@p cp.async.bulk.prefetch.L2.global [%1], %3;\n}\n" ::"l"(codes),
      "l"(scales), "n"(CodeBytes), "n"(ScaleBytes));
}
/// One elected lane asks for two runs of `bytes` each (a multiple of 16), announced together at `bar`. All of the warp calls.
__device__ __forceinline__ void bulk_load_two(std::uint32_t dst0, const std::uint8_t* src0, std::uint32_t dst1, const std::uint8_t* src1,
                                              std::uint32_t bytes, std::uint32_t bar, std::uint64_t policy) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %5;\n"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%1], [%2], %6, [%0], %7;\n"
      "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%3], [%4], %6, [%0], %7;\n}\n" ::"r"(bar),
      "r"(dst0), "l"(src0), "r"(dst1), "l"(src1), "r"(2 * bytes), "r"(bytes), "l"(policy)
      : "memory");
}
/// One thread asks for `bytes` from global to shared memory, announced at `bar` (which expects them). Addresses and size are multiples of 16.
__device__ __forceinline__ void bulk_copy(std::uint32_t dst, const std::uint8_t* src, std::uint32_t bytes, std::uint32_t bar,
                                          std::uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(dst),
               "l"(src), "r"(bytes), "r"(bar), "l"(policy)
               : "memory");
}
/// One thread asks for `bytes` (a multiple of 16) of shared memory to be written to global memory: a group of its own. What ordinary accesses wrote there is
/// seen after fence_bulk_copies() of the threads that wrote it.
__device__ __forceinline__ void bulk_store(void* to, std::uint32_t from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\ncp.async.bulk.commit_group;" ::"l"(to), "r"(from), "r"(bytes)
               : "memory");
}
/// All of this thread's bulk stores have read their shared memory.
__device__ __forceinline__ void bulk_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
/// mbarrier_init() of this thread is seen by the asynchronous copies.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Ordinary accesses of shared memory before it (cp.async among them) come before the bulk copies and warpgroup products after it.
/// Nothing on GPUs older than sm_90.
__device__ __forceinline__ void fence_bulk_copies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- Between thread blocks and launches ----

/// Adds 1 and returns what was there: releases this thread's writes to global memory, acquires those of the blocks counted before.
__device__ __forceinline__ std::uint32_t count_acq_rel(std::uint32_t* counter) {
  std::uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
/// Asks for the line of global memory at `at`, to be read soon by this multiprocessor; nothing writes it meanwhile.
__device__ __forceinline__ void prefetch_l1(const void* at) { asm volatile("prefetch.global.L1 [%0];" ::"l"(at)); }
/// N words (1, 2, 4 or 8, aligned to their size up to 16 bytes) that blocks of one launch pass to each other: written and read where all see them, each word
/// by itself, in no order with others.
template <int N>
__device__ __forceinline__ void store_relaxed(std::uint32_t* at, const std::uint32_t (&v)[N]) {
  if constexpr (N == 1) {
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(at), "r"(v[0]) : "memory");
  } else if constexpr (N == 2) {
    asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1,%2};" ::"l"(at), "r"(v[0]), "r"(v[1]) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(at + i), "r"(v[i]), "r"(v[i + 1]), "r"(v[i + 2]), "r"(v[i + 3])
                   : "memory");
  }
}
template <int N>
__device__ __forceinline__ void load_relaxed(const std::uint32_t* at, std::uint32_t (&v)[N]) {
  if constexpr (N == 1) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v[0]) : "l"(at) : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ld.relaxed.gpu.global.v2.b32 {%0,%1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "l"(at) : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[i]), "=r"(v[i + 1]), "=r"(v[i + 2]), "=r"(v[i + 3])
                   : "l"(at + i)
                   : "memory");
  }
}
/// What a loop does that reads such words until they are there (only the emulator has something to do).
__device__ __forceinline__ void not_there_yet() {}
/// Programmatic dependent launch: the next kernel of the stream may begin; the kernels before have ended and their writes are seen. On GPUs older than
/// sm_90 they do nothing, and launches do not overlap.
__device__ __forceinline__ void launch_dependents() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernels() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- Conversions: fp8 (sm_89), bf16 ----

__device__ __forceinline__ constexpr bool converts_to_e4m3() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return true;
#else
  return false;
#endif
}
/// (x, y) to FP8 E4M3, x in the lower byte, nearest even, saturated.
__device__ __forceinline__ std::uint16_t to_e4m3x2(float x, float y) {
  std::uint16_t v = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(v) : "f"(y), "f"(x));
#endif
  return v;
}

/// (x, y) to two bf16, x in the lower half, nearest even.
__device__ __forceinline__ std::uint32_t bf16x2_bits(float x, float y) {
  std::uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(y), "f"(x));
  return v;
}

}  // namespace tq4::gpu
