// Stands in for src/cuda/ptx.cuh in builds for the emulator: the same functions, said in C++.
#pragma once

#include <cuda_fp16.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace tq4::gpu {

// ---- Tensor cores, and what moves fragments between lanes ----

namespace emulated {

inline float half_value(std::uint16_t bits) {
  static const auto* table = [] {
    auto* t = new float[65536];
    for (unsigned i = 0; i < 65536; ++i) t[i] = half_to_float(static_cast<std::uint16_t>(i));
    return t;
  }();
  return table[bits];
}

struct MmaOperand {
  float* c;
  std::uint32_t a[4], b[2];
};
inline float bf16_value(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
template <float (*Value)(std::uint16_t)>
void mma_work(void* const* operands) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperand& o = *static_cast<const MmaOperand*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 2; ++e) {
        a[g + i % 2 * 8][2 * t + e + i / 2 * 8] = Value(static_cast<std::uint16_t>(o.a[i] >> 16 * e));
        c[g + i / 2 * 8][2 * t + i % 2] = o.c[i];
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int e = 0; e < 2; ++e) b[2 * t + e + i * 8][g] = Value(static_cast<std::uint16_t>(o.b[i] >> 16 * e));
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperand& o = *static_cast<const MmaOperand*>(operands[lane]);
    for (int i = 0; i < 4; ++i) o.c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

struct MatrixOperand {
  const std::uint8_t* row;
  std::uint32_t* r;
};
template <bool Transposed>
void ldmatrix_work(void* const* operands) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t m[8][8];
    for (int i = 0; i < 8; ++i) std::memcpy(m[i], static_cast<const MatrixOperand*>(operands[matrix * 8 + i])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const std::uint16_t low = Transposed ? m[2 * t][g] : m[g][2 * t], high = Transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
      static_cast<MatrixOperand*>(operands[lane])->r[matrix] = low | static_cast<std::uint32_t>(high) << 16;
    }
  }
}

inline void transpose_work(void* const* operands) {
  std::uint16_t m[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const std::uint32_t x = *static_cast<const std::uint32_t*>(operands[lane]);
    m[lane / 4][2 * (lane % 4)] = static_cast<std::uint16_t>(x);
    m[lane / 4][2 * (lane % 4) + 1] = static_cast<std::uint16_t>(x >> 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    *static_cast<std::uint32_t*>(operands[lane]) = m[2 * t][g] | static_cast<std::uint32_t>(m[2 * t + 1][g]) << 16;
  }
}

template <class T>
T load_shared(std::uint32_t a) {
  T v;
  std::memcpy(&v, emulator::shared_at(a, sizeof(T)), sizeof(T));
  return v;
}
template <class T>
void store_shared(std::uint32_t a, const T& v) {
  std::memcpy(emulator::shared_at(a, sizeof(T)), &v, sizeof(T));
}

}  // namespace emulated

inline void mma(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  emulated::MmaOperand o{c, {a0, a1, a2, a3}, {b0, b1}};
  emulator::meet("mma.m16n8k16", ~0u, &o, emulated::mma_work<emulated::half_value>);
}
inline void mma_bf16(float (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                     std::uint32_t b1) {
  emulated::MmaOperand o{c, {a0, a1, a2, a3}, {b0, b1}};
  emulator::meet("mma.m16n8k16.bf16", ~0u, &o, emulated::mma_work<emulated::bf16_value>);
}
inline void mma_16816(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { mma(d, a[0], a[1], a[2], a[3], b0, b1); }
inline void ldmatrix_x4(unsigned (&r)[4], unsigned address) {
  emulated::MatrixOperand o{emulator::shared_at(address, 16), r};
  emulator::meet("ldmatrix.x4", ~0u, &o, emulated::ldmatrix_work<false>);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], unsigned address) {
  emulated::MatrixOperand o{emulator::shared_at(address, 16), r};
  emulator::meet("ldmatrix.x4.trans", ~0u, &o, emulated::ldmatrix_work<true>);
}
inline std::uint32_t transpose8x8(std::uint32_t x) {
  emulator::meet("movmatrix", ~0u, &x, emulated::transpose_work);
  return x;
}

inline int thread_number() { return static_cast<int>(emulator::thread_index().x); }

// ---- Arithmetic ----

inline std::uint32_t opaque(std::uint32_t v) { return v; }
inline std::uint32_t bits_above_three(float a, float b) {
  const float sum = std::fma(a, b, 3.0f);
  return sum == sum ? std::bit_cast<std::uint32_t>(sum) : 0x7fffffffu;
}
inline float inverse_fast(float x) { return 1.0f / x; }
inline std::uint32_t select_bits(std::uint32_t x, std::uint32_t mask, std::uint32_t y) { return (x & mask) | (y & ~mask); }
inline float exp2_fast(float x) { return exp2f(x); }
inline float rsqrt_fast(float x) { return 1.f / std::sqrt(x); }
inline std::uint32_t pick_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t select) { return __byte_perm(low, high, select); }
inline std::uint32_t fma_half2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t v = 0;
  for (int e = 0; e < 32; e += 16) {
    const auto part = [e](std::uint32_t x) { return half_to_float(static_cast<std::uint16_t>(x >> e)); };
    v |= static_cast<std::uint32_t>(float_to_half(static_cast<float>(double{part(a)} * part(b) + part(c)))) << e;
  }
  return v;
}
inline std::uint32_t e4m3x2_to_half2(std::uint16_t two) {
  return float_to_half(e4m3_to_float(static_cast<std::uint8_t>(two))) |
         static_cast<std::uint32_t>(float_to_half(e4m3_to_float(static_cast<std::uint8_t>(two >> 8)))) << 16;
}

// ---- Shared memory by 32-bit address ----

inline std::uint32_t shared_address(const void* p) { return emulator::shared_address_of(p); }
inline std::uint32_t lds32(std::uint32_t a) { return emulated::load_shared<std::uint32_t>(a); }
inline std::uint32_t lds16(std::uint32_t a) { return emulated::load_shared<std::uint16_t>(a); }
inline void lds64(std::uint32_t a, std::uint32_t* v) { std::memcpy(v, emulator::shared_at(a, 8), 8); }
inline void lds128(std::uint32_t a, std::uint32_t* v) { std::memcpy(v, emulator::shared_at(a, 16), 16); }
template <int Offset>
void lds128_ordered(std::uint32_t a, int& x, int& y, int& z, int& w) {
  const int4 v = emulated::load_shared<int4>(a + Offset);
  x = v.x, y = v.y, z = v.z, w = v.w;
}
inline float lds_f32(std::uint32_t a) { return emulated::load_shared<float>(a); }
template <int Offset>
std::uint32_t table_read(std::uint32_t a) {
  return emulated::load_shared<std::uint32_t>(a + Offset);
}
inline void sts32(std::uint32_t a, std::uint32_t v) { emulated::store_shared(a, v); }
inline void sts16(std::uint32_t a, std::uint32_t v) { emulated::store_shared(a, static_cast<std::uint16_t>(v)); }
inline void sts128(std::uint32_t a, float x, float y, float z, float w) { emulated::store_shared(a, float4{x, y, z, w}); }
template <int Offset>
void sts128_words(std::uint32_t a, int x, int y, int z, int w) {
  emulated::store_shared(a + Offset, int4{x, y, z, w});
}

// ---- Asynchronous copies ----

inline void copy_async_16(unsigned shared, const void* global, int valid = 16) { emulator::copy_async(shared, global, 16, valid); }
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int Pending>
void copy_async_wait() {
  emulator::copy_async_wait(Pending);
}

inline void mbarrier_init(std::uint32_t bar) { emulator::mbarrier_init(bar, 1); }
inline void bulk_copy(std::uint32_t dst, const std::uint8_t* src, std::uint32_t bytes, std::uint32_t bar, std::uint64_t) {
  emulator::bulk_copy(dst, src, static_cast<int>(bytes), bar);
}
inline void mbarrier_wait(std::uint32_t bar, std::uint32_t parity) { emulator::mbarrier_wait(bar, parity); }
inline std::uint64_t stream_policy() { return 0; }

namespace emulated {
struct Election {
  bool elected;
};
inline void elect_work(void* const* operands) {
  const int lane = static_cast<int>(emulator::draw(32));
  for (int l = 0; l < 32; ++l) static_cast<Election*>(operands[l])->elected = l == lane;
}
}  // namespace emulated

template <int CodeBytes, int ScaleBytes>
void bulk_load(std::uint32_t dst, const std::uint8_t* codes, const std::uint8_t* scales, std::uint32_t bar, std::uint64_t) {
  emulated::Election election{};
  emulator::meet("elect.sync", ~0u, &election, emulated::elect_work);
  if (!election.elected) return;
  emulator::mbarrier_arrive_expect(bar, CodeBytes + ScaleBytes);
  emulator::bulk_copy(dst, codes, CodeBytes, bar);
  emulator::bulk_copy(dst + CodeBytes, scales, ScaleBytes, bar);
}
template <int CodeBytes, int ScaleBytes>
void bulk_prefetch(const std::uint8_t*, const std::uint8_t*) {}
inline void bulk_load_two(std::uint32_t dst0, const std::uint8_t* src0, std::uint32_t dst1, const std::uint8_t* src1, std::uint32_t bytes,
                          std::uint32_t bar, std::uint64_t) {
  emulated::Election election{};
  emulator::meet("elect.sync", ~0u, &election, emulated::elect_work);
  if (!election.elected) return;
  emulator::mbarrier_arrive_expect(bar, static_cast<int>(2 * bytes));
  emulator::bulk_copy(dst0, src0, static_cast<int>(bytes), bar);
  emulator::bulk_copy(dst1, src1, static_cast<int>(bytes), bar);
}
inline void bulk_store(void* to, std::uint32_t from, int bytes) { emulator::bulk_store(to, from, bytes); }
inline void bulk_stores_read() { emulator::bulk_stores_wait(); }
inline void fence_mbarrier_init() {}
inline void fence_bulk_copies() {}

// ---- Between thread blocks and launches ----

inline std::uint32_t count_acq_rel(std::uint32_t* counter) { return (*counter)++; }
inline void prefetch_l1(const void*) {}
template <int N>
void store_relaxed(std::uint32_t* at, const std::uint32_t (&v)[N]) {
  std::memcpy(at, v, sizeof(v));
}
template <int N>
void load_relaxed(const std::uint32_t* at, std::uint32_t (&v)[N]) {
  std::memcpy(v, at, sizeof(v));
}
inline void not_there_yet() { emulator::fail("a word that no block before this one has written is waited for"); }
/// What starts early behind a kernel may overlap with that kernel alone, so a kernel lets it begin after its own wait and not before.
namespace emulated {
inline bool& waited() {
  static bool flags[1024];
  return flags[emulator::thread_index().x];
}
}  // namespace emulated
inline void wait_for_previous_kernels() { emulated::waited() = true; }
inline void launch_dependents() {
  if (!emulated::waited()) emulator::fail("griddepcontrol.launch_dependents before griddepcontrol.wait");
  emulated::waited() = false;
}

inline bool converts_to_e4m3() { return false; }
inline std::uint16_t to_e4m3x2(float, float) { return 0; }

inline std::uint32_t bf16x2_bits(float x, float y) {
  const auto one = [](float v) {
    const unsigned u = __float_as_uint(v);
    return isnan(v) ? 0x7fffu : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  };
  return one(x) | one(y) << 16;
}

}  // namespace tq4::gpu
