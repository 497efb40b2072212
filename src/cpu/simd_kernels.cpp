// The SIMD row kernels, compiled once per Highway target by re-including this file, and the choice among them at run time. Only targets
// with a true fused multiply-add are built (AVX2 with FMA and BMI2, AVX-512, AVX-512 with VBMI2): the bytes of the format depend on fma
// being rounded once, which the older targets would have to emulate. Any other processor runs the scalar reference.
// The choice is made here and not by libhwy, so that Highway stays a header-only dependency.
#include "cpu/simd_kernels.h"

#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_NEON | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | HWY_WASM | HWY_PPC8)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/simd_kernels.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#include "cpu/simd_encode-inl.h"
#include "cpu/simd_feedback-inl.h"
#include "cpu/simd_hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tq4::cpu::HWY_NAMESPACE {
extern const Kernels kTable;
const Kernels kTable = {
    hwy::TargetName(HWY_TARGET), LoadRows, FindNonfinite, Transform, InverseTransform, Encode, TransformEncode, EncodeFeedback, Decode};
}  // namespace tq4::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace tq4::cpu {
namespace {

#if HWY_ARCH_X86_64
// Every processor with these three has F16C too, which clang 14 cannot ask for.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }
bool has_avx3() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
bool has_avx3_dl() {
  return has_avx3() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vpopcntdq");
}
#endif

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
#if HWY_ARCH_X86_64
  __builtin_cpu_init();
  if (has_avx3_dl()) found.push_back(&N_AVX3_DL::kTable);
  if (has_avx3()) found.push_back(&N_AVX3::kTable);
  if (has_avx2()) found.push_back(&N_AVX2::kTable);
#endif
  return found;
}

}  // namespace

const std::vector<const Kernels*>& supported_simd_kernels() {
  static const std::vector<const Kernels*> tables = detect();
  return tables;
}

const Kernels& simd_kernels() {
  static const Kernels& best = supported_simd_kernels().empty() ? scalar_kernels() : *supported_simd_kernels().front();
  return best;
}

}  // namespace tq4::cpu
#endif
