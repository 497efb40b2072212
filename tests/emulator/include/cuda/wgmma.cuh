// Stands in for src/cuda/wgmma.cuh in builds for the emulator. A warp's part of a product (16 rows) is done when the warp waits for it (at once with
// eager copies), from the registers and the shared memory of that moment: what changes an operand too early, or reads a result too early, goes wrong.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/ptx.cuh"
#include "tq4/gpu.h"

namespace tq4::gpu {

/// Builds without them are those of even seeds (kernels of sm_90a alone do not ask).
inline bool warpgroup_products() { return emulator::options().seed % 2 == 1; }
inline bool warpgroup_products_on(const DeviceInfo&) { return warpgroup_products(); }

inline std::uint64_t wgmma_rows(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 |
         std::uint64_t{1} << 62;
}
inline std::uint64_t wgmma_columns(std::uint32_t address, std::uint32_t panel) {
  return static_cast<std::uint64_t>((address & 0x3ffffu) >> 4) | static_cast<std::uint64_t>(panel >> 4) << 16 |
         std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

/// The operand `bytes` (a multiple of 16) further on.
inline std::uint64_t wgmma_further(std::uint64_t operand, std::uint32_t bytes) {
  return (operand & 0xffffffff00000000u) | (static_cast<std::uint32_t>(operand) + (bytes >> 4));  // the address field is the low 14 bits
}

namespace emulated {

struct Wgmma {
  void* d;
  const std::uint32_t* a;  ///< registers, or null: `rows`
  std::uint64_t rows, b;
  int columns;
  bool add, int8, b_columns, bf16 = false;
};
/// Products of one thread: committed groups, oldest first, and the open one.
struct WgmmaQueue {
  std::vector<std::vector<Wgmma>> groups;
  std::vector<Wgmma> open;
};
inline WgmmaQueue& wgmma_queue() {
  static std::vector<WgmmaQueue> queues(1024);
  return queues[emulator::thread_index().x];
}

/// Byte `x` of row `r` of an operand (128-byte swizzle, on address bits).
inline const std::uint8_t* operand_at(std::uint64_t descriptor, std::uint32_t offset, std::size_t bytes) {
  if (descriptor >> 62 != 1) emulator::fail("wgmma: the descriptor does not say 128-byte swizzle");
  const std::uint32_t at = (static_cast<std::uint32_t>(descriptor & 0x3fff) << 4) + offset;
  return emulator::shared_at(at ^ (at >> 7 & 7) << 4, bytes);
}
inline std::uint32_t lead_offset(std::uint64_t d) { return static_cast<std::uint32_t>(d >> 16 & 0x3fff) << 4; }
inline std::uint32_t stride_offset(std::uint64_t d) { return static_cast<std::uint32_t>(d >> 32 & 0x3fff) << 4; }

template <class T, class Load>
void wgmma_product(Wgmma* const* lanes, int warp, int depth, const Load& load) {
  const Wgmma& o = *lanes[0];
  for (int lane = 1; lane < 32; ++lane) {
    if (lanes[lane]->b != o.b || lanes[lane]->rows != o.rows || lanes[lane]->add != o.add) {
      emulator::fail("lanes of a wgmma differ in its shared operands");
    }
  }
  if ((o.b & 0x38) != 0 || (o.rows & 0x38) != 0) emulator::fail("a wgmma operand does not begin in the first row of a group");
  static thread_local T a[16][32], b[32][256], c[16][256];
  const int element = static_cast<int>(32 / depth);  // bytes
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < depth && !o.a; ++k) {
      const int row = warp % 4 * 16 + m;
      a[m][k] = load(operand_at(
          o.rows, static_cast<std::uint32_t>(row / 8) * stride_offset(o.rows) + static_cast<std::uint32_t>(row % 8 * 128 + k * element),
          static_cast<std::size_t>(element)));
    }
  }
  for (int k = 0; k < depth; ++k) {
    for (int n = 0; n < o.columns; ++n) {
      const auto u = [](int v) { return static_cast<std::uint32_t>(v); };
      const std::uint32_t offset = o.b_columns
                                       ? u(n / 64) * lead_offset(o.b) + u(k / 8) * stride_offset(o.b) + u(k % 8 * 128 + n % 64 * element)
                                       : u(n / 8) * stride_offset(o.b) + u(n % 8 * 128 + k * element);
      b[k][n] = load(operand_at(o.b, offset, static_cast<std::size_t>(element)));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const Wgmma& l = *lanes[lane];
    const T* d = static_cast<const T*>(l.d);
    for (int i = 0; i < o.columns / 2; ++i) c[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + 2 * (lane % 4) + i % 2] = o.add ? d[i] : T{};
    for (int i = 0; i < 4 && o.a; ++i) {
      for (int e = 0; e < 2; ++e) {
        const auto bits = static_cast<std::uint16_t>(l.a[i] >> 16 * e);
        a[lane / 4 + i % 2 * 8][2 * (lane % 4) + e + i / 2 * 8] = load(reinterpret_cast<const std::uint8_t*>(&bits));
      }
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < depth; ++k) {
      for (int n = 0; n < o.columns; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    T* d = static_cast<T*>(lanes[lane]->d);
    for (int i = 0; i < o.columns / 2; ++i) d[i] = c[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + 2 * (lane % 4) + i % 2];
  }
}

inline void wgmma_run(Wgmma* const* lanes, int warp) {
  if (lanes[0]->int8) {
    wgmma_product<int>(lanes, warp, 32, [](const std::uint8_t* p) { return static_cast<int>(*reinterpret_cast<const std::int8_t*>(p)); });
  } else if (lanes[0]->bf16) {
    wgmma_product<float>(lanes, warp, 16, [](const std::uint8_t* p) { return bf16_value(*reinterpret_cast<const std::uint16_t*>(p)); });
  } else {
    wgmma_product<float>(lanes, warp, 16, [](const std::uint8_t* p) { return half_value(*reinterpret_cast<const std::uint16_t*>(p)); });
  }
}
inline int current_warp() { return static_cast<int>(emulator::thread_index().x / 32); }

inline void wgmma_issue(const Wgmma& o) {
  Wgmma copy = o;
  const bool now = emulator::options().copies == emulator::Copies::Eager;
  emulator::meet("wgmma.mma_async", ~0u, &copy,
                 now ? [](void* const* operands) { wgmma_run(reinterpret_cast<Wgmma* const*>(operands), current_warp()); }
                     : static_cast<emulator::WarpWork>(nullptr));
  if (!now) wgmma_queue().open.push_back(o);
}

}  // namespace emulated

inline void wgmma_begin() { emulator::meet("wgmma.fence", ~0u, nullptr, nullptr); }
inline void wgmma_commit() {
  emulated::WgmmaQueue& q = emulated::wgmma_queue();
  q.groups.push_back(std::move(q.open));
  q.open.clear();
  emulator::meet("wgmma.commit_group", ~0u, nullptr, nullptr);
}
template <int Pending>
void wgmma_wait() {
  emulated::WgmmaQueue& mine = emulated::wgmma_queue();
  emulator::meet("wgmma.wait_group", ~0u, &mine, [](void* const* operands) {
    auto* const* queues = reinterpret_cast<emulated::WgmmaQueue* const*>(operands);
    while (queues[0]->groups.size() > static_cast<std::size_t>(Pending)) {
      for (std::size_t i = 0; i < queues[0]->groups.front().size(); ++i) {
        emulated::Wgmma* lanes[32];
        for (int l = 0; l < 32; ++l) lanes[l] = &queues[l]->groups.front()[i];
        emulated::wgmma_run(lanes, emulated::current_warp());
      }
      for (int l = 0; l < 32; ++l) queues[l]->groups.erase(queues[l]->groups.begin());
    }
  });
}
inline void wgmma_wait_all_after(float x, std::uint32_t) {
  if (x < 0.0f) emulator::fail("wgmma_wait_all_after: negative");
  wgmma_wait<0>();
}
template <class T, int N>
void settle(T (&)[N]) {}

inline void wgmma_rows_rows(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  emulated::wgmma_issue({d, nullptr, a, b, 128, add, false, false});
}
inline void wgmma_rows_rows(int (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  emulated::wgmma_issue({d, nullptr, a, b, 128, add, true, false});
}
template <int N>
void wgmma_registers_rows(float (&d)[N], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  emulated::wgmma_issue({d, a, 0, b, 2 * N, add, false, false});
}
template <int N>
void wgmma_registers_columns(float (&d)[N], const std::uint32_t (&a)[4], std::uint64_t b) {
  emulated::wgmma_issue({d, a, 0, b, 2 * N, true, false, true});
}

template <int Count>
void registers_down() {}
template <int Count>
void registers_up() {}
inline void named_barrier_sync(int id, int threads) { emulator::named_barrier(id, threads, true); }
inline void named_barrier_arrive(int id, int threads) { emulator::named_barrier(id, threads, false); }
inline void mbarrier_init_count(std::uint32_t bar, int arrivals) { emulator::mbarrier_init(bar, arrivals); }
inline void mbarrier_arrive(std::uint32_t bar) { emulator::mbarrier_arrive_expect(bar, 0); }
inline void mbarrier_arrive_expect(std::uint32_t bar, int bytes) { emulator::mbarrier_arrive_expect(bar, bytes); }
inline void bulk_copy(std::uint32_t to, const void* from, int bytes, std::uint32_t bar) { emulator::bulk_copy(to, from, bytes, bar); }

}  // namespace tq4::gpu
