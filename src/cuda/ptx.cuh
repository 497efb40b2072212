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

// ---- Arithmetic ----

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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
__device__ __forceinline__ std::uint64_t stream_policy() {  // every byte is read once: do not keep it in L2
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
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
/// mbarrier_init() of this thread is seen by the asynchronous copies.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Ordinary accesses of shared memory before it come before the bulk copies after it.
__device__ __forceinline__ void fence_bulk_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Between thread blocks and launches ----

/// Adds 1 and returns what was there: releases this thread's writes to global memory, acquires those of the blocks counted before.
__device__ __forceinline__ std::uint32_t count_acq_rel(std::uint32_t* counter) {
  std::uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
/// Programmatic dependent launch: the next kernel of the stream may begin; the kernels before have ended and their writes are seen.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_previous_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/// The same where the kernel is also built for GPUs older than sm_90 (there they do nothing, and launches do not overlap).
__device__ __forceinline__ void launch_dependents_if_able() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  launch_dependents();
#endif
}
__device__ __forceinline__ void wait_for_previous_kernels_if_able() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  wait_for_previous_kernels();
#endif
}

// ---- Products of a warpgroup (wgmma, sm_90a) ----

/// Whether this build has them; the functions below do nothing elsewhere.
__device__ __forceinline__ constexpr bool warpgroup_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#else
  return false;
#endif
}
/// Before the first product of a group: registers and what earlier products left are in place.
__device__ __forceinline__ void wgmma_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// After the last: all sums are there.
__device__ __forceinline__ void wgmma_finish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
/// This thread's writes of shared memory, cp.async among them, are seen by the products after the next barrier.
__device__ __forceinline__ void fence_for_products() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  fence_bulk_copies();
#endif
}
/// The lower word of what wgmma calls a matrix in shared memory: rows of 64 fp16 (128 bytes) in groups of 8 one behind the other, 16-byte chunks
/// swizzled by the row in its group. 16 bytes further on it is one more.
__device__ __forceinline__ std::uint32_t wgmma_operand(std::uint32_t address) { return (address & 0x3ffffu) >> 4 | 1u << 16; }
constexpr std::uint32_t kWgmmaOperandUpper = (1024u >> 4) | 1u << 30;  ///< groups 1024 bytes apart, chunks of 16 bytes swizzled over 128
/// d (+)= a b^T: a 64 x 16 fp16 in registers (a warp's 16 rows as mma has them), b N x 16 fp16 at operand b (wgmma_operand of row 0, column 0 of them), d
/// 64 x N as N / 8 tiles of mma. All of the warpgroup.
__device__ __forceinline__ void wgmma_m64k16(float (&d)[32], const std::uint32_t (&a)[4], std::uint32_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 m;\nsetp.ne.b32 p, %37, 0;\nmov.b64 m, {%36, %38};\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, m, p, 1, 1, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
        "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(add)), "r"(kWgmmaOperandUpper));
#endif
}
__device__ __forceinline__ void wgmma_m64k16(float (&d)[64], const std::uint32_t (&a)[4], std::uint32_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\n.reg .b64 m;\nsetp.ne.b32 p, %69, 0;\nmov.b64 m, {%68, %70};\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, m, p, 1, 1, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]),
        "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),
        "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),
        "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]),
        "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(static_cast<int>(add)), "r"(kWgmmaOperandUpper));
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
