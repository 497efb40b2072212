// Twelve independent chains of fused multiply-adds per loop: enough to cover latency 4 at two a cycle. Compiled for AVX-512 and AVX2, chosen
// at run time; a plain std::fma loop elsewhere.
#include "fma_peak.h"

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tq4::bench {
namespace {

#if defined(__x86_64__)
#define TQ4_TWELVE(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11)

__attribute__((target("avx512f"))) std::int64_t fmas_512(std::int64_t loops) {
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(0.001f);
#define TQ4_DECLARE(k) __m512 a##k = _mm512_set1_ps(k);
  TQ4_TWELVE(TQ4_DECLARE)
  for (std::int64_t i = 0; i < loops; ++i) {
// The empty asm keeps every accumulator in its register and the loop a loop.
#define TQ4_STEP(k)                   \
  a##k = _mm512_fmadd_ps(a##k, x, y); \
  asm volatile("" : "+v"(a##k));
    TQ4_TWELVE(TQ4_STEP)
  }
  return loops * 12 * 16;
}

__attribute__((target("avx2,fma"))) std::int64_t fmas_256(std::int64_t loops) {
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(0.001f);
#define TQ4_DECLARE_256(k) __m256 a##k = _mm256_set1_ps(k);
  TQ4_TWELVE(TQ4_DECLARE_256)
  for (std::int64_t i = 0; i < loops; ++i) {
#define TQ4_STEP_256(k)               \
  a##k = _mm256_fmadd_ps(a##k, x, y); \
  asm volatile("" : "+x"(a##k));
    TQ4_TWELVE(TQ4_STEP_256)
  }
  return loops * 12 * 8;
}
#endif

}  // namespace

std::int64_t run_fmas(std::int64_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return fmas_512(count / (12 * 16));
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fmas_256(count / (12 * 8));
#endif
  volatile float a = 1.0f;
  for (std::int64_t i = 0; i < count; ++i) a = std::fma(a, 0.999f, 0.001f);
  return count;
}

}  // namespace tq4::bench
