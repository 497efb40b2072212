// Stands in for CUDA's header in builds for the emulator: keywords, vector types, thread indices, intrinsics. Only what src/cuda uses.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_runtime_api.h"

// ---- Threads ----

#define threadIdx (::tq4::emulator::thread_index())
#define blockIdx (::tq4::emulator::block_index())
#define blockDim (::tq4::emulator::block_size())
#define gridDim (::tq4::emulator::grid_size())
constexpr int warpSize = 32;

inline void __syncthreads() { ::tq4::emulator::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { ::tq4::emulator::meet("__syncwarp", mask, nullptr, nullptr); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { ::tq4::emulator::fail("__trap()"); }
inline void __nanosleep(unsigned) {}

namespace tq4::emulator {

/// A lane's part of a shuffle, vote or reduction.
struct WarpOperand {
  std::uint64_t value;
  int source;
  std::uint64_t result;
};
inline WarpOperand& warp_operand(void* const* operands, int lane) { return *static_cast<WarpOperand*>(operands[lane]); }
inline void shuffle_work(void* const* operands) {
  for (int l = 0; l < 32; ++l) {
    if (!operands[l]) continue;
    WarpOperand& o = warp_operand(operands, l);
    if (!operands[o.source]) fail("shuffle: lane " + std::to_string(o.source) + " is read and takes no part");
    o.result = warp_operand(operands, o.source).value;
  }
}
template <class T>
T shuffle(const char* what, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  WarpOperand o{0, source, 0};
  std::memcpy(&o.value, &value, sizeof(T));
  meet(what, mask, &o, shuffle_work);
  T result;
  std::memcpy(&result, &o.result, sizeof(T));
  return result;
}
inline void ballot_work(void* const* operands) {
  std::uint64_t votes = 0;
  for (int l = 0; l < 32; ++l) {
    if (operands[l]) votes |= warp_operand(operands, l).value << l;
  }
  for (int l = 0; l < 32; ++l) {
    if (operands[l]) warp_operand(operands, l).result = votes;
  }
}
inline unsigned ballot(const char* what, unsigned mask, bool vote) {
  WarpOperand o{vote, 0, 0};
  meet(what, mask, &o, ballot_work);
  return static_cast<unsigned>(o.result);
}
template <class T, class Op>
struct Reduction {
  T value;
  static void work(void* const* operands) {
    bool any = false;
    T total{};
    for (int l = 0; l < 32; ++l) {
      if (!operands[l]) continue;
      const T v = static_cast<Reduction*>(operands[l])->value;
      total = any ? Op{}(total, v) : v;
      any = true;
    }
    for (int l = 0; l < 32; ++l) {
      if (operands[l]) static_cast<Reduction*>(operands[l])->value = total;
    }
  }
};
template <class Op, class T>
T reduce(const char* what, unsigned mask, T value) {
  Reduction<T, Op> o{value};
  meet(what, mask, &o, &Reduction<T, Op>::work);
  return o.value;
}
struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>(a + b);
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

}  // namespace tq4::emulator

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  const int lane = ::tq4::emulator::lane_id();
  return ::tq4::emulator::shuffle("__shfl_sync", mask, v, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  const int lane = ::tq4::emulator::lane_id(), from = lane ^ bits;
  return ::tq4::emulator::shuffle("__shfl_xor_sync", mask, v, from < (lane & ~(width - 1)) + width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int lane = ::tq4::emulator::lane_id(), from = lane - static_cast<int>(delta);
  return ::tq4::emulator::shuffle("__shfl_up_sync", mask, v, from >= (lane & ~(width - 1)) ? from : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int lane = ::tq4::emulator::lane_id(), from = lane + static_cast<int>(delta);
  return ::tq4::emulator::shuffle("__shfl_down_sync", mask, v, from < (lane & ~(width - 1)) + width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) { return ::tq4::emulator::ballot("__ballot_sync", mask, vote); }
inline int __any_sync(unsigned mask, bool vote) { return ::tq4::emulator::ballot("__any_sync", mask, vote) != 0; }
inline int __all_sync(unsigned mask, bool vote) { return ::tq4::emulator::ballot("__all_sync", mask, vote) == mask; }
template <class T>
T __reduce_add_sync(unsigned mask, T v) {
  return ::tq4::emulator::reduce<::tq4::emulator::Add>("__reduce_add_sync", mask, v);
}
template <class T>
T __reduce_max_sync(unsigned mask, T v) {
  return ::tq4::emulator::reduce<::tq4::emulator::Max>("__reduce_max_sync", mask, v);
}
template <class T>
T __reduce_min_sync(unsigned mask, T v) {
  return ::tq4::emulator::reduce<::tq4::emulator::Min>("__reduce_min_sync", mask, v);
}

// ---- Memory ----

namespace tq4::emulator {
/// A pointer that an access of its type may use.
template <class T>
const T* aligned(const T* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % alignof(T) != 0) fail("access of " + std::to_string(sizeof(T)) + " bytes is misaligned");
  return p;
}
}  // namespace tq4::emulator
template <class T>
T __ldg(const T* p) {
  return *::tq4::emulator::aligned(p);
}
template <class T>
T __ldcg(const T* p) {
  return *::tq4::emulator::aligned(p);
}
template <class T>
T __ldcs(const T* p) {
  return *::tq4::emulator::aligned(p);
}
template <class T>
void __stcg(T* p, T v) {
  *const_cast<T*>(::tq4::emulator::aligned<T>(p)) = v;
}
template <class T>
void __stcs(T* p, T v) {
  *const_cast<T*>(::tq4::emulator::aligned<T>(p)) = v;
}
template <class T>
T atomicAdd(T* p, T v) {
  const T before = *p;
  *p = static_cast<T>(before + v);
  return before;
}
template <class T>
T atomicMax(T* p, T v) {
  const T before = *p;
  *p = before > v ? before : v;
  return before;
}
template <class T>
T atomicExch(T* p, T v) {
  const T before = *p;
  *p = v;
  return before;
}
inline std::size_t __cvta_generic_to_shared(const void* p) { return ::tq4::emulator::shared_address_of(p); }

// ---- Integers and bits ----

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32); }
inline int __popc(unsigned v) { return std::popcount(v); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = x | static_cast<std::uint64_t>(y) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned select = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (select & 7)) & 0xff;
    if (select & 8) byte = byte & 0x80 ? 0xff : 0;  // replicates the sign
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((low | static_cast<std::uint64_t>(high) << 32) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((low | static_cast<std::uint64_t>(high) << 32) << (shift & 31) >> 32);
}
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }

// ---- Floats (the build must not contract products and sums: -ffp-contract=off) ----

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
inline int __float2int_rz(float v) { return static_cast<int>(v); }
inline int __float2int_rn(float v) { return static_cast<int>(std::nearbyint(v)); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline void sincospif(float v, float* s, float* c) {
  const double x = 3.14159265358979323846 * static_cast<double>(v);
  *s = static_cast<float>(std::sin(x));
  *c = static_cast<float>(std::cos(x));
}
inline void sincospi(double v, double* s, double* c) {
  *s = std::sin(3.14159265358979323846 * v);
  *c = std::cos(3.14159265358979323846 * v);
}
using std::isfinite;
using std::isinf;
using std::isnan;
